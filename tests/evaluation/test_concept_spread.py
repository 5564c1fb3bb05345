"""Splitting and absorption of concepts that were made by hand, and of letters, whose best unions are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from plmsae.evaluation import concept_data
from plmsae.evaluation.absorption import evaluate
from plmsae.evaluation.concept_patterns import BitPredictors, PatternCounter, Patterns, instance_masks, tally
from plmsae.evaluation.concept_spread import (
    SILENT_BIT,
    SpreadRules,
    absorbers,
    absorption,
    absorption_counts,
    candidates,
    greedy_union,
)
from plmsae.evaluation.concepts import evaluate as evaluate_concepts
from plmsae.evaluation.counts import ConceptCounter
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.residue_letters import letter_codes, select_letters
from plmsae.evaluation.scores import NO_LATENT, f1_of, score
from plmsae.plms.base import ProteinLM
from tests.evaluation.conftest import LETTERS, letter_sae, random_sae, saved

RULES = SpreadRules(max_latents=4, share=0.95, min_precision=0.8, max_share=0.5, min_residues=5)
LEVELS = np.array([0.0, 0.5], dtype=np.float32)


def labels_of(lengths: list[int], annotations: list[tuple[int, int, int, int]], num_concepts: int) -> Labels:
    """Labels from (row, start, end, concept)."""
    rows, starts, ends, concepts = (np.array(column, dtype=np.int64) for column in zip(*annotations, strict=True))
    return Labels.build(
        lengths=np.array(lengths),
        rows=rows,
        starts=starts,
        ends=ends,
        paired=np.zeros(len(rows), dtype=bool),
        concepts=np.stack([concepts, np.full(len(rows), -1)], axis=1),
        num_concepts=num_concepts,
    )


def _absorbed() -> tuple[Labels, sparse.csr_matrix]:
    """A concept on residues 0 to 99 of 200, annotated residue by residue.

    Latent 0 fires on 0..69, latent 1 on 70..89 (it absorbs them), latent 2 on 60..79 and 100..139 (not precise),
    latent 3 on 0..29 (a sub-class on which the main latent fires too), latent 4 on 90..92 (too few).
    """
    dense = np.zeros((200, 5), dtype=np.float32)
    dense[:70, 0] = 0.4
    dense[70:90, 1] = 1.0
    dense[60:80, 2] = dense[100:140, 2] = 1.0
    dense[:30, 3] = 0.7
    dense[90:93, 4] = 1.0
    return labels_of([200], [(0, place, place + 1, 0) for place in range(100)], 1), sparse.csr_matrix(dense)


def _analysed(labels: Labels, codes: sparse.csr_matrix, rules: SpreadRules = RULES) -> tuple[BitPredictors, Patterns]:
    counter = ConceptCounter(labels.num_concepts, codes.shape[1], LEVELS.tolist())
    counter.add(codes, labels)
    wanted = labels.num_residues_of(), labels.num_instances_of()
    level = np.ones(labels.num_concepts, dtype=bool)
    counts = counter.result()
    predictors = candidates(counts, f1_of(counts, *wanted, level), *wanted, level, rules)
    patterns = PatternCounter(labels.num_concepts)
    patterns.add(tally(predictors.masks(codes, LEVELS), labels))
    return predictors, patterns.result()[0]


def test_absorption_by_hand() -> None:
    labels, codes = _absorbed()
    predictors, patterns = _analysed(labels, codes)
    units = predictors.units[0]
    assert (units[0], predictors.thresholds[0, 0]) == (0, 0)
    assert units[SILENT_BIT] == 0
    assert [int(unit) for unit in units[SILENT_BIT + 1 :] if unit != NO_LATENT] == [3, 1]
    found = absorbers(patterns, units, 100)
    assert [int(units[each.bit]) for each in found] == [1], "latent 3 fires where the main latent does"
    assert (found[0].precision, found[0].share, found[0].silent) == (1.0, 0.2, 1.0)
    masks = predictors.masks(codes, LEVELS)
    sets = np.array([1 << found[0].bit])
    sums = absorption_counts(masks, labels.residues.toarray() > 0, sets).sum(axis=1)
    assert sums.tolist() == [[100], [30], [20], [20]]
    shares = absorption(sums)
    for name, value in (("silent", 0.3), ("rate", 0.2), ("expected", 0.06), ("excess", 0.14)):
        assert shares[name][0] == pytest.approx(value)
    assert np.isnan(absorption(np.zeros((4, 1)))["rate"]).all()


def test_splitting_by_hand() -> None:
    """Latents 0, 1 and 4 hold 70, 20 and 3 of 100 residues without a fault: F1 2 p r / (p + r) by hand."""
    labels, codes = _absorbed()
    predictors, patterns = _analysed(labels, codes)
    union = greedy_union(patterns, predictors.units[0], 100, 100, True, RULES)
    assert [int(predictors.units[0, bit]) for bit in union.bits] == [0, 1, 4]
    np.testing.assert_allclose(union.f1, [1.4 / 1.7, 1.8 / 1.9, 1.86 / 1.93])
    assert union.needed == 2, "0.947 is 98 % of 0.964"
    sets = union.sets(4)
    assert sets[2] == sets[3], "it stopped growing"
    assert patterns.union(sets)[0].tolist() == [70, 90, 93, 93]
    strict = SpreadRules(max_latents=1, share=0.95, min_precision=0.8, max_share=0.5, min_residues=5)
    assert len(greedy_union(patterns, predictors.units[0], 100, 100, True, strict).bits) == 1


def test_a_concept_that_no_latent_finds() -> None:
    labels = labels_of([20], [(0, 0, 5, 0)], 1)
    codes = sparse.csr_matrix((20, 3), dtype=np.float32)
    predictors, patterns = _analysed(labels, codes)
    union = greedy_union(patterns, predictors.units[0], 5, 1, True, RULES)
    assert (union.bits, union.needed, union.sets(2).tolist()) == ([], 0, [0, 0])
    assert absorbers(patterns, predictors.units[0], 5) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_patterns_score_every_union_as_counting_does(seed: int) -> None:
    """Any set of bits, in batches, against marks counted residue by residue and instance by instance."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 20, 4).tolist()
    annotations = []
    for row, length in enumerate(lengths):
        for _ in range(3):
            start = int(rng.integers(0, length - 2))
            annotations.append((row, start, int(rng.integers(start + 1, length)), int(rng.integers(0, 2))))
    labels = labels_of(lengths, annotations, 2)
    dense = (rng.random((sum(lengths), 6)) * (rng.random((sum(lengths), 6)) < 0.4)).astype(np.float32)
    units = np.stack([rng.permutation(6)[:4] for _ in range(2)])
    predictors = BitPredictors(units, rng.integers(0, 2, (2, 4)))
    counter = PatternCounter(2)
    for first, last in ((0, 1), (1, 4)):
        low, high = labels.row_starts[first], labels.row_starts[last]
        part = labels.batch(first, last)
        counter.add(tally(predictors.masks(sparse.csr_matrix(dense[low:high]), LEVELS), part))
    found = counter.result()
    for concept in range(2):
        for bits in (1, 6, 15):
            members = [bit for bit in range(4) if bits >> bit & 1]
            on = np.any(
                [dense[:, units[concept, bit]] > LEVELS[predictors.thresholds[concept, bit]] for bit in members], axis=0
            )
            labelled = labels.residues.toarray()[:, concept] > 0
            instances = [
                on[labels.row_starts[row] + start : labels.row_starts[row] + end].any()
                for row, start, end, of in annotations
                if of == concept
            ]
            true, hits, active = found[concept].union(np.array([bits]))
            assert (true[0], hits[0], active[0]) == ((on & labelled).sum(), sum(instances), on.sum())
    concepts, masks = instance_masks(np.zeros((sum(lengths), 2), dtype=np.int64), labels)
    assert len(concepts) == len(annotations)
    assert not masks.any()


