"""Counts and F1 of every latent, concept and threshold: our streamed counter against InterPLM's sparse path.

    python benchmarks/concepts.py [--residues 200000] [--latents 10240] [--concepts 200] [--rounds 3]

Random sparse activations (102 draws per residue, popularity falling as rank^-0.6) and stretches of 5 to 119 residues
as annotations; for every fourth concept single residues, whose recall counts residues. InterPLM's path
(ElanaPearl/InterPLM at 5f4cbf9, `calc_metrics_sparse` and `calculate_metrics`), written anew step by step: per
threshold and concept the binarised activations are multiplied with the label's column, once for true and once for
false positives and once with the numbers of the domains, whose different values are then collected in a Python set per
latent; F1 is a loop over concepts, latents and thresholds that makes a dictionary for each with a true positive. It
would take a quarter of an hour, so it is run on a part (`--part` latents and `--few` concepts, all residues and
thresholds) and scaled by the number of cells, which is what its loops are over. Ours is run whole, in batches of some
4,096 residues as the evaluation does; on the part both must give the same counts and F1. One thread, CPU seconds.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from plmsae.evaluation.counts import ConceptCounter, Counts
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.scores import f1_of

THRESHOLDS = (0.0, 0.15, 0.5, 0.6, 0.8)
ROW = 400  # residues of a sequence
BATCH = 10  # sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("residues", 200_000),
        ("latents", 10_240),
        ("concepts", 200),
        ("part", 250),
        ("few", 12),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    activations = _activations(arguments.residues // ROW * ROW, arguments.latents, generator)
    labels, domains, by_residue = _labels(activations.shape[0], arguments.concepts, generator)
    first = arguments.latents // 2
    part, few = slice(first, first + arguments.part), slice(0, arguments.few)
    theirs_in = activations[:, part].tocsr(), domains[:, few].tocsc(), by_residue[few]
    times: dict[str, list[float]] = {"ours": [], "ours, F1": [], "theirs": [], "theirs, F1": []}
    tracemalloc.start()  # not while the rounds are timed
    f1_of(_ours(activations, labels), labels.num_residues_of(), labels.num_instances_of(), by_residue)
    memory = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    for _ in range(arguments.rounds):
        counts, seconds = _timed(lambda: _ours(activations, labels))
        times["ours"].append(seconds)
        f1, seconds = _timed(
            lambda counts=counts: f1_of(counts, labels.num_residues_of(), labels.num_instances_of(), by_residue)
        )
        times["ours, F1"].append(seconds)
        found, seconds = _timed(lambda: _theirs(*theirs_in))
        times["theirs"].append(seconds)
        rows, seconds = _timed(lambda found=found: _their_f1(*found, *theirs_in[1:]))
        times["theirs, F1"].append(seconds)
        _check(counts, f1, found, rows, part, few, by_residue)
    cells = arguments.latents * arguments.concepts / (arguments.part * arguments.few)
    print("# Concept counts and F1\n")
    print(
        f"{activations.shape[0]:,} residues, {arguments.latents:,} latents ({activations.nnz:,} activations, "
        f"{activations.nnz / np.prod(activations.shape):.2%}), {arguments.concepts} concepts ({labels.residues.nnz:,} "
        f"labels), {len(THRESHOLDS)} thresholds, {arguments.rounds} interleaved rounds, 1 thread, CPU seconds "
        f"min / median / max. InterPLM's: {arguments.part} latents and {arguments.few} concepts, times {cells:,.0f}. "
        f"Ours takes at most {memory:,.0f} MiB, with its tables and F1.\n"
    )
    print("| | counts | F1 | both |\n|---|---|---|---|")
    for name, factor in (("ours", 1.0), ("theirs", cells)):
        one, two = (np.array(times[key]) * factor for key in (name, f"{name}, F1"))
        label = "ours, measured" if name == "ours" else "InterPLM's path, scaled"
        print(f"| {label} | {_spread(one)} | {_spread(two)} | {_spread(one + two)} |")
    ratios = [(np.array(times[f"theirs{what}"]) * cells) / np.array(times[f"ours{what}"]) for what in ("", ", F1")]
    whole = cells * (np.array(times["theirs"]) + times["theirs, F1"]) / (np.array(times["ours"]) + times["ours, F1"])
    print(f"| slower than ours | {_spread(ratios[0], 0)} | {_spread(ratios[1], 0)} | {_spread(whole, 0)} |")


def _activations(num_residues: int, num_latents: int, generator: np.random.Generator) -> Any:
    popularity = np.arange(1, num_latents + 1) ** -0.6
    drawn = np.searchsorted(np.cumsum(popularity / popularity.sum()), generator.random((num_residues, 102)))
    drawn = np.sort(drawn.clip(0, num_latents - 1).astype(np.int32), axis=1)
    kept = np.ones(drawn.shape, dtype=bool)
    kept[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    pointers = np.concatenate([[0], np.cumsum(kept.sum(1))])
    columns = generator.permutation(num_latents).astype(np.int32)[drawn[kept]]
    values = generator.random(len(columns), dtype=np.float32) ** 2 + np.float32(1e-6)
    return sparse.csr_matrix((values, columns, pointers), shape=(num_residues, num_latents))


def _labels(
    num_residues: int, num_concepts: int, generator: np.random.Generator
) -> tuple[Labels, Any, npt.NDArray[np.bool_]]:
    """Labels of ours, and InterPLM's matrix [R, C] of the numbers of the domains; no two of a concept overlap."""
    by_residue = np.arange(num_concepts) % 4 == 0
    rows, starts, ends, concepts = [], [], [], []
    domains = sparse.lil_matrix((num_residues, num_concepts), dtype=np.int64)
    for concept in range(num_concepts):
        used, number = np.zeros(num_residues, dtype=bool), 0
        for _ in range(int(generator.integers(30, 150))):
            length = 1 if by_residue[concept] else int(generator.integers(5, 120))
            row = int(generator.integers(num_residues // ROW))
            start = int(generator.integers(ROW - length + 1))
            place = slice(row * ROW + start, row * ROW + start + length)
            if not used[place].any():
                used[place], number = True, number + 1
                domains[place, concept] = number
                rows.append(row)
                starts.append(start)
                ends.append(start + length)
                concepts.append((concept, -1))
    labels = Labels.build(
        lengths=np.full(num_residues // ROW, ROW),
        rows=np.array(rows),
        starts=np.array(starts),
        ends=np.array(ends),
        paired=np.zeros(len(rows), dtype=bool),
        concepts=np.array(concepts),
        num_concepts=num_concepts,
    )
    return labels, domains, by_residue


def _ours(activations: Any, labels: Labels) -> Counts:
    counter = ConceptCounter(labels.num_concepts, activations.shape[1], THRESHOLDS)
    for first in range(0, labels.num_rows, BATCH):
        last = min(first + BATCH, labels.num_rows)
        counter.add(activations[first * ROW : last * ROW], labels.batch(first, last))
    return counter.result()


def _theirs(features: Any, domains: Any, by_residue: Any) -> tuple[Any, Any, Any]:
    """True positives, false positives and domains hit, fp64 [C, n, T]."""
    shape = (domains.shape[1], features.shape[1], len(THRESHOLDS))
    true, false, hit = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for place, threshold in enumerate(THRESHOLDS):
        on = features.copy()
        on.data = (on.data > threshold).astype(int)
        on.eliminate_zeros()
        for concept in range(shape[0]):
            column = domains[:, concept]
            true[concept, :, place] = np.asarray(on.multiply(column > 0).sum(axis=0)).ravel()
            outside = on.multiply(column != 0).multiply(-1) + on
            false[concept, :, place] = np.asarray(outside.sum(axis=0)).ravel()
            if not by_residue[concept]:
                numbered = on.multiply(column).tocsc()
                different = []
                for latent in range(shape[1]):
                    data = numbered[:, latent].data
                    different.append(len(set(data)) - (0 in data))
                hit[concept, :, place] = different
    return true, false, hit


def _their_f1(true: Any, false: Any, hit: Any, domains: Any, by_residue: Any) -> list[dict[str, Any]]:
    residues = np.asarray((domains > 0).sum(axis=0)).ravel()
    wanted = [len(set(domains[:, concept].data)) for concept in range(domains.shape[1])]
    rows = []
    for concept in range(true.shape[0]):
        for latent in range(true.shape[1]):
            for place in range(true.shape[2]):
                found = true[concept, latent, place]
                if found == 0:
                    continue
                precision = found / (found + false[concept, latent, place])
                recall = found / residues[concept]
                of_domains = recall if by_residue[concept] else hit[concept, latent, place] / wanted[concept]
                rows.append(
                    {
                        "concept": concept,
                        "latent": latent,
                        "threshold": place,
                        "precision": precision,
                        "f1": 2 * precision * recall / (precision + recall),
                        "f1_per_domain": 2 * precision * of_domains / (precision + of_domains),
                    }
                )
    return rows


def _check(
    counts: Counts,
    f1: Any,
    found: tuple[Any, Any, Any],
    rows: list[dict[str, Any]],
    part: slice,
    few: slice,
    level: Any,
) -> None:
    true, false, hit = (each.transpose(0, 2, 1) for each in found)
    ours = counts.true_positives[few, :, part]
    assert np.array_equal(ours, true)
    assert np.array_equal(counts.active[:, part] - ours, false)
    assert np.array_equal(counts.hits[few, :, part][~level[few]], hit[~level[few]])
    assert len(rows) == (ours > 0).sum()
    places = tuple(np.array([row[key] for row in rows]) for key in ("concept", "threshold", "latent"))
    assert np.allclose(f1[few, :, part][places], [row["f1_per_domain"] for row in rows], rtol=1e-12)


def _timed(function: Any) -> tuple[Any, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def _spread(values: npt.NDArray[np.float64], digits: int = 2) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in (values.min(), float(np.median(values)), values.max()))


if __name__ == "__main__":
    main()
