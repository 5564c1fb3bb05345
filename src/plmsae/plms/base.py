"""What every protein language model offers: tokenise, hidden states at a hook, logits with an optional edit.

Batches are packed: sequences lie one after another without padding, so nothing has to be masked and no work is
done on pads. Residue rows are what leaves this room; special tokens are never returned, trained on or edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from plmsae.errors import UserError, did_you_mean

EMBEDDING, RESIDUAL, ATTENTION, MLP, FINAL_NORM = "embedding", "residual", "attention", "mlp", "final_norm"
HOOKS = (EMBEDDING, RESIDUAL, ATTENTION, MLP, FINAL_NORM)
COMPONENTS = (ATTENTION, MLP)  # hooks inside a block: what it adds to the residual stream


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
class Place:
    """Where hidden states are read: a layer and a hook, see `ProteinLM`."""

    layer: int
    hook: str = RESIDUAL


@dataclass(frozen=True)
class Edit:
    """Replaces the hidden state of the residues at a place before the model goes on.

    Attributes:
        layer: Layer index as in `ProteinLM`.
        hook: Name of the hook.
        function: fp32 [R, d_model] residue rows in batch order -> the same shape.
    """

    layer: int
    hook: str
    function: Callable[[Tensor], Tensor]


class ProteinLM(ABC):
    """A protein language model.

    A place is a layer and a hook. With n = num_layers blocks:

    | hook | layers | hidden state |
    |---|---|---|
    | `embedding` | 0 | what enters block 1 |
    | `residual` | 0..n | l: the residual stream after block l; 0: the embedding; n: after the final norm |
    | `attention` | 1..n | what the attention of block l adds to the residual stream |
    | `mlp` | 1..n | what the feed-forward part of block l adds to the residual stream |
    | `final_norm` | n | after the norm behind the last block |

    `residual` counts as the `hidden_states` of transformers do. A model whose index means anything else says so in
    its class, and tests/plms/test_contract.py compares each family with the class of transformers that it stands for.

    Attributes:
        name: Name it was loaded by.
        revision: What pins its weights: a commit hash of a hub, or `sha256:<hex>` of the weight file.
        num_layers: Number of blocks.
        d_model: Width of the residual stream.
        max_residues: The longest sequence it takes.
        vocabulary: Token -> id.
        objective: What its scores are of: `masked` the token at the row itself, given both sides; `causal` the token
            after the row, given all up to the row; `none` where the checkpoint has no head.
        mask_id: Id of the mask token, None without one.
        hooks: Hooks where hidden states can be read and edited.
    """

    name: str
    revision: str
    num_layers: int
    d_model: int
    max_residues: int
    vocabulary: Mapping[str, int]
    objective: Literal["masked", "causal", "none"]
    mask_id: int | None
    hooks: tuple[str, ...] = HOOKS

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
    def hidden_at(self, tokens: Tokens, places: Sequence[Place], edit: Edit | None = None) -> list[Tensor]:
        """Hidden states at several places in one pass; layers after the last of them are not computed.

        What is read at one place does not depend on which others are read.

        Args:
            tokens: The batch.
            places: Where to read.
            edit: Made on the way; the edited place itself is read after it.

        Returns:
            fp32 [R, d_model] each, in the order of `places`, residue rows in batch order.

        Raises:
            UserError: A layer or hook does not exist, or the edit's function returns another shape.
            DataError: The edit's function returns values that are not finite.
        """

    def hidden(self, tokens: Tokens, layer: int, hook: str = RESIDUAL) -> Tensor:
        """`hidden_at` for one place.

        Raises:
            UserError: The layer or hook does not exist.
        """
        return self.hidden_at(tokens, [Place(layer, hook)])[0]

    @abstractmethod
    def logits(self, tokens: Tokens, edit: Edit | None = None) -> Tensor:
        """Scores of every token of the vocabulary, fp32 [R, V], residue rows in batch order; see `objective`.

        Raises:
            UserError: The model has no head, the edit's layer or hook does not exist, or its function returns another
                shape.
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
        """A copy with the mask token at residue rows `rows` (int64 [n], indices into the R residue rows).

        Raises:
            UserError: The model is not a masked language model.
        """
        if self.mask_id is None:
            raise UserError(
                f"'{self.name}' has no mask token: its scores are {_SCORES[self.objective]}",
                fix="use a masked language model (ESM-2, ESM C) where residues are to be masked",
            )
        return tokens.with_residues(rows, self.mask_id)

    def check_hook(self, layer: int, hook: str) -> None:
        """Refuse a layer or hook that does not exist.

        Raises:
            UserError: Names the valid range or the known hooks.
        """
        if hook not in self.hooks:
            raise UserError(f"'{self.name}' has no hook '{hook}'", fix=did_you_mean(hook, self.hooks))
        first = 0 if hook in (EMBEDDING, RESIDUAL) else self.num_layers if hook == FINAL_NORM else 1
        last = 0 if hook == EMBEDDING else self.num_layers
        if first <= layer <= last:
            return
        if hook == RESIDUAL:
            fix = f"use 0 (the embedding) to {last} (after the last block and the final norm)"
        else:
            fix = f"use {first}" if first == last else f"use {first} to {last}"
        at = "" if hook == RESIDUAL else f" at hook '{hook}'"
        raise UserError(f"'{self.name}' has no layer {layer}{at}", fix=fix)


_SCORES = {
    "masked": "of the token at each row",
    "causal": "of the token after each row (a causal model)",
    "none": "none at all (an encoder without a head)",
}
