"""Both measures by hand on units that were made to mean one thing, two things or everything."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.concept_compare import Resampling, score_rows
from plmsae.evaluation.counts import ConceptCounter, count_rows
from plmsae.evaluation.labels import Concept
from plmsae.evaluation.passes import Predictors
from plmsae.evaluation.polysemanticity import (
    STEPS,
    average,
    candidates,
    class_masses,
    confirmed_concepts,
    disjoint_classes,
    effective_concepts,
)
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.scores import f1_of

# Six proteins of 20 residues: a helix (0-4), an SH3 domain (5-9), a kinase domain (10-14), and nothing (15-19).
CONCEPTS = (
    Concept("Domain: SH3", "Domain", "SH3"),
    Concept("Domain: any", "Domain", ""),
    Concept("Domain: kinase", "Domain", "kinase"),
    Concept("Helix", "Helix", ""),
)
SH3, DOMAIN, KINASE, HELIX = range(4)
NUM_PROTEINS, LENGTH = 6, 20
HOW = Resampling(200, 0.95, 0)
BOUNDS = (0.3, 0.9)


def labels() -> Labels:
    spans = [(0, 5, HELIX, -1), (5, 10, DOMAIN, SH3), (10, 15, DOMAIN, KINASE)]
    rows = np.repeat(np.arange(NUM_PROTEINS), len(spans))
    table = np.array(spans * NUM_PROTEINS)
    return Labels.build(
        lengths=np.full(NUM_PROTEINS, LENGTH),
        rows=rows,
        starts=table[:, 0],
        ends=table[:, 1],
        paired=np.zeros(len(table), dtype=bool),
        concepts=table[:, 2:],
        num_concepts=len(CONCEPTS),
    )


def units(*columns: dict[int, float]) -> NDArray[np.float32]:
    """[R, n]: each unit as activation by block of five residues (0 helix, 1 SH3, 2 kinase, 3 nothing)."""
    one = np.array([[column.get(place // 5, 0.0) for column in columns] for place in range(LENGTH)], dtype=np.float32)
    return np.tile(one, (NUM_PROTEINS, 1))


def confirmed(
    valid: NDArray[np.float32],
    test: NDArray[np.float32],
    letters: float = 0.0,
    letters_on_test: NDArray[np.float32] | None = None,
) -> list[tuple[dict[int, float], float]]:
    """Per bound: unit -> confirmed concepts, and the mean."""
    given, level = labels(), np.zeros(len(CONCEPTS), dtype=bool)
    counter = ConceptCounter(len(CONCEPTS), valid.shape[1], [0.0, 0.5])
    counter.add(sparse.csr_matrix(valid), given)
    f1_valid = f1_of(counter.result(), given.num_residues_of(), given.num_instances_of(), level)
    pairs = candidates(f1_valid, np.full(len(CONCEPTS), letters), BOUNDS[0])
    marked = test[:, pairs.units] > np.array([0.0, 0.5], dtype=np.float32)[pairs.thresholds]
    owners = np.arange(NUM_PROTEINS)
    # Letters that mark nothing are beaten by every prediction.
    marks = np.zeros((len(test), 1)) if letters_on_test is None else letters_on_test
    by_letters = np.tile(marks > 0, (1, len(CONCEPTS)))
    beaten = score_rows(count_rows(by_letters, np.arange(len(CONCEPTS)), given), given, owners, level, HOW)
    found = confirmed_concepts(
        pairs, f1_valid, count_rows(marked, pairs.concepts, given), given, owners, level, beaten, CONCEPTS,
        valid.shape[1], BOUNDS, HOW,
    )  # fmt: skip
    return [
        (
            {unit: value for unit, value in enumerate(each.per_unit) if np.isfinite(value)},
            each.interval.value if each.interval else np.nan,
        )
        for each in found
    ]


def test_confirmed_concepts_by_hand() -> None:
    x = units(
        {SH3 + 1: 1.0},  # 0: SH3 and nothing else; that this is also a domain is no second meaning
        {1: 1.0, 2: 1.0},  # 1: any domain. SH3 and kinase have precision 1/2 each and recall 1: F1 = 2/3
        {0: 1.0, 1: 1.0},  # 2: helix and SH3, F1 = 2/3 each
        {3: 1.0},  # 3: where nothing is annotated
        {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0},  # 4: everywhere: helix, SH3 and kinase 0.4 each, domain 2/3
    )
    (low, mean), (high, strict) = confirmed(x, x)
    assert low == {0: 1, 1: 2, 2: 2, 4: 3}
    assert mean == pytest.approx(8 / 4)
    assert high == {0: 1, 1: 1}  # at 0.9 the domain unit is what it was made to be
    assert strict == 1.0


def test_a_concept_must_be_found_again_and_beyond_the_letters() -> None:
    monosemantic, other = units({1: 1.0}, {0: 1.0}), units({3: 1.0}, {0: 1.0})
    assert confirmed(monosemantic, other)[0][0] == {1: 1}, "a unit that moves away on test has no concept"
    assert confirmed(monosemantic, monosemantic, letters=1.0)[0][0] == {}, "letters that are as good leave none"
    found = confirmed(monosemantic, monosemantic, letters_on_test=units({1: 1.0}))[0][0]
    assert found == {1: 1}, "the letters find SH3 as well on test, and not the helix"
    nothing, mean = confirmed(units({3: 1.0}), units({3: 1.0}))[0]
    assert nothing == {}
    assert np.isnan(mean)


def effective(x: NDArray[np.float32], fewest_residues: int = 1, fewest_proteins: int = 1) -> NDArray[np.float64]:
    given = labels()
    classes, names = disjoint_classes(given.residues, CONCEPTS, fewest=1)
    assert names == ["Domain: SH3", "Domain: kinase", "Helix"]  # nothing is left of Domain beside its two kinds
    masses, active = class_masses(sparse.csr_matrix(x), classes, given.row_starts)
    sizes = np.tile(5, (NUM_PROTEINS, 3))
    found = effective_concepts(
        masses, active, sizes, np.arange(NUM_PROTEINS), HOW,
        fewest_residues=fewest_residues, fewest_proteins=fewest_proteins,
    )  # fmt: skip
    if found.interval:
        # Every protein is alike, so every resample says the same.
        assert (found.interval.low, found.interval.high) == pytest.approx(2 * (found.interval.value,))
        assert found.interval.value == pytest.approx(np.nanmean(found.per_unit))
    return found.per_unit


def test_effective_concepts_by_hand() -> None:
    x = units(
        {1: 1.0},  # one class: 1
        {1: 0.25},  # a weak unit is as monosemantic as a strong one
        {1: 1.0, 2: 1.0},  # two alike: 2
        {0: 0.5, 1: 0.5, 2: 0.5, 3: 1.0},  # all alike: 3; what it does where nothing is annotated does not count
        {0: 0.75, 1: 0.25},  # exp of the entropy of (3/4, 1/4)
        {3: 1.0},  # no labelled residue: left out
    )
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    found = effective(x)
    assert found[:5] == pytest.approx([1, 1, 2, 3, np.exp(entropy)], rel=1e-4)
    assert np.isnan(found[5])


def test_units_with_too_little_to_say_are_left_out() -> None:
    x = units({1: 1.0}, {1: 1.0})
    x[LENGTH:, 1] = 0.0  # active in one protein only
    assert np.isnan(effective(x, fewest_proteins=2)).tolist() == [False, True]
    assert np.isnan(effective(x, fewest_residues=6)).tolist() == [False, True]
    assert np.isnan(effective(x, fewest_residues=5)).tolist() == [False, False]


def test_frequent_classes_weigh_no_more() -> None:
    """Activation per residue of the class: a class five times as long does not look five times as meant."""
    given = labels()
    classes, _ = disjoint_classes(given.residues, CONCEPTS, fewest=1)
    wide = sparse.csr_matrix(classes.toarray() + np.tile(np.repeat([0, 1], [15, 5]), NUM_PROTEINS)[:, None] * [0, 0, 1])
    masses, active = class_masses(sparse.csr_matrix(units({0: 1.0, 1: 1.0, 3: 1.0})), wide, given.row_starts)
    sizes = np.tile([5, 5, 10], (NUM_PROTEINS, 1))
    found = effective_concepts(
        masses, active, sizes, np.arange(NUM_PROTEINS), HOW, fewest_residues=1, fewest_proteins=1
    )
    assert found.per_unit[0] == pytest.approx(2.0, rel=1e-4)


def test_what_is_left_of_a_type_is_a_class_of_its_own() -> None:
    residues = sparse.csr_matrix(np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=np.int32))
    classes, names = disjoint_classes(residues, CONCEPTS, fewest=1)
    assert names == ["Domain: SH3", "Domain: other", "Helix"]
    assert classes.toarray().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert disjoint_classes(residues, CONCEPTS, fewest=2)[1] == ["Domain: other"]


def test_masses_of_batches_are_those_of_the_whole() -> None:
    given = labels()
    classes, _ = disjoint_classes(given.residues, CONCEPTS, fewest=1)
    x = sparse.random(120, 7, density=0.3, random_state=np.random.default_rng(0), format="csr", dtype=np.float32)
    masses, active = class_masses(x, classes, given.row_starts)
    wanted = np.einsum("plr,pln->prn", classes.toarray().reshape(6, 20, 3), x.toarray().reshape(6, 20, 7))
    np.testing.assert_allclose(masses.toarray().reshape(6, 3, 7) / STEPS, wanted, atol=20 / STEPS)
    pieces = [class_masses(x[low : low + 40], classes[low : low + 40], given.row_starts[:3]) for low in (0, 40, 80)]
    assert (sparse.vstack([mass for mass, _ in pieces]) != masses).nnz == 0
    assert (sparse.vstack([some for _, some in pieces]) != active).nnz == 0


def test_the_interval_lies_about_the_estimate() -> None:
    """Resampled numbers that are all too low still give an interval of their spread around the estimate."""
    found = average(np.array([3.0, np.nan, 5.0]), np.linspace(2.0, 3.0, 101), 0.9)
    assert found.num_units == 2
    assert found.interval is not None
    assert (found.interval.value, found.interval.low, found.interval.high) == pytest.approx((4.0, 3.55, 4.45))
    nothing = average(np.full(3, np.nan), np.linspace(2.0, 3.0, 101), 0.9)
    assert nothing.interval is None


def test_no_pair_is_no_unit() -> None:
    pairs = candidates(np.zeros((4, 2, 3)), np.zeros(4), 0.1)
    assert isinstance(pairs, Predictors)
    assert len(pairs.units) == len(pairs.concepts) == 0


def test_no_interval_starts_below_one_concept_but_a_difference_may() -> None:
    samples = np.linspace(1.0, 1.2, 101)
    found = average(np.array([1.0, 1.0]), samples, 0.9)
    assert found.interval is not None
    assert found.interval.low == 1.0
    gap = average(np.array([0.0]), samples, 0.9, lowest=-np.inf)
    assert gap.interval is not None
    assert gap.interval.low == pytest.approx(-0.09)
