"""Probes of one task on one feature set: fitted on training examples, chosen on validation, scored on test.

Both kinds are logistic regressions with balanced classes. The one-unit probe of a class is the unit whose probe is best
on validation examples, out of all units; the all-unit probe has the C that is best there. An example is marked where
the probability is above one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.all_unit_probes import Path, fit_path
from plmsae.evaluation.binary_scores import threshold_scores
from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.one_unit_probes import Bools, OneUnitFits, balanced_weights, fit_each_unit
from plmsae.evaluation.residue_labels import Sparse
from plmsae.plms.parallel import ordered_map

CRITERIA = ("f1", "mcc", "balanced_accuracy")
SCALES = ("maximum", "raw")


@dataclass(frozen=True)
class Settings:
    """How probes are fitted and chosen.

    Attributes:
        strength: C of one-unit probes (InterProt: 1).
        strengths: Ascending C of all-unit probes.
        penalty: Penalty of all-unit probes, `l1` or `l2`.
        scale: What a penalty is relative to: `maximum` divides each unit by its largest training example, so that no
            unit is held back by its scale; `raw` takes the SAE's own scale (InterProt).
        criterion: What is best on validation.
        all_unit_examples: The most examples that all-unit probes are fitted to; a seeded sample.
        threads: Classes that are fitted at once.
        seed: Seed of the sample.
    """

    strength: float
    strengths: Sequence[float]
    penalty: str
    scale: str
    criterion: str
    all_unit_examples: int
    threads: int
    seed: int


@dataclass(frozen=True)
class Chosen:
    """The chosen probes of all C classes.

    Attributes:
        units: [C] unit of the one-unit probe.
        slopes: [C] its slope.
        intercepts: [C] its intercept.
        one_valid: [C] its criterion on validation.
        strengths: [C] C of the all-unit probe.
        weights: [C, n] its weights.
        all_intercepts: [C] its intercept.
        all_valid: [C] its criterion on validation.
    """

    units: NDArray[np.int64]
    slopes: Floats
    intercepts: Floats
    one_valid: Floats
    strengths: Floats
    weights: Floats
    all_intercepts: Floats
    all_valid: Floats

    def scores(self, x: Sparse) -> tuple[Floats, Floats]:
        """[E, C] log odds of one-unit and of all-unit probes."""
        one = x.tocsc()[:, self.units].toarray() * self.slopes + self.intercepts
        return one, np.asarray(x @ self.weights.T) + self.all_intercepts


class Probes:
    """Probes of C classes on n units.

    Args:
        x: [E, n] training examples, CSR, >= 0.
        targets: [E, C].
        known: [E, C] which examples count for a class; each class has both kinds of them.
        maxima: [n] what x was divided by, for the scale `raw`.
        settings: How to fit.
    """

    def __init__(self, x: Sparse, targets: Bools, known: Bools, maxima: Floats, settings: Settings) -> None:
        self._settings = settings
        num_classes = targets.shape[1]
        whole = x.tocsc() if known.all(axis=0).any() else None

        def fit(number: int) -> tuple[OneUnitFits, Path]:
            rows = known[:, number]
            columns = whole if rows.all() else x[rows].tocsc()
            return self._fit(columns, targets[rows, number], maxima)

        fits = list(ordered_map(fit, range(num_classes), settings.threads))
        self._slopes = np.stack([one.slopes for one, _ in fits])
        self._intercepts = np.stack([one.intercepts for one, _ in fits])
        self._weights = np.stack([path.weights for _, path in fits])
        self._path_intercepts = np.stack([path.intercepts for _, path in fits])
        self.num_unconverged = sum(int((~one.converged).sum() + (~path.converged).sum()) for one, path in fits)
        # Per class: marked positives and marked examples of every unit and of every C; positives and examples.
        self._one = np.zeros((2, num_classes, x.shape[1]), dtype=np.int64)
        self._all = np.zeros((2, num_classes, len(settings.strengths)), dtype=np.int64)
        self._sizes = np.zeros((2, num_classes), dtype=np.int64)

    def _fit(self, x: Sparse, targets: Bools, maxima: Floats) -> tuple[OneUnitFits, Path]:
        settings = self._settings
        if settings.scale == "maximum":
            reference = np.asarray(x.max(axis=0).toarray()[0], dtype=np.float64)
        else:
            reference = np.divide(1.0, maxima, out=np.zeros_like(maxima), where=maxima > 0)
        reference = np.where(reference > 0, reference, 1.0)
        one = fit_each_unit(x, targets, balanced_weights(targets), reference**2 / settings.strength)
        rows = _some_of_both(targets, settings.all_unit_examples, settings.seed)
        part = targets[rows]
        scaled = x.tocsr()[rows] @ sparse.diags_array(1.0 / reference)
        path = fit_path(scaled, part, balanced_weights(part), settings.strengths, settings.penalty)
        return one, Path(path.strengths, path.weights / reference, path.intercepts, path.converged)

    def validate(self, x: Sparse, targets: Bools, known: Bools) -> None:
        """Count on a batch of validation examples."""
        rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        units, values = x.indices, x.data
        num_units = x.shape[1]
        self._sizes += np.stack([(targets & known).sum(axis=0), known.sum(axis=0)])
        for number in range(targets.shape[1]):
            silent = self._intercepts[number] > 0  # what examples are on which the unit is silent
            on = self._slopes[number][units] * values + self._intercepts[number][units] > 0
            changed = np.flatnonzero((on != silent[units]) & known[rows, number])
            positive = targets[rows[changed], number]
            step = np.where(on[changed], 1, -1)
            for place, (chosen, size) in enumerate(
                ((positive, (targets & known)[:, number].sum()), (slice(None), known[:, number].sum()))
            ):
                weights = np.bincount(units[changed][chosen], weights=step[chosen], minlength=num_units)
                self._one[place, number] += silent * int(size) + np.rint(weights).astype(np.int64)
            z = np.asarray(x @ self._weights[number].T) + self._path_intercepts[number]
            marked = (z > 0) & known[:, [number]]
            self._all[:, number] += np.stack([(marked & targets[:, [number]]).sum(axis=0), marked.sum(axis=0)])

    def valid_scores(self) -> Floats:
        """[C, n] criterion of every one-unit probe on validation; NaN where it is not defined."""
        return self._criterion(self._one)

    def slopes(self) -> Floats:
        """[C, n] slope of every one-unit probe."""
        return self._slopes

    def choose(self) -> Chosen:
        """The best of each class; of equals the lowest unit, and the smallest C."""
        one, everything = np.nan_to_num(self.valid_scores(), nan=-2.0), self._criterion(self._all)
        units = np.argmax(one, axis=1)
        places = np.argmax(np.nan_to_num(everything, nan=-2.0), axis=1)
        every = np.arange(len(units))
        return Chosen(
            units=units,
            slopes=self._slopes[every, units],
            intercepts=self._intercepts[every, units],
            one_valid=one[every, units],
            strengths=np.asarray(self._settings.strengths, dtype=np.float64)[places],
            weights=self._weights[every, places],
            all_intercepts=self._path_intercepts[every, places],
            all_valid=everything[every, places],
        )

    def _criterion(self, counts: NDArray[np.int64]) -> Floats:
        found, marked = counts
        positives, examples = self._sizes[:, :, None]
        tn = examples - positives - (marked - found)
        return threshold_scores(found, marked - found, positives - found, tn)[self._settings.criterion]


def _some_of_both(targets: Bools, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` examples, sampled without replacement, both classes among them."""
    order = np.random.default_rng(seed).permutation(len(targets))
    chosen = order[:most]
    for kind in (True, False):
        if not (targets[chosen] == kind).any():
            chosen = np.append(chosen, order[targets[order] == kind][:1])
    return np.sort(chosen)
