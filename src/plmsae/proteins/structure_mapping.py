"""Residues of a structure onto positions of a UniProt sequence, and whether the letters agree.

What the file says (`struct_ref_seq` of mmCIF, `DBREF` of PDB) is believed if the letters at these positions are mostly
the same; otherwise chain and sequence are aligned. Every disagreement that is left is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plmsae.proteins.structures import Chain

MIN_IDENTITY = 0.9
MIN_RESIDUES = 10
Method = Literal["reference", "alignment"]


@dataclass(frozen=True)
class Mismatch:
    """A residue whose letter differs: its 1-based UniProt position, the letter there, and that of the structure."""

    position: int
    expected: str
    found: str


@dataclass(frozen=True)
class Mapping:
    """A chain on a sequence.

    Attributes:
        method: How the positions were found.
        positions: 0-based position of each residue of the chain; None for a tag, linker or insertion.
        mismatches: Mapped residues whose letter differs.
        identity: Share of the mapped residues whose letter is the same.
        coverage: Share of the sequence's residues that have one of the chain's.
    """

    method: Method
    positions: tuple[int | None, ...]
    mismatches: tuple[Mismatch, ...]
    identity: float
    coverage: float

    @property
    def num_mapped(self) -> int:
        """Residues that have a position."""
        return sum(place is not None for place in self.positions)


def map_chain(chain: Chain, accession: str, sequence: str) -> Mapping:
    """The better mapping of a chain: that of the file if it fits, else the alignment.

    Args:
        chain: The chain.
        accession: UniProt accession that the sequence belongs to.
        sequence: The whole UniProt sequence.

    Returns:
        A mapping, whose identity may be low: see `acceptable`.
    """
    said = _checked("reference", chain, sequence, _by_reference(chain, accession, len(sequence)))
    if acceptable(said):
        return said
    aligned = _checked("alignment", chain, sequence, _by_alignment(chain.sequence, sequence))
    return aligned if (aligned.identity, aligned.num_mapped) >= (said.identity, said.num_mapped) else said


def acceptable(mapping: Mapping) -> bool:
    """Whether the letters agree often enough for the chain to be this protein."""
    return mapping.num_mapped >= MIN_RESIDUES and mapping.identity >= MIN_IDENTITY


def _by_reference(chain: Chain, accession: str, length: int) -> list[int | None]:
    positions: list[int | None] = []
    own = [reference for reference in chain.references if reference.accession == accession]
    for residue in chain.residues:
        place = next(
            (
                reference.uniprot_first - 1 + residue.number - reference.first
                for reference in own
                if reference.first <= residue.number <= reference.last and not residue.insertion
            ),
            None,
        )
        positions.append(place if place is not None and 0 <= place < length else None)
    return positions


def _by_alignment(found: str, sequence: str) -> list[int | None]:
    """Positions by the best local alignment: tags are outside of it, and disordered loops are cheap gaps."""
    from Bio.Align import PairwiseAligner

    aligner = PairwiseAligner(mode="local", match_score=2.0, mismatch_score=-3.0, open_gap_score=-4.0)
    aligner.extend_gap_score = -0.05
    positions: list[int | None] = [None] * len(found)
    if found and sequence:
        for (start, end), (first, _) in zip(*aligner.align(found, sequence)[0].aligned, strict=True):
            for index in range(start, end):
                positions[index] = int(first) + index - int(start)
    return positions


def _checked(method: Method, chain: Chain, sequence: str, positions: Sequence[int | None]) -> Mapping:
    mismatches = tuple(
        Mismatch(place + 1, sequence[place], residue.letter)
        for residue, place in zip(chain.residues, positions, strict=True)
        if place is not None and sequence[place] != residue.letter
    )
    mapped = [place for place in positions if place is not None]
    identity = 1.0 - len(mismatches) / len(mapped) if mapped else 0.0
    return Mapping(method, tuple(positions), mismatches, identity, len(set(mapped)) / max(len(sequence), 1))
