"""The language model inside ESMFold (Lin et al. 2023), as transformers' `EsmForProteinFolding` saves it."""

from __future__ import annotations

from plmsae.plms.alphabet import AMINO_ACIDS, ESM, ESM_VOCABULARY, Alphabet
from plmsae.plms.checkpoint import Checkpoint
from plmsae.plms.esm2 import POSITIONS_NOT_RESIDUES
from plmsae.plms.esm2_network import Esm2Network
from plmsae.plms.esm2_weights import read_esm_config, read_weights
from plmsae.plms.packed import PackedLM

# ESMFold numbers residues as AlphaFold does, which knows the 20 amino acids and X for all others, before it translates
# them to ESM's tokens: `sequence_to_onehot(map_unknown_to_x=True)` and `af2_to_esm` of transformers.
_LETTERS = {letter: ESM_VOCABULARY[letter if letter in AMINO_ACIDS else "X"] for letter in "ACDEFGHIKLMNPQRSTVWYXBJOUZ"}


class EsmFoldLM(PackedLM):
    """ESMFold's language model: an ESM-2 without its head, whose hidden states of all layers the folding trunk mixes.

    Layer index: as `ProteinLM` says; entry l of the stack that ESMFold reads (`esm_s_combine`) is `residual` at l.
    The published checkpoint holds it in fp16, and ESMFold runs it so; here it is computed in fp32 (or bfloat16).
    Letters: the 20 amino acids; X and every other residue letter (B J O U Z) become X, as ESMFold does.

    Args:
        name: Name it is known by.
        checkpoint: Its files.
        revision: What pins them.

    Raises:
        UserError: Not a checkpoint of this architecture.
        DataError: A corrupted or incomplete file.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, revision: str) -> None:
        config = read_esm_config(checkpoint, folding=True)
        self.max_residues = config.max_position_embeddings - POSITIONS_NOT_RESIDUES
        self.vocabulary = ESM_VOCABULARY
        self.objective = "none"
        self.mask_id = None
        alphabet = Alphabet(_LETTERS, ESM.before, ESM.after)
        super().__init__(name, revision, alphabet, Esm2Network(read_weights(checkpoint, config, head=False)))
