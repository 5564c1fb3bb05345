"""A TopK training step: the sparse kernel against the plain dense one, interleaved in one process.

    python benchmarks/train_step.py [--threads 2] [--d 192] [--n 4096] [--k 32] [--batch 2048] [--rounds 15] [--dead 0]

A step is loss, backward, gradient projection, clipping, fused Adam, renormalisation. The dense step is
`kernel: reference`, autograd over the loss as the papers write it. Both are first checked to agree. A ratio is the
time of the dense step over the sparse one in the same round; CPU time (meaningful with one thread) hardly feels the
neighbours, wall time does. `--dead` latents are given to AuxK.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from plmsae.saes import SaeConfig, build

NUM_BATCHES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("threads", 2), ("d", 192), ("n", 4096), ("k", 32), ("batch", 2048), ("rounds", 15), ("dead", 0)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(arguments.batch, arguments.d, generator=generator) for _ in range(NUM_BATCHES)]
    dead = torch.arange(arguments.n) < arguments.dead
    steps = {kernel: make_step(kernel, arguments, batches, dead) for kernel in ("auto", "reference")}
    losses = {kernel: step(0) for kernel, step in steps.items()}
    assert abs(losses["auto"] / losses["reference"] - 1) < 1e-4, losses
    wall: dict[str, list[float]] = {kernel: [] for kernel in steps}
    cpu: dict[str, list[float]] = {kernel: [] for kernel in steps}
    for index in range(arguments.rounds):
        for kernel, step in steps.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            step(index)
            wall[kernel].append(time.perf_counter() - start)
            cpu[kernel].append(time.process_time() - start_cpu)
    shape = ", ".join(f"{name} {getattr(arguments, name)}" for name in ("d", "n", "k", "batch", "threads", "dead"))
    print(f"# TopK training step\n\n{shape}; {arguments.rounds} interleaved rounds; min / median / max.\n")
    print("| kernel | wall ms | CPU ms | tokens/s (median) |\n|---|---|---|---|")
    for kernel in steps:
        speed = arguments.batch / median(wall[kernel])
        print(f"| {kernel} | {spread(wall[kernel], 1e3)} | {spread(cpu[kernel], 1e3)} | {speed:,.0f} |")
    slower = {
        name: spread([dense / sparse for dense, sparse in zip(times["reference"], times["auto"])], 1)
        for name, times in (("wall", wall), ("CPU", cpu))
    }
    print(f"| reference / auto | {slower['wall']} | {slower['CPU']} | |")


def make_step(
    kernel: str, arguments: argparse.Namespace, batches: Sequence[Tensor], dead: Tensor
) -> Callable[[int], float]:
    normaliser = {"kind": "rms", "scale": 1.0, "folded": False}
    config = SaeConfig("topk", arguments.d, arguments.n, arguments.k, "none", "none", 0, "residual", normaliser)
    sae = build(config)
    sae.kernel = kernel
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)

    def step(index: int) -> float:
        optimizer.zero_grad()
        terms = sae.loss(batches[index % NUM_BATCHES], dead)
        terms.total.backward()
        sae.constrain_gradients()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        sae.constrain_weights()
        return float(terms.total.detach())

    return step


def spread(values: Sequence[float], factor: float) -> str:
    return "/".join(f"{factor * value:.2f}" for value in (min(values), median(values), max(values)))


if __name__ == "__main__":
    main()
