"""Baselines: the SAE beside neurons, PCA, ICA and random directions, on the same residues and by the same protocol.

Everything is fitted to, and every maximum taken over, the same training rows of the store. Units are selected for
concepts on validation proteins and scored on test proteins (`concepts`); neurons, PCA and ICA keep all coordinates
there, both signs apart, since the protocol's thresholds make them sparse. Reconstruction is measured on the same test
residues at equal budgets of active units; a budget of b out of more units says more than one out of few, so equal L0
is not equal bits. Intervals are percentile bootstraps over proteins, paired across methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from plmsae.evaluation import concept_data
from plmsae.evaluation.baselines import Fitted, fit_baselines
from plmsae.evaluation.bootstrap import Floats, Interval, group_sums, intervals
from plmsae.evaluation.comparison_report import Comparison, report
from plmsae.evaluation.concept_compare import Resampling, score_rows
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_report import MethodResult
from plmsae.evaluation.concepts import residue_letters
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.passes import Batch, Predictors, SplitRun, run_split
from plmsae.evaluation.polysemanticity import (
    UnitAverage,
    candidates,
    class_masses,
    confirmed_concepts,
    disjoint_classes,
    effective_concepts,
)
from plmsae.evaluation.reconstruction import basis, leading_errors, sparsity, squared_errors
from plmsae.evaluation.residue_labels import Sparse, sums_by_row
from plmsae.evaluation.scores import NO_LATENT, f1_of, select
from plmsae.evaluation.units import Units
from plmsae.plms.parallel import ordered_map
from plmsae.saes.components import PCA

_TITLE = "evaluate@baselines"
LEADING = "pca_leading"


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    max_proteins: int | None,
    fit_rows: int | None,
    ica_rows: int,
    ica_components: int | None,
    ica_iterations: int,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    f1_bounds: Sequence[float],
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Fit the baselines and measure them beside the SAE.

    Args:
        inputs: Proteins, annotations, SAE, model and store.
        output: Folder that gets the tables and the figure.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        fit_rows: Training rows to fit to; None for as many as the SAE's maxima were taken over.
        ica_rows: The most of them that ICA is fitted to.
        ica_components: Components of ICA; None for d.
        ica_iterations: The most iterations of FastICA.
        min_instances: Annotations that a concept needs in each split, and active labelled residues that a unit needs.
        min_proteins: Proteins with one that either needs.
        thresholds: Ascending thresholds on normalised activations.
        f1_bounds: Ascending bounds on F1 above which a unit has a concept.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, baselines and bootstrap.
    """
    data = concept_data.load(
        inputs,
        max_proteins=max_proteins,
        min_instances=min_instances,
        min_proteins=min_proteins,
        max_tokens=max_tokens,
        seed=seed,
    )
    how = Resampling(num_resamples, confidence, seed)
    fitted = fit_baselines(
        inputs,
        num_rows=fit_rows,
        ica_rows=ica_rows,
        ica_components=ica_components,
        ica_iterations=ica_iterations,
        threads=threads,
        seed=seed,
    )
    methods = [Units(name, sae) for name, sae in fitted.methods.items()]
    f1_valid, predictors, letters = [], None, None
    if data.concepts:
        letters = residue_letters(data, how)
        valid = run_split(inputs, data.valid, methods, thresholds, title=_TITLE, threads=threads)
        labels = data.valid.labels
        f1_valid = [
            f1_of(each, labels.num_residues_of(), labels.num_instances_of(), data.residue_level)
            for each in valid.counts
        ]
        del valid
        predictors = [_predictors(f1, letters.f1_valid, f1_bounds[0]) for f1 in f1_valid]
    classes, class_names = disjoint_classes(data.test.labels.residues, data.concepts, min_instances)
    observer = _Observer(inputs.mean.double(), fitted, _budgets(fitted, inputs.sae.config.d_model), data, classes)
    test = run_split(
        inputs,
        data.test,
        methods,
        thresholds,
        title=_TITLE,
        threads=threads,
        predictors=predictors,
        observe=observer,
        count=False,
    )
    results, confirmed = [], {}
    if data.concepts and letters is not None and predictors is not None:
        for place, method in enumerate(methods):
            result, averages = _scored(
                method, f1_valid[place], predictors[place], test, place, data, letters, thresholds, f1_bounds, how
            )
            results.append(result)
            confirmed[method.method] = averages
        results.append(letters)
    effective = {}
    if class_names:
        effective = _effective(
            methods,
            test,
            classes,
            data,
            how,
            fewest_residues=min_instances,
            fewest_proteins=min_proteins,
            threads=threads,
        )
    comparison = Comparison(
        fitted=fitted,
        data=data,
        results=results,
        bases={name: basis(sae) for name, sae in fitted.methods.items()},
        reconstruction=_reconstruction(observer, test, data, how),
        effective=effective,
        confirmed=confirmed,
        f1_bounds=tuple(f1_bounds),
        class_names=class_names,
        config=inputs.sae.config,
    )
    return report(comparison, how, output)


def _predictors(f1_valid: Floats, letters: Floats, bound: float) -> Predictors:
    """The best unit of each concept, and after them every pair that may have a concept."""
    best, pairs = Predictors.of(select(f1_valid)), candidates(f1_valid, letters, bound)
    return Predictors(
        np.concatenate([best.units, pairs.units]),
        np.concatenate([best.thresholds, pairs.thresholds]),
        np.concatenate([best.concepts, pairs.concepts]),
    )


