"""Peak memory of `evaluate@concepts` by number of proteins: what grows with the residues, and by how much.

    python benchmarks/concept_memory.py [--proteins 1000 2000 4000] [--latents 10240] [--length 150]

Each size runs in a process of its own: so many validation and as many test proteins of random letters, with the
density of annotations that Swiss-Prot has (helices, strands, turns, a domain and a region of many kinds, sites), the
bundled model up to its first block, and a TopK SAE with random atoms. Model and counts of all units are the same for
every size, so the slope between two sizes is what a residue costs; with few latents it is not hidden below them.
Printed: peak MiB, seconds, and bytes per residue of both splits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
LAYER, ACTIVE, TRAIN = 1, 32, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proteins", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--latents", type=int, default=10_240)
    parser.add_argument("--length", type=int, default=150)
    arguments = parser.parse_args()
    rows = []
    for number in arguments.proteins:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, seconds, concepts = pool.apply(measure, (Path(folder), number, arguments.latents, arguments.length))
        rows.append((2 * number * arguments.length, peak))
        print(f"{number:,} + {number:,} proteins, {concepts} concepts: peak {peak / 2**20:,.0f} MiB, {seconds:.0f} s")
    for (few, low), (many, high) in pairwise(rows):
        print(f"{few:,} to {many:,} residues: {(high - low) / (many - few):,.0f} bytes per residue")


def measure(folder: Path, number: int, latents: int, length: int) -> tuple[int, float, int]:
    """Peak resident bytes, seconds and concepts of one evaluation in this process."""
    import torch

    from plmsae.activations.blocks import BlockStore
    from plmsae.activations.extract import extract
    from plmsae.activations.plan import Settings
    from plmsae.evaluation.concepts import evaluate
    from plmsae.evaluation.inputs import Inputs
    from plmsae.plms import load_plm
    from plmsae.proteins.tables import read_sequences
    from plmsae.saes import SaeConfig, build

    torch.set_num_threads(1)
    write(folder, number, length)
    plm = load_plm("esm_small")
    settings = Settings(layer=LAYER, block_rows=512)
    extract(plm, read_sequences(folder), folder / "store", folder / "parts", settings, sequences_sha256="0" * 64)
    config = SaeConfig(
        architecture="topk",
        d_model=plm.d_model,
        dictionary_size=latents,
        k=ACTIVE,
        plm=plm.name,
        plm_revision=plm.revision,
        layer=LAYER,
        hook="residual",
        normaliser={"kind": "rms", "scale": 1.0, "folded": True},
    )
    sae = build(config, seed=1).requires_grad_(False)
    rows = torch.cat(list(BlockStore(folder / "store", "train").rows(4096)))
    sae.b_dec.copy_(rows.mean(dim=0))
    sae.latent_max.copy_(sae.encode(rows).amax(dim=0))
    inputs = Inputs(folder, plm, sae, rows.mean(dim=0), folder / "store")
    started = time.perf_counter()
    outcome = evaluate(
        inputs,
        folder,
        max_proteins=None,
        min_instances=5,
        min_proteins=3,
        thresholds=[0.0, 0.15, 0.5, 0.6, 0.8],
        concepts_per_latent=3,
        num_resamples=100,
        confidence=0.95,
        max_tokens=4096,
        threads=1,
        seed=0,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak, time.perf_counter() - started, int(outcome.metrics["num_concepts"])


def write(folder: Path, number: int, length: int) -> None:
    """An `ingest` output: proteins of random letters with some fifteen annotations each."""
    from plmsae.proteins.tables import write_annotations, write_sequences

    generator = np.random.default_rng(0)
    splits = ["train"] * TRAIN + ["valid"] * number + ["test"] * number
    names = [f"P{place:06}" for place in range(len(splits))]
    columns: dict[str, list[Any]] = {
        name: [] for name in ("accession", "offset", "type", "start", "end", "note", "ligand")
    }
    for name, split in zip(names, splits, strict=True):
        for kind, count, longest in (
            ("Helix", 4, 20),
            ("Beta strand", 4, 8),
            ("Turn", 2, 4),
            ("Domain", 1, length // 2),
            ("Region", 2, 40),
            ("Binding site", 2, 1),
        ):
            if split == "train":
                continue
            for _ in range(count):
                start = int(generator.integers(0, length - longest))
                end = start + int(generator.integers(1, longest + 1))
                which = str(generator.integers(0, 60))
                note = f"kind{which}x" if kind in ("Domain", "Region") else ""
                row = (name, 0, kind, start, end, note, f"ligand{which}x" if kind == "Binding site" else "")
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    letters = np.frombuffer(LETTERS.encode(), dtype=np.uint8)
    write_sequences(
        folder,
        {
            "accession": names,
            "offset": [0] * len(names),
            "sequence": [bytes(generator.choice(letters, length)).decode() for _ in names],
            "length": [length] * len(names),
            "cluster": names,
            "split": splits,
            "name": names,
        },
    )
    write_annotations(folder, columns)


if __name__ == "__main__":
    main()
