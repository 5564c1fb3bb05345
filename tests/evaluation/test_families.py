"""Family-specific units by hand, against scikit-learn, and InterProt's variant against its steps done slowly."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.model_selection import train_test_split

from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.families import COLUMNS, THRESHOLDS, family_intervals, family_table, halves


def names(prefix: str, count: int) -> NDArray[np.object_]:
    return np.array([f"{prefix}{number}" for number in range(count)], dtype=object)


def table(x: NDArray[np.float64], members: NDArray[np.bool_], seed: int = 42, interprot: bool = False) -> pd.DataFrame:
    return family_table(
        sparse.csr_matrix(x), sparse.csr_matrix(members.astype(int)), names("P", len(x)),
        names("F", members.shape[1]), seed, interprot=interprot,
    )  # fmt: skip


def plain_f1(y: NDArray[np.bool_], marked: NDArray[np.bool_]) -> float:
    return float(2 * (y & marked).sum() / max(y.sum() + marked.sum(), 1))


def test_by_hand() -> None:
    """40 proteins, the first ten of each half are the family; units that mark it, half of it, all, and nothing."""
    first = halves(40, 7)
    assert first.sum() == 20
    order = np.argsort(~first, kind="stable")  # proteins of the first half, then of the second
    family, other = np.zeros(40, dtype=bool), np.zeros(40, dtype=bool)
    family[order[:10]] = family[order[20:30]] = True
    other[order[0]] = True
    x = np.zeros((40, 5))
    x[family, 0] = 5.0  # perfect
    x[order[:5], 1] = x[order[20:25], 1] = 1.0  # half of the family: recall 1/2
    x[:, 2] = 1.0  # everything: precision 1/2
    x[family, 3], x[~family, 3] = 1.0, 0.55  # perfect above 0.6 of the maximum, everything below
    found = table(x, np.stack([family, other], axis=1), seed=7)
    assert tuple(found.columns) == COLUMNS
    best = found[found["best"]].set_index("latent")
    assert best.index.tolist() == [0, 1, 2, 3], "a silent unit has no row"
    assert best["family"].tolist() == ["F0"] * 4
    assert best["f1"].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 1])
    assert best["precision"].tolist() == pytest.approx([1, 1, 0.5, 1])
    assert best["recall"].tolist() == pytest.approx([1, 0.5, 1, 1])
    assert best["specific"].tolist() == [True, False, False, True]
    assert best["threshold"].tolist() == pytest.approx([0.3, 0.3, 0.3, 0.6])  # the lowest of equals
    assert best["num_members"].tolist() == [20] * 4
    # Protein order[0] is in both families, and where it is the top protein both are asked about.
    assert set(found[found["top_protein"] == f"P{order[0]}"]["family"]) <= {"F0", "F1"}
    second = found[(found["family"] == "F1")]
    assert (second["f1"] == 0).all()
    assert not second["specific"].any()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_numbers_are_those_of_the_steps_done_slowly(seed: int, interprot: bool) -> None:
    rng = np.random.default_rng(seed)
    members = rng.random((60, 4)) < 0.3
    x = np.round(rng.gamma(1.0, 0.3, (60, 6)) * (rng.random((60, 6)) < 0.5), 1)
    x[:, :4] += members * np.round(rng.gamma(2.0, 0.3, (60, 4)), 1)
    found = table(x, members, 42, interprot).set_index(["latent", "family"])
    expected = 0
    for unit in range(6):
        top = int(np.argmax(x[:, unit]))
        for family in np.flatnonzero(members[top]):
            expected += 1
            y, act = members[:, family], x[:, unit] / x[:, unit].max()
            if interprot:
                order = np.lexsort((np.arange(60), -act, ~y))
                y, act = y[order], act[order]
            act_1, act_2, y_1, y_2 = train_test_split(act, y, test_size=0.5, random_state=42)
            f1 = [plain_f1(y_1, act_1 >= t) for t in THRESHOLDS]
            row = found.loc[(unit, f"F{family}")]
            assert row["f1_first_half"] == pytest.approx(max(f1))
            marked = act_2 >= (THRESHOLDS[int(np.argmax(f1))] if max(f1) > 0 else 0 if interprot else 2)
            assert row["f1"] == pytest.approx(f1_score(y_2, marked, zero_division=0))
            assert row["precision"] == pytest.approx(precision_score(y_2, marked, zero_division=0))
            assert row["recall"] == pytest.approx(recall_score(y_2, marked, zero_division=0))
            assert row["num_members_second_half"] == y_2.sum()
    assert len(found) == expected


def test_intervals_cover_the_value_and_are_those_of_resampled_proteins() -> None:
    rng = np.random.default_rng(0)
    members = rng.random((400, 1)) < 0.3
    x = members * rng.random((400, 1)) + 0.4 * (rng.random((400, 1)) < 0.1)
    found = table(x, members, seed=1)
    assert len(found) == 1
    maxima, labels = sparse.csr_matrix(x), sparse.csr_matrix(members.astype(int))
    low, high = family_intervals(found, maxima, labels, names("F", 1), 1, Resampling(500, 0.9, 0))
    second = np.flatnonzero(~halves(400, 1))
    marked = x[second, 0] / x.max() >= found["threshold"][0]
    draws = rng.integers(0, len(second), (500, len(second)))
    slow = [plain_f1(members[second, 0][draw], marked[draw]) for draw in draws]
    assert low[0] < found["f1"][0] < high[0]
    assert (low[0], high[0]) == pytest.approx(tuple(np.percentile(slow, [5, 95])), abs=0.02)
