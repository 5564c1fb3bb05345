"""The concept metric on three tiny proteins, worked out on paper.

Sequences (1-based positions for people; the code is 0-based, half-open):

    P1  M K L H H S C A G T     10 residues
    P2  M S H C K L A V          8 residues
    P3  M H H A G T              6 residues     24 residues in all

Concept D, `Domain: SH3`, recall over instances. Three instances, of which two overlap:

    P1 2..4  ("SH3 1")     P1 4..7  ("SH3 2")     P3 1..2  ("SH3")
    labelled residues: P1 2 3 4 5 6 7 (4 counts once) and P3 1 2      -> 8 residues

Concept A, `Active site: Nucleophile`, recall over residues:

    P1 6     P2 3     P2 7                                            -> 3 residues

Normalised activations (all others 0):

    latent 0   P1 4: 0.9   P1 9: 0.5   P3 2: 0.6
    latent 1   P1 6: 1.0   P2 3: 0.5   P2 4: 0.2   P3 5: 0.15

Thresholds 0, 0.15, 0.5, strict. Active residues:

    latent 0   > 0: 3 (P1 4, P1 9, P3 2)    > .15: the same 3     > .5: 2 (P1 4, P3 2)      0.5 itself is off
    latent 1   > 0: 4                       > .15: 3 (not P3 5)   > .5: 1 (P1 6)

Concept D:

    latent  >     TP residues      precision   instances hit                      recall   F1
    0       0     P1 4, P3 2 = 2   2/3         P1 2..4 and P1 4..7 (by residue 4),
                                               P3 1..2                     = 3/3  1        2·(2/3)/(5/3) = 4/5
    0       .15   the same                                                                 4/5
    0       .5    P1 4, P3 2 = 2   2/2         the same three              = 3/3  1        1
    1       0     P1 6 = 1         1/4         P1 4..7                     = 1/3  1/3      2·(1/12)/(7/12) = 2/7
    1       .15   P1 6 = 1         1/3         P1 4..7                     = 1/3  1/3      1/3
    1       .5    P1 6 = 1         1/1         P1 4..7                     = 1/3  1/3      2·(1/3)/(4/3) = 1/2

Concept A:

    0       any   none                                                                     0
    1       0     P1 6, P2 3 = 2   2/4         residues 2/3                       2/3      2·(1/3)/(7/6) = 4/7
    1       .15   P1 6, P2 3 = 2   2/3         2/3                                2/3      2/3
    1       .5    P1 6 = 1         1/1         1/3                                1/3      1/2

Selected: D by latent 0 above .5 (F1 1); A by latent 1 above .15 (F1 2/3).

Average precision, over residues, of the selected (a residue at which a latent is silent comes last, with all such):

    D, latent 0   P1 4 labelled: 1 of 1    P3 2 labelled: 2 of 2    P1 9 not    the other 6 of 8 labelled: 8 of 24
                  1/8·1 + 1/8·1 + 6/8·8/24 = 1/2
    A, latent 1   P1 6 labelled: 1 of 1    P2 3 labelled: 2 of 2    P2 4 and P3 5 not    P2 7: 3 of 24
                  1/3·1 + 1/3·1 + 1/3·3/24 = 17/24

Letters. D: the instances hold K L H / H H S C / M H, so that H alone hits all three. H stands on 5 residues (P1 4 5,
P2 3, P3 2 3), of which P1 4, P1 5 and P3 2 are labelled: precision 3/5, recall 1, F1 = 3/4. Adding C (P1 7 labelled,
P2 4 not) gives precision 4/7, F1 = 8/11 < 3/4; adding S (P1 6; P2 2), K (P1 2; P2 5) or L (P1 3; P2 6) gives the same,
M (P3 1; P1 1, P2 1) less. Growing stops at {H} with 3/4, and shrinking from all letters ends no higher.
A: labelled S (P1 6), H (P2 3), A (P2 7). S is on P1 6, P2 2: 1/2, 1/3 -> F1 2/5. A is on P1 8, P2 7, P3 4: 1/3, 1/3 ->
1/3. H: 1/5, 1/3 -> 1/4. {S}: 2/5; {S, A}: precision 2/5, recall 2/3 -> 1/2; {S, H}: 2/7, 2/3 -> 2/5; {S, A, H}: 3/10,
1 -> 6/13 < 1/2. So growing gives {A, S} with 1/2.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from plmsae.evaluation.average_precision import LevelCounter
from plmsae.evaluation.counts import ConceptCounter, count_rows
from plmsae.evaluation.labels import concepts_of
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.residue_letters import letter_codes, letters_text, select_letters
from plmsae.evaluation.scores import confirmed_pairs, f1_of, score, select
from plmsae.proteins.feature_types import PAIR_TYPES

SEQUENCES = ("MKLHHSCAGT", "MSHCKLAV", "MHHAGT")
FIRST = {"P1": 0, "P2": 10, "P3": 18}
THRESHOLDS = (0.0, 0.15, 0.5)
# protein, type, first and last residue (1-based), note
ANNOTATIONS = [
    ("P1", "Domain", 2, 4, "SH3 1"),
    ("P1", "Active site", 6, 6, "Nucleophile; for protease activity"),
    ("P1", "Domain", 4, 7, "SH3 2"),
    ("P3", "Domain", 1, 2, "SH3"),
    ("P2", "Active site", 3, 3, "Nucleophile"),
    ("P2", "Active site", 7, 7, "Nucleophile"),
]
ACTIVATIONS = [
    (0, "P1", 4, 0.9),
    (0, "P1", 9, 0.5),
    (0, "P3", 2, 0.6),
    (1, "P1", 6, 1.0),
    (1, "P2", 3, 0.5),
    (1, "P2", 4, 0.2),
    (1, "P3", 5, 0.15),
]
D, A = 0, 1


@pytest.fixture
def labels() -> Labels:
    table = pd.DataFrame(ANNOTATIONS, columns=["accession", "type", "first", "last", "note"]).assign(ligand="")
    concepts, membership = concepts_of(table)
    names = [concept.name for concept in concepts]
    assert names == ["Active site: Nucleophile", "Active site: any", "Domain: SH3", "Domain: any"]
    # Only the two named concepts: their annotations are all those of the type.
    ours = {names.index("Domain: SH3"): D, names.index("Active site: Nucleophile"): A}
    return Labels.build(
        lengths=np.array([10, 8, 6]),
        rows=table["accession"].map({"P1": 0, "P2": 1, "P3": 2}).to_numpy(),
        starts=table["first"].to_numpy() - 1,
        ends=table["last"].to_numpy(),
        paired=table["type"].isin(PAIR_TYPES).to_numpy(),
        concepts=np.vectorize(lambda number: ours.get(number, -1))(membership),
        num_concepts=2,
    )


@pytest.fixture
def activations() -> sparse.csr_matrix:
    dense = np.zeros((24, 2), dtype=np.float32)
    for latent, protein, position, value in ACTIVATIONS:
        dense[FIRST[protein] + position - 1, latent] = value
    return sparse.csr_matrix(dense)


RESIDUE_LEVEL = np.array([False, True])


def test_labels(labels: Labels) -> None:
    assert labels.num_instances_of().tolist() == [3, 3]
    assert labels.num_residues_of().tolist() == [8, 3]
    dense = labels.residues.toarray()
    assert np.flatnonzero(dense[:, D]).tolist() == [1, 2, 3, 4, 5, 6, 18, 19]
    assert np.flatnonzero(dense[:, A]).tolist() == [5, 12, 16]


@pytest.mark.parametrize("batches", [[(0, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_counts_and_scores(labels: Labels, activations: sparse.csr_matrix, batches: list[tuple[int, int]]) -> None:
    counter = ConceptCounter(2, 2, THRESHOLDS)
    for first, last in batches:
        low, high = labels.row_starts[first], labels.row_starts[last]
        counter.add(activations[low:high], labels.batch(first, last))
    counts = counter.result()
    #                                        > 0     > .15   > .5     [threshold, latent]
    assert counts.active.tolist() == [[3, 4], [3, 3], [2, 1]]
    assert counts.true_positives[D].tolist() == [[2, 1], [2, 1], [2, 1]]
    assert counts.true_positives[A].tolist() == [[0, 2], [0, 2], [0, 1]]
    assert counts.hits[D].tolist() == [[3, 1], [3, 1], [3, 1]]
    totals = labels.num_residues_of(), labels.num_instances_of(), RESIDUE_LEVEL
    f1 = f1_of(counts, *totals)
    scores = score(counts.true_positives, counts.hits, counts.active, *(each[:, None, None] for each in totals))
    np.testing.assert_allclose(scores.precision[D], [[2 / 3, 1 / 4], [2 / 3, 1 / 3], [1, 1]])
    np.testing.assert_allclose(scores.recall[D], [[1, 1 / 3], [1, 1 / 3], [1, 1 / 3]])
    np.testing.assert_allclose(scores.precision[A], [[0, 1 / 2], [0, 2 / 3], [0, 1]])
    np.testing.assert_allclose(scores.recall[A], [[0, 2 / 3], [0, 2 / 3], [0, 1 / 3]])
    for found in (f1, scores.f1):
        np.testing.assert_allclose(found[D], [[4 / 5, 2 / 7], [4 / 5, 1 / 3], [1, 1 / 2]])
        np.testing.assert_allclose(found[A], [[0, 4 / 7], [0, 2 / 3], [0, 1 / 2]])

    selection = select(f1)
    assert selection.latents.tolist() == [0, 1]
    assert selection.thresholds.tolist() == [2, 1]
    np.testing.assert_allclose(selection.f1, [1, 2 / 3])
    # Above 0.5 on both "splits": D by latent 0 (1.0), A by latent 1 (2/3). D by latent 1 is exactly 0.5: not above.
    pairs = confirmed_pairs(f1, f1, 0.5)
    assert (pairs.num_pairs, pairs.num_latents, pairs.num_concepts) == (2, 2, 2)


def test_counts_of_the_selected_per_protein(labels: Labels, activations: sparse.csr_matrix) -> None:
    dense = activations.toarray()
    on = np.stack([dense[:, 0] > np.float32(0.5), dense[:, 1] > np.float32(0.15)], axis=1)
    rows = count_rows(on, np.array([D, A]), labels)
    #                                       D, A per protein
    assert rows.active.tolist() == [[1, 1], [0, 2], [1, 0]]
    assert rows.true_positives.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert rows.hits.tolist() == [[2, 1], [0, 1], [1, 0]]
    assert labels.residues_per_row().tolist() == [[6, 1], [0, 2], [2, 0]]
    assert labels.instances_per_row().tolist() == [[2, 1], [0, 2], [1, 0]]


@pytest.mark.parametrize("batches", [[(0, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_average_precision(labels: Labels, activations: sparse.csr_matrix, batches: list[tuple[int, int]]) -> None:
    counter = LevelCounter(np.array([0, 1]), np.array([0, 1, 2]))
    for first, last in batches:
        low, high = labels.row_starts[first], labels.row_starts[last]
        counter.add(counter.read(activations[low:high], labels.batch(first, last), first))
    np.testing.assert_allclose(counter.result(labels, 1, 0).values, [1 / 2, 17 / 24])


def test_letters(labels: Labels) -> None:
    codes = letter_codes(SEQUENCES)
    chosen = select_letters(codes, labels, RESIDUE_LEVEL)
    assert [letters_text(row) for row in chosen] == ["letters H", "letters AS"]
    on = chosen[:, codes].T
    rows = count_rows(on, np.array([D, A]), labels)
    f1 = score(
        rows.true_positives.sum(axis=0),
        rows.hits.sum(axis=0),
        rows.active.sum(axis=0),
        labels.num_residues_of(),
        labels.num_instances_of(),
        RESIDUE_LEVEL,
    ).f1
    np.testing.assert_allclose(f1, [3 / 4, 1 / 2])
