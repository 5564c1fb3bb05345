"""One pass over proteins for several SAEs: a model is run once per batch, each SAE gets the activations of its place.

The rows of all of them are the same residues in the same order, which is what lets their latents be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from plmsae.evaluation.concept_data import Split
from plmsae.evaluation.residue_labels import Labels
from plmsae.plms.base import Place, ProteinLM
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress
from plmsae.saes.base import SparseAutoencoder

Result = TypeVar("Result")


@dataclass(frozen=True)
class Member:
    """An SAE with the model that it reads.

    Attributes:
        name: Unique name for people.
        sae: The SAE; checked to belong to the model.
        plm: The model; members of one model share the object.
    """

    name: str
    sae: SparseAutoencoder
    plm: ProteinLM

    @property
    def place(self) -> Place:
        """Where it reads."""
        return Place(self.sae.config.layer, self.sae.config.hook)


@dataclass(frozen=True)
class MemberBatch:
    """Some consecutive sequences.

    Attributes:
        first: Number of the first sequence in the split.
        last: One past the last.
        labels: Labels of their R residues.
        x: Per member, hidden states [R, d_model] of its place.
    """

    first: int
    last: int
    labels: Labels
    x: Sequence[Tensor]


def run_members(
    members: Sequence[Member],
    split: Split,
    function: Callable[[MemberBatch], Result],
    *,
    title: str,
    threads: int,
    every: int = 1,
) -> Iterator[Result]:
    """Call a function for every batch of a split.

    Args:
        members: SAEs.
        split: Proteins and labels.
        function: Called on one of the threads; must not change shared state.
        title: Name on the progress line.
        threads: Batches that are run at once.
        every: Take one of so many batches, beginning with the first.

    Yields:
        What the function returns, in the order of the batches.
    """
    sequences, accessions = split.proteins["sequence"].tolist(), split.proteins["accession"].tolist()
    models = list({id(member.plm): member.plm for member in members}.values())
    places = {
        id(model): list(dict.fromkeys(member.place for member in members if member.plm is model)) for model in models
    }

    def run(part: tuple[int, int]) -> tuple[int, Result]:
        first, last = part
        states: dict[tuple[int, Place], Tensor] = {}
        for model in models:
            tokens = model.tokenize(sequences[first:last], accessions[first:last])
            wanted = places[id(model)]
            states |= {(id(model), place): x for place, x in zip(wanted, model.hidden_at(tokens, wanted), strict=True)}
        labels = split.labels.batch(first, last)
        x = [states[id(member.plm), member.place] for member in members]
        return labels.num_residues, function(MemberBatch(first, last, labels, x))

    parts = list(pairwise(split.batches.tolist()))[::every]
    starts = split.labels.row_starts
    with Progress(title, int(sum(starts[last] - starts[first] for first, last in parts)), "residues") as progress:
        for num_residues, result in ordered_map(run, parts, threads):
            yield result
            progress.update(num_residues)