def _budgets(fitted: Fitted, d_model: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to d, and the SAE's own."""
    return tuple(
        sorted({2**power for power in range(d_model.bit_length()) if 2**power <= d_model} | {fitted.k, d_model})
    )


@dataclass(frozen=True)
class _Observer:
    """Sums over each sequence of a batch.

    Attributes:
        mean: Mean training activation [d]; deviations from it are summed.
        fitted: Methods.
        budgets: Active units of the reconstructions.
        data: Splits, for the first residue of a batch.
        classes: [R, L] of all test residues.
    """

    mean: torch.Tensor
    fitted: Fitted
    budgets: tuple[int, ...]
    data: ConceptData
    classes: Sparse

    @property
    def columns(self) -> list[str]:
        """Names of the columns of sums, before the d columns of x itself."""
        names = ["num_residues", "squared_norm"]
        for method in self.fitted.methods:
            names += [f"active:{method}", f"hoyer:{method}", f"error:{method}:all"]
            names += [f"error:{method}:{budget}" for budget in self.budgets]
        return names + [f"error:{LEADING}:{budget}" for budget in self.budgets]

    def __call__(self, batch: Batch) -> tuple[Floats, list[tuple[Sparse, Sparse]]]:
        """Sums [sequences, columns + d], and per method what `class_masses` returns."""
        deviation = batch.x.double() - self.mean
        columns = [torch.ones(len(deviation), 1, dtype=torch.float64), deviation.square().sum(1, keepdim=True)]
        leading = None
        for (indices, values), sae in zip(batch.codes, self.fitted.methods.values()):
            active, hoyer = sparsity(sae, indices, values)
            errors = squared_errors(sae, batch.x, indices, values, (*self.budgets, indices.shape[1]))
            columns += [active[:, None], hoyer[:, None], errors[:, -1:], errors[:, :-1]]
            if isinstance(sae, PCA):
                leading = leading_errors(sae, batch.x, indices, values, self.budgets)
        assert leading is not None  # PCA is among the methods
        starts = batch.labels.row_starts
        values_by_row = torch.cat([*columns, leading, deviation], dim=1).numpy()
        sums = np.add.reduceat(values_by_row, starts[:-1], axis=0)
        low = int(self.data.test.labels.row_starts[batch.first])
        inside = self.classes[low : low + batch.labels.num_residues]
        if not self.classes.shape[1]:
            return sums, []
        return sums, [class_masses(activations, inside, starts) for activations in batch.activations]


def _reconstruction(observer: _Observer, test: SplitRun, data: ConceptData, how: Resampling) -> dict[str, Interval]:
    """`fvu:METHOD:BUDGET`, `active:METHOD` and `hoyer:METHOD`."""
    by_protein = group_sums(np.concatenate([sums for sums, _ in test.observed]), data.test.owners)
    names = observer.columns

    def statistics(sums: Floats) -> dict[str, Floats]:
        total = {name: sums[:, place] for place, name in enumerate(names)}
        count = total["num_residues"]
        variation = total["squared_norm"] - np.square(sums[:, len(names) :]).sum(1) / count
        found = {}
        for name, value in total.items():
            if name.startswith("error:"):
                found[f"fvu:{name.removeprefix('error:')}"] = value / variation
            elif name.startswith(("active:", "hoyer:")):
                found[name] = value / count
        for method in observer.fitted.methods:
            if method != "sae":
                name = f"{method}:{observer.fitted.k}"
                found[f"difference:{method}"] = (total["error:sae:all"] - total[f"error:{name}"]) / variation
        return found

    return intervals(by_protein, statistics, num_resamples=how.num_resamples, confidence=how.confidence, seed=how.seed)


def _scored(
    method: Units,
    f1_valid: Floats,
    predictors: Predictors,
    test: SplitRun,
    place: int,
    data: ConceptData,
    letters: MethodResult,
    thresholds: Sequence[float],
    f1_bounds: Sequence[float],
    how: Resampling,
) -> tuple[MethodResult, list[UnitAverage]]:
    """The best units of a method on test, and its confirmed concepts per unit."""
    selection, num_concepts = select(f1_valid), len(data.concepts)
    rows = test.rows[place]
    best, pairs = rows.columns(slice(0, num_concepts)), rows.columns(slice(num_concepts, None))
    some = selection.latents != NO_LATENT
    result = MethodResult(
        name=method.method,
        units=tuple(method.unit_name(int(unit)) if unit != NO_LATENT else "" for unit in selection.latents),
        latents=selection.latents,
        thresholds=np.where(some, np.asarray(thresholds)[selection.thresholds], np.nan),
        f1_valid=selection.f1,
        tested=score_rows(best, data.test.labels, data.test.owners, data.residue_level, how),
        pairs=None,
    )
    averages = confirmed_concepts(
        predictors.part(slice(num_concepts, None)),
        f1_valid,
        pairs,
        data.test.labels,
        data.test.owners,
        data.residue_level,
        letters.tested,
        data.concepts,
        method.num_units,
        f1_bounds,
        how,
    )
    return result, averages


def _effective(
    methods: Sequence[Units],
    test: SplitRun,
    classes: Sparse,
    data: ConceptData,
    how: Resampling,
    *,
    fewest_residues: int,
    fewest_proteins: int,
    threads: int,
) -> dict[str, UnitAverage]:
    sizes = sums_by_row(classes, data.test.labels.row_starts)

    def run(place: int) -> UnitAverage:
        pieces = [each[place] for _, each in test.observed]
        return effective_concepts(
            sparse.vstack([masses for masses, _ in pieces], format="csr"),
            sparse.vstack([active for _, active in pieces], format="csr"),
            sizes,
            data.test.owners,
            how,
            fewest_residues=fewest_residues,
            fewest_proteins=fewest_proteins,
        )

    found = ordered_map(run, range(len(methods)), threads)
    return {method.method: each for method, each in zip(methods, found)}
