"""What every protein language model offers: tokenise, hidden states at a hook, logits with an optional edit.

Batches are packed: sequences lie one after another without padding, so nothing has to be masked and no work is
done on pads. Residue rows are what leaves this room; `<cls>` and `<eos>` are never returned, trained on or edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from plmsae.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Tokens:
    """A packed batch of B sequences with N tokens and R residues.

    Attributes:
        ids: int64 [N], every sequence with its special tokens.
        lengths: int64 [B], tokens per sequence, specials included.
        residues: bool [N], true at residue positions.
    """

    ids: Tensor
    lengths: Tensor
    residues: Tensor

    @property
    def num_residues(self) -> int:
        """R, the number of rows that `hidden` and `logits` return."""
        return int(self.residues.sum())

    def residue_ids(self) -> Tensor:
        """Token ids at the residue rows, int64 [R]."""
        return self.ids[self.residues]

    def with_residues(self, rows: Tensor, ids: Tensor | int) -> Tokens:
        """A copy with other tokens at some residue rows.

        Args:
            rows: int64 [n], indices into the R residue rows.
            ids: The new token ids, [n] or one for all.
        """
        changed = self.ids.clone()
        changed[self.residues.nonzero()[:, 0][rows]] = ids
        return replace(self, ids=changed)


@dataclass(frozen=True)
class Edit:
    """Replaces the hidden state of the residues at a hook before the model goes on.

    Attributes:
        layer: Layer index as in `ProteinLM.hidden`.
        hook: Name of the hook.
        function: fp32 [R, d_model] residue rows in batch order -> the same shape.
    """

    layer: int
    hook: str
    function: Callable[[Tensor], Tensor]


class ProteinLM(ABC):
    """A protein language model.

    Layer l in 0..num_layers: 0 is the embedding, l the residual stream after block l, and num_layers the stream
    after the last block and the final LayerNorm (the `hidden_states` of transformers). A model whose index means
    anything else says so in its class.

    Attributes:
        name: Name it was loaded by.
        revision: What pins its weights: a commit hash of a hub, or `sha256:<hex>` of the weight file.
        num_layers: Number of blocks.
        d_model: Width of the residual stream.
        max_residues: The longest sequence it takes.
        vocabulary: Token -> id.
        mask_id: Id of the mask token.
        hooks: Places where hidden states can be read and edited.
    """

    name: str
    revision: str
    num_layers: int
    d_model: int
    max_residues: int
    vocabulary: Mapping[str, int]
    mask_id: int
    hooks: tuple[str, ...] = ("residual",)

    @abstractmethod
    def tokenize(self, sequences: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        """Pack sequences.

        Args:
            sequences: Upper-case residue letters.
            names: Accessions for error messages.

        Raises:
            DataError: An illegal letter, an empty sequence or one longer than `max_residues`.
        """

    @abstractmethod
    def hidden(self, tokens: Tokens, layer: int, hook: str = "residual") -> Tensor:
        """Hidden states at a hook, fp32 [R, d_model], residue rows in batch order; later layers are not computed.

        Raises:
            UserError: The layer or hook does not exist.
        """

    @abstractmethod
    def logits(self, tokens: Tokens, edit: Edit | None = None) -> Tensor:
        """Scores of every token of the vocabulary, fp32 [R, V], residue rows in batch order.

        Raises:
            UserError: The edit's layer or hook does not exist, or its function returns another shape.
            DataError: The edit's function returns values that are not finite.
        """

    def logits_each(self, tokens: Tokens, edits: Sequence[Edit | None]) -> Iterator[Tensor]:
        """`logits(tokens, edit)` for each edit in turn, without computing again what comes before the edits.

        Raises:
            UserError: As `logits`.
            DataError: As `logits`.
        """
        for edit in edits:
            yield self.logits(tokens, edit)

    def residue_ids(self, tokens: Tokens) -> Tensor:
        """Token ids at the residue rows, int64 [R]."""
        return tokens.residue_ids()

    def with_masked(self, tokens: Tokens, rows: Tensor) -> Tokens:
        """A copy with the mask token at residue rows `rows` (int64 [n], indices into the R residue rows)."""
        return tokens.with_residues(rows, self.mask_id)

    def check_hook(self, layer: int, hook: str) -> None:
        """Refuse a layer or hook that does not exist.

        Raises:
            UserError: Names the valid range or the known hooks.
        """
        if hook not in self.hooks:
            raise UserError(f"'{self.name}' has no hook '{hook}'", fix=did_you_mean(hook, self.hooks))
        if not 0 <= layer <= self.num_layers:
            raise UserError(
                f"'{self.name}' has no layer {layer}",
                fix=f"use 0 (the embedding) to {self.num_layers} (after the last block and the final LayerNorm)",
            )
