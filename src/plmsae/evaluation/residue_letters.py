"""The predictor that sees only the residue's letter: what a concept score is worth less.

A concept on which a set of letters does as well as a latent is no discovery. The set is the better of two greedy
searches on validation: growing from the best letter, and shrinking from all letters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.scores import score

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def letter_codes(sequences: Sequence[str]) -> NDArray[np.int8]:
    """Index into `LETTERS` of every residue of all sequences, -1 for any other letter."""
    table = np.full(256, -1, dtype=np.int8)
    table[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = np.arange(len(LETTERS), dtype=np.int8)
    return table[np.frombuffer("".join(sequences).encode("ascii"), dtype=np.uint8)]


def select_letters(codes: NDArray[np.int8], labels: Labels, residue_level: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The letters that predict each concept best.

    Args:
        codes: [R] letter of each residue (`letter_codes`).
        labels: Labels of the R residues.
        residue_level: [C] true where recall counts residues.

    Returns:
        [C, 20] letters in the set of each concept.
    """
    is_known = codes >= 0
    known = codes[is_known].astype(np.int32)
    before = np.concatenate([[0], np.cumsum(is_known)]).astype(np.int32)
    letters = sparse.csr_matrix((np.ones(len(known), dtype=np.int32), known, before), (len(codes), len(LETTERS)))
    active = np.bincount(known, minlength=len(LETTERS))
    labelled = (labels.residues.T @ letters).toarray()
    present = (labels.annotations @ letters).toarray() > 0
    num_residues, pointers = labels.num_residues_of(), labels.membership.indptr
    chosen = np.zeros((labels.num_concepts, len(LETTERS)), dtype=bool)
    for concept in range(labels.num_concepts):
        instances = present[labels.membership.indices[pointers[concept] : pointers[concept + 1]]]

        def f1(
            sets: NDArray[np.bool_], concept: int = concept, instances: NDArray[np.bool_] = instances
        ) -> NDArray[np.float64]:
            hits = ((instances.astype(np.int64) @ sets.T.astype(np.int64)) > 0).sum(axis=0)
            return score(
                sets @ labelled[concept],
                hits,
                sets @ active,
                num_residues[concept],
                np.asarray(len(instances)),
                residue_level[concept],
            ).f1

        single = np.eye(len(LETTERS), dtype=bool)
        grown = _greedy(f1, single[int(np.argmax(f1(single)))], single, grow=True)
        shrunk = _greedy(f1, np.ones(len(LETTERS), dtype=bool), single, grow=False)
        chosen[concept] = grown if f1(grown[None])[0] >= f1(shrunk[None])[0] else shrunk
    return chosen


def _greedy(
    f1: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
    start: NDArray[np.bool_],
    single: NDArray[np.bool_],
    *,
    grow: bool,
) -> NDArray[np.bool_]:
    """Add (or remove) the letter that raises F1 most until none does."""
    current, best = start, float(f1(start[None])[0])
    while True:
        candidates = (current | single) if grow else (current & ~single)
        values = f1(candidates)
        place = int(np.argmax(values))
        if not values[place] > best:
            return current
        current, best = candidates[place], float(values[place])


def letters_text(chosen: NDArray[np.bool_]) -> str:
    """`letters KR` for people."""
    return "letters " + "".join(letter for letter, inside in zip(LETTERS, chosen, strict=True) if inside)
