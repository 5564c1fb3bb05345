"""Where the time of our training goes: the share that waits for data, and the parts of the rest.

    python benchmarks/training_time.py [--d 320] [--n 2560] [--k 32] [--batch 2048] [--rounds 3] [--threads 1]

The trainings of `training.py`, at `--n` latents and at a quarter, where steps are shorter. The wait is measured
around the reader, which the training asks from its own thread (`train_sae.num_workers: 0`); the rows are in the page
cache. The steps are those of an epoch and a pool, so one loading of a pool is in each figure. Beside the activation
store, the shortest reader there is: rows of a fp32 tensor in a mapped file, by a permutation of an epoch.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from trainers.clock import Job
from training import NUM_ROWS, OURS, parser_of, prepare, run, spread

# The stage's own cadence: train_sae.validate_every and train_sae.checkpoint_every.
LOOK_EVERY, CHECKPOINT_EVERY = 50, 500


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    arguments.steps = NUM_ROWS["train"] // arguments.batch
    with tempfile.TemporaryDirectory(prefix="plmsae-") as folder:
        job = prepare(Path(folder), arguments)
        print("# Where the time of a training goes\n")
        print(
            f"`topk`, d {job.d}, k {job.k}, batch {job.batch}, fp32, threads {job.threads}; torch {torch.__version__}; "
            f"{arguments.rounds} rounds of {job.steps} steps after {job.warmup} of warm-up. "
            f"Times are {'CPU' if job.threads == 1 else 'wall'} time."
        )
        print_readers(job, arguments.rounds)
        print_parts(job)


def print_readers(job: Job, rounds: int) -> None:
    """The share of our time that goes to data: of the store, and of the shortest reader of all."""
    print("\n## Wait for data\n")
    print("Share of the time, with the check for NaN and the division by the scale; warm, no threads ahead.\n")
    print("| latents | activation store | rows of a fp32 tensor, by a permutation |\n|---|---|---|")
    for n in (job.n, job.n // 4):
        cells = []
        for reader in ("store", "tensor"):
            smaller = replace(job, n=n, reader=reader)
            figures = [run(OURS, smaller) for _ in range(rounds)]
            cells.append(spread([f["waits"] for f in figures], ".1%"))
        print(f"| {n} | {' | '.join(cells)} |", flush=True)


def print_parts(job: Job) -> None:
    """Where our time goes, in steps at the stage's own cadence."""
    sizes = (job.n, job.n // 4)
    parts = [run(OURS, replace(job, n=n), "profile") for n in sizes]
    steps = {"look": LOOK_EVERY, "checkpoint": CHECKPOINT_EVERY}
    names = {
        "reader": "reading a batch",
        "scaling": "check for NaN, division by the scale",
        "forward": "loss: encode, select, decode",
        "backward": "backward",
        "rest of the step": "projection, clipping, Adam, renormalisation, counters",
        "loop": "Lightning, progress",
        "look": f"look at held-out rows, every {LOOK_EVERY} steps",
        "checkpoint": f"checkpoint, every {CHECKPOINT_EVERY} steps",
    }
    print("\n## Where our time goes\n")
    print(
        f"`topk`, milliseconds per step at the stage's cadence, threads {job.threads}, under cProfile: its own cost "
        "falls on what makes many small calls, Lightning.\n"
    )
    print(f"| | {' | '.join(f'n {n}' for n in sizes)} |\n|---|{'---|' * len(sizes)}")
    for part, name in names.items():
        cells = []
        for found in parts:
            each = {key: 1e3 * value / steps.get(key, 1) for key, value in found.items()}
            cells.append(f"{each[part]:.1f} ({each[part] / sum(each.values()):.1%})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