SETTINGS: dict[str, Any] = {
    "max_proteins": 20,
    "min_instances": 5,
    "min_proteins": 3,
    "thresholds": [0.0, 0.5],
    "num_resamples": 60,
    "confidence": 0.95,
    "max_tokens": 1024,
    "threads": 1,
    "seed": 0,
}
SPREAD: dict[str, Any] = {
    "max_latents": 5,
    "share": 0.95,
    "min_precision": 0.5,
    "max_share": 0.5,
    "min_residues": 3,
}


def test_unions_of_letters_are_the_best_sets_of_letters(
    plm: ProteinLM, sequences: Path, embedding_store: Path, tmp_path: Path
) -> None:
    """A latent per letter: the greedy union is the set that the letter baseline finds, from other code."""
    inputs = Inputs.load(sequences, embedding_store, saved(letter_sae(plm), tmp_path / "sae"), root=tmp_path)
    outcome = evaluate(inputs, tmp_path, **SETTINGS, **{**SPREAD, "max_latents": 20})
    sizes = {name: SETTINGS[name] for name in ("max_proteins", "min_instances", "min_proteins", "max_tokens", "seed")}
    data = concept_data.load(inputs, **sizes)
    chosen = select_letters(letter_codes(data.valid.proteins["sequence"]), data.valid.labels, data.residue_level)
    codes = letter_codes(data.valid.proteins["sequence"])
    unions = pd.read_parquet(tmp_path / "unions.parquet")
    assert outcome.metrics["num_concepts"] == len(data.concepts) > 3
    for concept, part in unions.groupby("concept"):
        place = [each.name for each in data.concepts].index(str(concept))
        on = np.pad(chosen[place], (0, 1))[codes]
        labelled = data.valid.labels.residues.toarray()[:, place] > 0
        instances = data.valid.labels.annotations[data.valid.labels.membership[place].indices]
        best = score(
            (on & labelled).sum(),
            ((instances @ on.astype(int)) > 0).sum(),
            on.sum(),
            labelled.sum(),
            np.asarray(instances.shape[0]),
            data.residue_level[place],
        ).f1
        ours = part["f1_valid_with"].max()
        assert ours >= float(best) - 1e-9, f"{concept}: {LETTERS} {part['latent'].tolist()}"
        assert (np.diff(part["f1_valid_with"]) > 0).all()


