"""One walk through the layers of a network: stop after the last wanted layer, read on the way, edit on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.plms.alphabet import Alphabet, sequence_name
from plmsae.plms.base import COMPONENTS, EMBEDDING, FINAL_NORM, RESIDUAL, Edit, Place, ProteinLM, Tokens
from plmsae.plms.network import Network, Tap, no_tap


class PackedLM(ProteinLM):
    """A `ProteinLM` whose forward is a `Network`; a family adds its alphabet, its network and its other attributes."""

    def __init__(self, name: str, revision: str, alphabet: Alphabet, network: Network) -> None:
        self.name = name
        self.revision = revision
        self.num_layers = network.num_layers
        self.d_model = network.d_model
        self._alphabet = alphabet
        self._network = network

    def tokenize(self, sequences: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        """See `ProteinLM.tokenize`."""
        if not sequences:
            raise UserError("no sequences to tokenise", fix="pass at least one")
        for index, sequence in enumerate(sequences):
            if len(sequence) > self.max_residues:
                raise DataError(
                    f"a sequence of {len(sequence)} residues is longer than '{self.name}' takes ({self.max_residues})",
                    where=sequence_name(names, index),
                    fix="drop, crop or window it: see the ingest parameters",
                )
        ids, lengths, residues = self._alphabet.encode(sequences, names)
        return Tokens(torch.from_numpy(ids), torch.from_numpy(lengths), torch.from_numpy(residues))

    @torch.no_grad()
    def hidden_at(self, tokens: Tokens, places: Sequence[Place], edit: Edit | None = None) -> list[Tensor]:
        """See `ProteinLM.hidden_at`."""
        wanted = [self._canonical(place.layer, place.hook) for place in places]
        if not wanted:
            return []
        walk = self._walk(tokens, edit, frozenset(wanted))
        self._run(tokens, max(place.layer for place in wanted), walk)
        return [walk.read[place] for place in wanted]

    @torch.no_grad()
    def logits(self, tokens: Tokens, edit: Edit | None = None) -> Tensor:
        """See `ProteinLM.logits`."""
        return self._scores(self._run(tokens, self.num_layers, self._editing(tokens, edit)), tokens)

    @torch.no_grad()
    def logits_each(self, tokens: Tokens, edits: Sequence[Edit | None]) -> Iterator[Tensor]:
        """See `ProteinLM.logits_each`."""
        walks = [self._editing(tokens, edit) for edit in edits]
        first = min((walk.first for walk in walks if walk.first is not None), default=self.num_layers)
        common = self._run(tokens, first, self._walk(tokens, None))
        for walk in walks:
            yield self._scores(self._run(tokens, self.num_layers, walk, (first, common)), tokens)

    def _scores(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self._network.head(hidden[tokens.residues.to(hidden.device)]).cpu()

    def _walk(self, tokens: Tokens, edit: Edit | None, wanted: frozenset[Place] = frozenset()) -> _Walk:
        at = self._canonical(edit.layer, edit.hook) if edit is not None else None
        return _Walk(tokens.residues.to(self._network.inverse_frequencies.device), wanted, edit, at)

    def _canonical(self, layer: int, hook: str) -> Place:
        """The place by the one name under which a walk meets it."""
        self.check_hook(layer, hook)
        return Place(layer, RESIDUAL if hook in (EMBEDDING, FINAL_NORM) else hook)

    def _editing(self, tokens: Tokens, edit: Edit | None) -> _Walk:
        if self.objective == "none":
            raise UserError(
                f"'{self.name}' has no head: it has hidden states but no scores",
                fix="use a model with a head for evaluations that compare scores (fidelity, steering)",
            )
        return self._walk(tokens, edit)

    def _run(self, tokens: Tokens, last: int, walk: _Walk, start: tuple[int, Tensor] | None = None) -> Tensor:
        """The residual stream [N, d] at layer `last`.

        Args:
            tokens: The batch.
            last: Layer to stop after.
            walk: What is read and edited on the way.
            start: A layer and the unedited stream there, to go on from.
        """
        network = self._network
        layout = network.layout(tokens.lengths)
        first, hidden = start if start is not None else (0, network.embed(tokens))
        for layer in range(first, last + 1):
            if layer > first:
                hidden = network.block(layer - 1, hidden, layout, walk.tap(layer))
            if layer == self.num_layers and (start is None or layer > first):
                hidden = network.final_norm(hidden)
            hidden = walk.visit(layer, RESIDUAL, hidden)
        return hidden


class _Walk:
    """What is read and what is edited between the first layer and the last.

    Attributes:
        read: Place -> fp32 [R, d_model] residue rows.
    """

    def __init__(self, residues: Tensor, wanted: frozenset[Place], edit: Edit | None, at: Place | None) -> None:
        self._residues = residues
        self._wanted = wanted
        self._edit = edit
        self._at = at
        self.read: dict[Place, Tensor] = {}

    @property
    def first(self) -> int | None:
        """The last layer whose residual stream the edit leaves alone or is handed, None without an edit."""
        if self._at is None:
            return None
        return self._at.layer - (self._at.hook in COMPONENTS)

    def tap(self, layer: int) -> Tap:
        """For a block: `no_tap` where nothing happens inside it."""
        places = self._wanted | ({self._at} if self._at is not None else set())
        if any(Place(layer, hook) in places for hook in COMPONENTS):
            return partial(self.visit, layer)
        return no_tap

    def visit(self, layer: int, hook: str, hidden: Tensor) -> Tensor:
        """Read and edit [N, d_model]: the same tensor, or with an edit another one that differs at residue rows."""
        place = Place(layer, hook)
        if self._edit is not None and place == self._at:
            new = _checked(self._edit, hidden[self._residues].cpu())
            hidden = hidden.clone()
            hidden[self._residues] = new.to(hidden)
        if place in self._wanted:
            self.read[place] = hidden[self._residues].cpu()
        return hidden


def _checked(edit: Edit, rows: Tensor) -> Tensor:
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
    return new
