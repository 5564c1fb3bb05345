"""One-latent logistic probes of every latent and class: ours against scikit-learn latent by latent, as InterProt does.

    python benchmarks/probes.py [--residues 200000] [--latents 10240] [--classes 20] [--part 40]

Random sparse activations (64 draws per residue, popularity falling as 1 / (rank + 30)); each class is a stretch of
residues together with those on which one latent fires, 0.1 % to 30 % of all. InterProt (`oned_probe/single_latent.py`)
fits scikit-learn's LogisticRegression with balanced classes and C = 1 to the dense column of every latent. That would
take hours, so it is run on `--part` latents spread over the ranks, for two classes, and scaled by the number of fits.
Its stopping tolerance is 1e-8, not the default of 1e-4, so that solutions can be compared: slopes must agree to 1e-3
(relative to 1 + their size). One thread, CPU seconds.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits

from plmsae.evaluation.one_unit_probes import balanced_weights, fit_each_unit

DRAWS = 64
COMPARED_CLASSES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("residues", 200_000), ("latents", 10_240), ("classes", 20), ("part", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    x = _activations(arguments.residues, arguments.latents, generator)
    classes = _classes(x, arguments.classes, generator)
    part = np.unique(np.linspace(0, arguments.latents - 1, arguments.part).astype(int))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with threadpool_limits(1):
        start = time.process_time()
        columns = x.tocsc()
        slopes = [fit_each_unit(columns, y, balanced_weights(y), np.ones(x.shape[1])).slopes for y in classes]
        ours = time.process_time() - start
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        start = time.process_time()
        theirs_slopes = [_theirs(columns, y, part) for y in classes[:COMPARED_CLASSES]]
        theirs = (time.process_time() - start) * arguments.latents * len(classes) / (len(part) * len(theirs_slopes))
    worst = max(float((np.abs(a[part] - b) / (1 + np.abs(b))).max()) for a, b in zip(slopes, theirs_slopes))
    if worst > 1e-3:
        raise SystemExit(f"slopes differ by {worst:.2g}")
    print("# One-latent probes\n")
    print(
        f"{x.shape[0]:,} residues, {x.shape[1]:,} latents ({x.nnz:,} activations), {len(classes)} classes, 1 thread, "
        f"CPU seconds. scikit-learn: {len(part)} latents and {len(theirs_slopes)} classes, scaled by the number of "
        f"fits. Slopes agree to {worst:.1g}. Ours takes {memory:,.0f} MB more than the activations.\n"
    )
    print("| | seconds |\n|---|---|")
    print(f"| ours, all latents at once | {ours:,.1f} |")
    print(f"| scikit-learn, latent by latent | {theirs:,.0f} |")
    print(f"| ratio | {theirs / ours:,.0f} |")


def _activations(num_rows: int, num_latents: int, generator: np.random.Generator) -> sparse.csr_matrix:
    share = 1 / (np.arange(num_latents) + 30.0)
    latents = generator.choice(num_latents, num_rows * DRAWS, p=share / share.sum()).astype(np.int32)
    values = generator.gamma(2, 0.15, num_rows * DRAWS).astype(np.float32)
    x = sparse.csr_matrix((values, latents, np.arange(0, num_rows * DRAWS + 1, DRAWS)), shape=(num_rows, num_latents))
    x.sum_duplicates()
    return x


def _classes(x: sparse.csr_matrix, count: int, generator: np.random.Generator) -> list[npt.NDArray[np.bool_]]:
    found = []
    for number, share in enumerate(np.geomspace(0.001, 0.3, count)):
        y = x[:, [50 + 37 * number]].toarray()[:, 0] > 0
        start = int(generator.integers(0, int(x.shape[0] * (1 - share))))
        y[start : start + int(x.shape[0] * share)] = True
        found.append(y)
    return found


def _theirs(
    columns: sparse.csc_matrix, y: npt.NDArray[np.bool_], part: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000)
    return np.array([model.fit(columns[:, [unit]].toarray().astype(np.float64), y).coef_[0, 0] for unit in part])


if __name__ == "__main__":
    main()
