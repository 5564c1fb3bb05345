"""ESM-2 and models of its architecture."""

from __future__ import annotations

from plmsae.plms.alphabet import ESM, ESM_MASK, ESM_VOCABULARY
from plmsae.plms.checkpoint import Checkpoint
from plmsae.plms.esm2_network import Esm2Network
from plmsae.plms.esm2_weights import read_esm_config, read_weights
from plmsae.plms.packed import PackedLM

# Position ids of ESM start after the pad id, so the table of n positions serves n - 2 tokens, two of them special.
POSITIONS_NOT_RESIDUES = 4


class Esm2(PackedLM):
    """A masked language model of ESM-2's architecture (Lin et al. 2023), as `EsmForMaskedLM` saves it.

    Layer index: as `ProteinLM` says, which is also fair-esm's `repr_layers`. Layer 0 carries the token-dropout scale.
    Letters: the 20 amino acids and X B U Z O, each a token of its own.

    Args:
        name: Name it is known by.
        checkpoint: Its files.
        revision: What pins them.

    Raises:
        UserError: Not a checkpoint of this architecture.
        DataError: A corrupted or incomplete file.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, revision: str) -> None:
        config = read_esm_config(checkpoint)
        self.max_residues = config.max_position_embeddings - POSITIONS_NOT_RESIDUES
        self.vocabulary = ESM_VOCABULARY
        self.objective = "masked"
        self.mask_id = ESM_MASK
        super().__init__(name, revision, ESM, Esm2Network(read_weights(checkpoint, config)))
