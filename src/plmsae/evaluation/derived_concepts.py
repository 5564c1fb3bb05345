"""Concepts that no annotation names but annotations imply: ends of stretches, and stretches beside other annotations.

InterProt (Adams et al. 2025) reads such latents off by eye: the ends of helices, strands that lead to a binding site.
Here they are labels by rule, scored like every other concept:

- `{of: Helix, first: 3}` and `{of: Helix, last: 3}`: the first or last three residues of every helix, all of one that
  is shorter. An end that a cut of a long sequence may have made is left out: a start at the start of a window, and an
  end at the end of a row.
- `{of: Beta strand, near: Binding site, within: 5}`: the strands of which some residue is at most five residues in
  sequence from some residue of a binding site; 0 asks that they share one. A strand is not near itself.

Every label is (a part of) an instance of `of`, and stays an instance of its own where they overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.errors import did_you_mean
from plmsae.evaluation.labels import EXCLUDED_TYPES, Concept, type_level_concept
from plmsae.proteins.feature_types import PAIR_TYPES, TYPES

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_TYPES = frozenset(TYPES.values()) - EXCLUDED_TYPES


@dataclass(frozen=True)
class Derived:
    """A derived concept; exactly one of `first`, `last` and `near` is given.

    Attributes:
        of: Type or concept whose instances it is made from, `Helix` or `Domain: SH3`.
        first: Only so many residues from the start.
        last: Only so many residues up to the end.
        near: Type or concept that instances must be near.
        within: Residues that they may be apart; given with `near`.

    Raises:
        ValueError: Not exactly one of the three, `within` without `near` or the reverse, a number that is too small,
            an unknown type, or the ends of a type that names two residues.
    """

    of: str
    first: int | None = None
    last: int | None = None
    near: str | None = None
    within: int | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.first, self.last, self.near)) != 1:
            raise ValueError(f"derived concept of '{self.of}': give exactly one of first, last and near")
        if (self.near is None) != (self.within is None):
            raise ValueError(f"derived concept of '{self.of}': near and within belong together")
        for name, value, least in (("first", self.first, 1), ("last", self.last, 1), ("within", self.within, 0)):
            if value is not None and value < least:
                raise ValueError(f"derived concept of '{self.of}': {name} is at least {least}, not {value}")
        for source in (self.of, self.near):
            if source is not None and _type_of(source) not in _TYPES:
                hint = did_you_mean(_type_of(source), sorted(_TYPES))
                raise ValueError(f"derived concept: '{source}' is not an annotation type or a concept of one; {hint}")
        if self.near is None and _type_of(self.of) in PAIR_TYPES:
            raise ValueError(f"derived concept: '{self.of}' names two residues and has no first and last ones")

    @property
    def text(self) -> str:
        """What is asked of the instances of `of`, e.g. `first 3 residues`."""
        if self.near is not None:
            return f"within {self.within} of {self.near}"
        end, number = ("first", self.first) if self.first is not None else ("last", self.last)
        return f"{end} residue" if number == 1 else f"{end} {number} residues"

    @property
    def concept(self) -> Concept:
        """As a concept: `Helix, first 3 residues`."""
        return Concept(f"{self.of}, {self.text}", _type_of(self.of), self.text, derived=True)


def parse(entries: Sequence[Mapping[str, Any]]) -> tuple[Derived, ...]:
    """Derived concepts from the entries of a parameter, whose keys are the attributes of `Derived`.

    Raises:
        ValueError: See `Derived`; or one stands twice.
    """
    found = tuple(Derived(**entry) for entry in entries)
    for one in found:
        if found.count(one) > 1:
            raise ValueError(f"derived concept '{one.concept.name}' stands twice")
    return found


def derived_annotations(
    annotations: pd.DataFrame,
    concepts: Sequence[Concept],
    membership: Ints,
    lengths: Ints,
    wanted: Sequence[Derived],
) -> tuple[pd.DataFrame, Ints]:
    """The instances of derived concepts as annotations of their own.

    Args:
        annotations: A rows with the columns of `annotations.parquet`.
        concepts: All concepts of the annotations.
        membership: [A, 2] concepts of each annotation (`labels.concepts_of`).
        lengths: [A] residues of the row that each annotation is in.
        wanted: Derived concepts.

    Returns:
        Annotations of the same columns, and [A'] which of `wanted` each belongs to.
    """
    starts, ends = (annotations[name].to_numpy().astype(np.int64) for name in ("start", "end"))
    names = {concept.name: number for number, concept in enumerate(concepts)}
    tables, owners = [annotations.iloc[:0]], [np.zeros(0, dtype=np.int64)]
    for number, one in enumerate(wanted):
        of = _members(one.of, names, membership)
        low, high = starts, ends
        if one.first is not None:
            of &= (starts > 0) | (annotations["offset"].to_numpy() == 0)
            high = np.minimum(ends, starts + one.first)
        elif one.last is not None:
            of &= ends < lengths
            low = np.maximum(starts, ends - one.last)
        elif one.near is not None and one.within is not None:
            of = _near(annotations, starts, ends, of, _members(one.near, names, membership), one.within)
        chosen = np.flatnonzero(of)
        tables.append(annotations.iloc[chosen].assign(start=low[chosen], end=high[chosen]))
        owners.append(np.full(len(chosen), number, dtype=np.int64))
    return pd.concat(tables, ignore_index=True), np.concatenate(owners)


def _type_of(name: str) -> str:
    return name.partition(":")[0]


def _members(name: str, names: Mapping[str, int], membership: Ints) -> Bools:
    """[A] annotations that belong to a type or a concept; none where it does not occur."""
    number = names.get(name, names.get(type_level_concept(name).name, -2))
    return np.asarray((membership == number).any(axis=1))


def _near(annotations: pd.DataFrame, starts: Ints, ends: Ints, of: Bools, near: Bools, within: int) -> Bools:
    """[A] those of `of` with a residue at most `within` from a residue of another annotation of `near`."""
    paired = annotations["type"].isin(PAIR_TYPES).to_numpy()
    rows = pd.factorize(pd.MultiIndex.from_frame(annotations[["accession", "offset"]]))[0].astype(np.int64)
    # Rows stand one behind another, too far apart for anything to be near across them.
    shift = rows * (int(ends.max(initial=0)) + within + 1)
    owner, first, last = _intervals(starts + shift, ends + shift - 1, paired)
    others = near[owner]
    by_first, by_last = np.sort(first[others]), np.sort(last[others])
    mine = np.flatnonzero(of[owner])
    # Those that begin before the reach ends, less those that end before it begins, are those that it meets.
    met = np.searchsorted(by_first, last[mine] + within, side="right")
    met -= np.searchsorted(by_last, first[mine] - within, side="left")
    met -= np.where(near[owner[mine]], _own(owner, first, last, mine, within), 0)
    found = np.zeros(len(of), dtype=bool)
    found[owner[mine[met > 0]]] = True
    return found


def _intervals(first: Ints, last: Ints, paired: Bools) -> tuple[Ints, Ints, Ints]:
    """Annotation, first and last residue of stretches; a pair is two of one residue, or one where they are the same."""
    one, two = np.flatnonzero(~paired), np.flatnonzero(paired & (first != last))
    same = np.flatnonzero(paired & (first == last))
    return (
        np.concatenate([one, same, two, two]),
        np.concatenate([first[one], first[same], first[two], last[two]]),
        np.concatenate([last[one], last[same], first[two], last[two]]),
    )


def _own(owner: Ints, first: Ints, last: Ints, mine: Ints, within: int) -> Ints:
    """[len(mine)] stretches of the same annotation that a stretch reaches: itself, and the other half of a pair."""
    lowest = np.full(int(owner.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    highest = np.full(len(lowest), np.iinfo(np.int64).min)
    count = np.bincount(owner, minlength=len(lowest))
    np.minimum.at(lowest, owner, first)
    np.maximum.at(highest, owner, last)
    of = owner[mine]
    return np.where((count[of] == 2) & (highest[of] - lowest[of] <= within), 2, 1).astype(np.int64)
