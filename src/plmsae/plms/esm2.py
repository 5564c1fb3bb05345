"""ESM-2 and models of its architecture, from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from plmsae.errors import DataError, UserError
from plmsae.plms.alphabet import MASK, VOCABULARY, encode_packed
from plmsae.plms.base import Tokens
from plmsae.plms.esm2_network import Esm2Network
from plmsae.plms.esm2_weights import read_weights, revision_of
from plmsae.plms.packed import PackedLM

# Position ids of ESM start after the pad id, so the table of n positions serves n - 2 tokens, two of them special.
POSITIONS_NOT_RESIDUES = 4


class Esm2(PackedLM):
    """A masked language model of ESM-2's architecture (Lin et al. 2023), fp32 on the CPU.

    Layer index: as `ProteinLM` says, which is also fair-esm's `repr_layers`. Layer 0 carries the token-dropout scale.

    Args:
        name: Name it is known by.
        folder: Folder with `config.json` and safetensors.
        revision: Commit hash on the hub; by default the sha256 of the weights.

    Raises:
        UserError: Not an ESM-2 checkpoint in safetensors form.
        DataError: A corrupted or incomplete file.
    """

    def __init__(self, name: str, folder: Path, revision: str | None = None) -> None:
        weights = read_weights(folder)
        self.name = name
        self.revision = revision or revision_of(folder)
        self.num_layers = weights.config.num_hidden_layers
        self.d_model = weights.config.hidden_size
        self.max_residues = weights.config.max_position_embeddings - POSITIONS_NOT_RESIDUES
        self.vocabulary = VOCABULARY
        self.objective = "masked"
        self.mask_id = MASK
        self._network = Esm2Network(weights)

    def tokenize(self, sequences: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        """See `ProteinLM.tokenize`."""
        if not sequences:
            raise UserError("no sequences to tokenise", fix="pass at least one")
        for index, sequence in enumerate(sequences):
            if len(sequence) > self.max_residues:
                raise DataError(
                    f"a sequence of {len(sequence)} residues is longer than '{self.name}' takes ({self.max_residues})",
                    where=names[index] if names is not None else f"sequence {index + 1}",
                    fix="drop, crop or window it: see the ingest parameters",
                )
        ids, lengths, residues = encode_packed(sequences, names)
        return Tokens(torch.from_numpy(ids), torch.from_numpy(lengths), torch.from_numpy(residues))
