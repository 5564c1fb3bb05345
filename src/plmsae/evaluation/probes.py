"""Probes: what logistic regressions on one latent, or on all of them, can tell about residues and proteins.

InterProt's protocol (Adams et al. 2025) on splits separated by homology: fitted on training proteins, unit and C chosen
on validation proteins, reported on test proteins, each with an interval over proteins. Latents, neurons, the residue's
letter and the letters around it go through the same door; what latents tell beyond the letters is the finding.
InterProt reports for each class the latent that is best on its test set; that choice is not made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from plmsae.evaluation.binary_scores import Sampled, sampled_scores
from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.labels import Ints
from plmsae.evaluation.one_unit_probes import Bools
from plmsae.evaluation.probe_accuracy import accuracies, exclusive
from plmsae.evaluation.probe_data import ProbeData, ProbeSplit, load_tasks
from plmsae.evaluation.probe_features import POOLS, FeatureBatch, feature_batches, pooled, unit_names
from plmsae.evaluation.probe_fits import Probes, Settings
from plmsae.evaluation.probe_report import Found, nothing_to_probe, report
from plmsae.evaluation.probe_tasks import make_tasks
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.units import Units, neurons
from plmsae.proteins.tables import read_sequences

_TITLE = "evaluate@probes"
FEATURES = ("sae", "neurons", "letters", "window")
FEWEST = 100  # training examples of each kind that sampling leaves to a class, where it has as many


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    tasks: Sequence[str],
    labels: Path | None,
    unlisted: str,
    max_proteins: int | None,
    min_positives: int,
    min_proteins: int,
    fit_residues: int,
    all_unit_examples: int,
    strength: float,
    strengths: Sequence[float],
    penalty: str,
    scale: str,
    criterion: str,
    window: int,
    units_per_class: int,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Fit, choose and score probes of every task on every feature set.

    Args:
        inputs: Proteins, annotations, SAE and model.
        output: Folder that gets `probes`, `units` (Parquet and CSV), `weights.parquet`, `accuracy.csv`,
            `left_out.csv` and the figure.
        tasks: Tasks by name (`probe_tasks.task_names`).
        labels: A user's table of labels, one more task; None for none.
        unlisted: What residues of listed proteins are that the table does not list: `negative` or `unknown`.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_positives: Positive examples that a class needs in each split.
        min_proteins: Proteins with one that it needs in each split.
        fit_residues: The most training residues that probes are fitted to; a seeded sample.
        all_unit_examples: The most of them that all-unit probes are fitted to.
        strength: C of one-unit probes.
        strengths: Ascending C of all-unit probes.
        penalty: `l1` or `l2`, of all-unit probes.
        scale: `maximum` or `raw` (`probe_fits.Settings`).
        criterion: What is chosen by on validation.
        window: Residues to each side in the letters around a residue.
        units_per_class: Units listed for each class.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches, and classes, that are run at once; the numbers do not depend on it.
        seed: Seed of subset, samples and bootstrap.

    Raises:
        UserError: An unknown task.
        DataError: A wrong row of the label table, or an empty split.
    """
    sequences = read_sequences(inputs.sequences)
    asked = make_tasks(tasks, inputs.annotations(), sequences, labels, unlisted, inputs.sequences)
    data = load_tasks(
        inputs,
        asked,
        max_proteins=max_proteins,
        min_positives=min_positives,
        min_proteins=min_proteins,
        seed=seed,
    )
    data.left_out.to_csv(output / "left_out.csv", index=False, lineterminator="\n")
    if not data.tasks:
        return nothing_to_probe(data, output, min_positives, min_proteins)
    settings = Settings(strength, tuple(strengths), penalty, scale, criterion, all_unit_examples, threads, seed)
    methods = [Units("sae", inputs.sae), Units("neurons", neurons(inputs))]
    runner = _Runner(inputs, data, methods, settings, window, fit_residues, max_tokens, threads, seed)
    runner.fit()
    runner.validate()
    how = Resampling(num_resamples, confidence, seed)
    names = {feature: unit_names(feature, window, methods) for feature in FEATURES}
    found = runner.test(how, names)
    return report(data, found, settings, how, units_per_class, inputs.sae.config, output)