def test_reports(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> None:
    inputs = Inputs.load(sequences, store, saved(random_sae(plm, store), tmp_path / "sae"), root=tmp_path)
    outputs = [tmp_path / name for name in ("one", "two", "concepts")]
    for output in outputs:
        output.mkdir()
    found = evaluate(inputs, outputs[0], **SETTINGS, **SPREAD)
    again = evaluate(inputs, outputs[1], **{**SETTINGS, "threads": 2}, **SPREAD)
    alone = evaluate_concepts(inputs, outputs[2], **SETTINGS, concepts_per_latent=1).metrics
    assert found == again
    for name in ("concepts.csv", "unions.csv", "absorbers.csv", "curve.csv", "figures/absorption.png"):
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes(), name
    metrics = found.metrics
    for suffix in ("", "_low", "_high"):
        assert metrics[f"mean_f1_one_latent{suffix}"] == pytest.approx(alone[f"mean_f1_sae{suffix}"]), (
            "the main latents"
        )
    assert all(np.isfinite(value) for value in metrics.values())
    table = pd.read_parquet(outputs[0] / "concepts.parquet")
    assert (table["latents_needed"] <= table["latents_in_best_union"]).all()
    assert table["latents_needed"].mean() == pytest.approx(metrics["mean_latents_needed"])
    assert (table["absorption_rate"] <= table["absorption_silent"] + 1e-12).all()
    curve = pd.read_csv(outputs[0] / "curve.csv")
    assert (np.diff(curve["f1_valid"]) >= -1e-12).all()
    nothing = evaluate(inputs, tmp_path, **{**SETTINGS, "min_instances": 10**6}, **SPREAD)
    assert nothing.metrics["num_concepts"] == 0
