import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.probe_accuracy import accuracies, exclusive


def test_which_examples_have_one_answer() -> None:
    targets = np.array([[1, 0], [0, 1], [0, 0], [1, 0]], dtype=bool)
    known = np.array([[1, 1], [1, 1], [1, 1], [1, 0]], dtype=bool)
    assert exclusive(targets, known).tolist() == [True, True, False, False]
    assert not exclusive(targets[:, :1], known[:, :1]).any(), "one class is no choice"
    targets[1] = True
    assert not exclusive(targets, known).any(), "these classes do not exclude each other"


def test_the_accuracy_is_that_of_one_versus_rest() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    y[:60] = 1
    x = rng.normal(0, 1, (200, 4))
    x[np.arange(200), y] += 1.5
    model = OneVsRestClassifier(LogisticRegression()).fit(x, y)
    targets = y[:, None] == np.arange(3)
    found = accuracies(model.decision_function(x), targets, np.repeat(np.arange(50), 4), Resampling(300, 0.95, 0))
    assert found["accuracy"].value == pytest.approx(model.score(x, y))
    assert found["most_frequent"].value == pytest.approx((y == 1).mean())
    for interval in found.values():
        assert interval.low < interval.value < interval.high
    assert found["accuracy"].low > found["most_frequent"].high