class _Runner:
    """The three passes, with what the later ones need of the earlier ones."""

    def __init__(
        self,
        inputs: Inputs,
        data: ProbeData,
        methods: Sequence[Units],
        settings: Settings,
        window: int,
        fit_residues: int,
        max_tokens: int,
        threads: int,
        seed: int,
    ) -> None:
        self._inputs, self._data, self._methods, self._settings = inputs, data, methods, settings
        self._window, self._fit_residues, self._seed = window, fit_residues, seed
        self._max_tokens, self._threads = max_tokens, threads
        self._probes: dict[tuple[str, str], Probes] = {}  # task, feature set
        self._residue_tasks = [name for name, (per_protein, _) in data.tasks.items() if not per_protein]
        self._protein_tasks = [name for name, (per_protein, _) in data.tasks.items() if per_protein]

    def fit(self) -> None:
        """Fit all probes to the training split."""
        split = self._data.splits["train"]
        chosen = self._training_residues(split)
        kept: dict[str, list[Sparse]] = {feature: [] for feature in FEATURES}
        order: list[Ints] = []
        pools = _Pools()
        for batch in self._batches(split):
            residues = split.examples(batch.rows)
            some = np.flatnonzero(chosen[residues])
            order.append(residues[some])
            for feature, x in batch.features.items():
                kept[feature].append(x[some])
            if self._protein_tasks:
                pools.add(batch)
        rows = np.concatenate(order)
        for feature in FEATURES:
            x = sparse.vstack(kept.pop(feature), format="csr")
            for task in self._residue_tasks:
                self._fit(task, feature, x, split.targets[task][rows], split.known[task][rows])
        for task in self._protein_tasks:
            for feature, x in pools.features():
                self._fit(task, feature, x, split.targets[task], split.known[task])

    def validate(self) -> None:
        """Count every probe on the validation split."""
        split = self._data.splits["valid"]
        pools = _Pools()
        for batch in self._batches(split):
            residues = split.examples(batch.rows)
            for task in self._residue_tasks:
                targets, known = split.targets[task][residues], split.known[task][residues]
                for feature, x in batch.features.items():
                    self._probes[task, feature].validate(x, targets, known)
            if self._protein_tasks:
                pools.add(batch)
        for task in self._protein_tasks:
            for feature, x in pools.features():
                self._probes[task, feature].validate(x, split.targets[task], split.known[task])

    def test(self, how: Resampling, names: dict[str, list[str]]) -> list[Found]:
        """Score the chosen probes on the test split."""
        split = self._data.splits["test"]
        chosen = {key: probes.choose() for key, probes in self._probes.items()}
        num_residues = int(split.starts[-1])
        scores: dict[tuple[str, str], Floats] = {}
        pools = _Pools()
        for batch in self._batches(split):
            residues = split.examples(batch.rows)
            for task in self._residue_tasks:
                for feature, x in batch.features.items():
                    key = task, feature
                    if key not in scores:
                        shape = (2, num_residues, len(chosen[key].units))
                        scores[key] = np.zeros(shape, dtype=np.float32)
                    scores[key][:, residues] = np.stack(chosen[key].scores(x))
            if self._protein_tasks:
                pools.add(batch)
        for task in self._protein_tasks:
            for feature, x in pools.features():
                scores[task, feature] = np.stack(chosen[task, feature].scores(x)).astype(np.float32)
        found = []
        for (task, feature), probes in self._probes.items():
            owners = split.owners if task in self._protein_tasks else split.residue_owners
            own, targets = scores.pop((task, feature)), split.targets[task]
            one_answer = exclusive(targets, split.known[task])
            accuracy = None
            if one_answer.any():
                accuracy = accuracies(own[1][one_answer], targets[one_answer], owners[one_answer], how)
            found.append(
                Found(
                    task=task,
                    feature=feature,
                    chosen=chosen[task, feature],
                    tested=_sampled(own, split, task, owners, how),
                    accuracy=accuracy,
                    num_one_answer=int(one_answer.sum()),
                    probes=probes,
                    names=names[feature.partition(" ")[0]],
                )
            )
        return found

    def _fit(self, task: str, feature: str, x: Sparse, targets: Bools, known: Bools) -> None:
        maxima = np.ones(x.shape[1])
        for method in self._methods:
            if method.method == feature.partition(" ")[0]:
                maxima = method.sae.latent_max.double().numpy()
        self._probes[task, feature] = Probes(x, targets, known, maxima, self._settings)

    def _batches(self, split: ProbeSplit) -> Iterator[FeatureBatch]:
        return feature_batches(
            self._inputs,
            split.proteins,
            self._methods,
            window=self._window,
            title=_TITLE,
            max_tokens=self._max_tokens,
            threads=self._threads,
        )

    def _training_residues(self, split: ProbeSplit) -> Bools:
        """[R] a seeded sample of what is known, with at least `FEWEST` examples of both kinds of every class."""
        num_residues = int(split.starts[-1])
        order = np.random.default_rng([self._seed, 1]).permutation(num_residues)
        known = np.zeros(num_residues, dtype=bool)
        chosen = np.zeros(num_residues, dtype=bool)
        for task in self._residue_tasks:
            targets, counts = split.targets[task][order], split.known[task][order]
            known[order] |= counts.any(axis=1)
            for number in range(targets.shape[1]):
                for kind in (True, False):
                    places = np.flatnonzero(counts[:, number] & (targets[:, number] == kind))[:FEWEST]
                    chosen[order[places]] = True
        chosen[order[known[order]][: self._fit_residues]] = True
        return chosen


class _Pools:
    """Pooled features of whole sequences, put back into the order of the table."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Sparse]] = {}
        self._rows: list[Ints] = []

    def add(self, batch: FeatureBatch) -> None:
        """Pool a batch."""
        self._rows.append(batch.rows)
        for feature, x in batch.features.items():
            if feature == "window":
                continue  # pooled over a protein, the neighbours' letters are its composition once more
            for pool in POOLS:
                self._parts.setdefault(f"{feature} {pool}", []).append(pooled(x, batch.starts, pool))

    def features(self) -> list[tuple[str, Sparse]]:
        """By name, e.g. `sae mean`, [num_rows, n]."""
        order = np.argsort(np.concatenate(self._rows))
        return [(name, sparse.vstack(parts, format="csr")[order]) for name, parts in self._parts.items()]


def _sampled(scores: Floats, split: ProbeSplit, task: str, owners: Ints, how: Resampling) -> list[list[Sampled]]:
    """Per kind of probe and class."""
    found: list[list[Sampled]] = []
    for kind in scores:
        per_class = []
        for number in range(kind.shape[1]):
            rows = split.known[task][:, number]
            per_class.append(
                sampled_scores(
                    kind[rows, number].astype(np.float64),
                    split.targets[task][rows, number],
                    owners[rows],
                    num_resamples=how.num_resamples,
                    seed=how.seed,
                )
            )
        found.append(per_class)
    return found
