"""ESM-2 and models of its architecture, from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.plms.alphabet import MASK, VOCABULARY, encode_packed
from plmsae.plms.base import Edit, ProteinLM, Tokens
from plmsae.plms.packed import PackedEncoder
from plmsae.plms.weights import read_weights, revision_of

# Position ids of ESM start after the pad id, so the table of n positions serves n - 2 tokens, two of them special.
POSITIONS_NOT_RESIDUES = 4


class Esm2(ProteinLM):
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
        self.mask_id = MASK
        self._encoder = PackedEncoder(weights)

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

    @torch.no_grad()
    def hidden(self, tokens: Tokens, layer: int, hook: str = "residual") -> Tensor:
        """See `ProteinLM.hidden`."""
        self.check_hook(layer, hook)
        return self._run(tokens, layer, None)[tokens.residues]

    @torch.no_grad()
    def logits(self, tokens: Tokens, edit: Edit | None = None) -> Tensor:
        """See `ProteinLM.logits`."""
        if edit is not None:
            self.check_hook(edit.layer, edit.hook)
        return self._encoder.head(self._run(tokens, self.num_layers, edit)[tokens.residues])

    @torch.no_grad()
    def logits_each(self, tokens: Tokens, edits: Sequence[Edit | None]) -> Iterator[Tensor]:
        """See `ProteinLM.logits_each`."""
        for edit in edits:
            if edit is not None:
                self.check_hook(edit.layer, edit.hook)
        first = min((edit.layer for edit in edits if edit is not None), default=self.num_layers)
        common = self._run(tokens, first, None)
        for edit in edits:
            hidden = self._run(tokens, self.num_layers, edit, (first, common.clone()))
            yield self._encoder.head(hidden[tokens.residues])

    def _run(self, tokens: Tokens, last: int, edit: Edit | None, start: tuple[int, Tensor] | None = None) -> Tensor:
        """The residual stream [N, d] at layer `last`, with the edit applied on the way.

        Args:
            tokens: The batch.
            last: Layer to stop after.
            edit: Applied at its layer.
            start: A layer and the unedited stream there, to go on from; it is changed.
        """
        encoder = self._encoder
        layout = encoder.layout(tokens.lengths)
        first, hidden = start if start is not None else (0, encoder.embed(tokens))
        for layer in range(first, last + 1):
            if layer > first:
                hidden = encoder.block(layer - 1, hidden, layout)
            if layer == self.num_layers and (start is None or layer > first):
                hidden = encoder.final_norm(hidden)
            if edit is not None and edit.layer == layer:
                hidden = _edited(hidden, tokens, edit)
        return hidden


def _edited(hidden: Tensor, tokens: Tokens, edit: Edit) -> Tensor:
    """`hidden` [N, d], changed in place at the residue rows."""
    rows = hidden[tokens.residues]
    new = edit.function(rows)
    if new.shape != rows.shape:
        raise UserError(
            f"the edit at layer {edit.layer} returned shape {list(new.shape)} for rows of shape {list(rows.shape)}",
            fix="return one row per residue",
        )
    if not bool(torch.isfinite(new).all()):
        raise DataError(
            f"the edit at layer {edit.layer} returned values that are not finite", fix="use a smaller change"
        )
    hidden[tokens.residues] = new.to(hidden.dtype)
    return hidden
