"""Training steps that multiply no zeros, against the dense ones and dictionary_learning's, interleaved in one process.

    python benchmarks/train_step.py [--threads 1] [--d 320] [--n 10240] [--k 32] [--batch 2048] [--rounds 9] [--dead 0]

A step is loss, backward, gradient projection, clipping, Adam, renormalisation. `dense reference` is ours with
`kernel: reference`: autograd over the loss as the papers write it. `bfloat16` is ours with `precision: bfloat16`, which
is for processors that multiply it in hardware; the table says whether this one does. The peer is the trainer of
dictionary-learning 0.1.0, installed from the package registry into a temporary folder and run as it is, on the same
torch. All start from the same weights and are first checked to have the same loss, before and after one step (within
1e-4; bfloat16 within 1e-2). A ratio is the time of another step over ours in the same round. With one thread the clock
is the process's CPU time, which hardly feels the neighbours; with more it is wall time. `--dead` latents are given to
AuxK.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from plmsae.plms.linear import has_fast_bfloat16
from plmsae.saes import SaeConfig, build
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.matryoshka import FRACTIONS

NUM_BATCHES = 4
LEARNING_RATE = 1e-4
PEER = "dictionary-learning==0.1.0"
PEER_NEEDS = "einops==0.8.2"
TRAINERS = {
    "topk": ("top_k", "TopKTrainer"),
    "batch_topk": ("batch_top_k", "BatchTopKTrainer"),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
}
Step = Callable[[int], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("threads", 1), ("d", 320), ("n", 10240), ("k", 32), ("batch", 2048), ("rounds", 9), ("dead", 0)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    norms = torch.exp(0.3 * torch.randn(NUM_BATCHES, arguments.batch, 1, generator=generator))
    batches = list(norms * torch.randn(NUM_BATCHES, arguments.batch, arguments.d, generator=generator))
    clock, name = (time.process_time, "CPU") if arguments.threads == 1 else (time.perf_counter, "wall")
    shape = ", ".join(f"{name} {getattr(arguments, name)}" for name in ("d", "n", "k", "batch", "threads", "dead"))
    with tempfile.TemporaryDirectory(prefix="plmsae-") as folder:
        with_peer = install(Path(folder))
        peer = PEER.replace("==", " ") if with_peer else f"{PEER.replace('==', ' ')} (could not be installed here)"
        print(f"# Training step\n\n{shape}; torch {torch.__version__}; {arguments.rounds} interleaved rounds.")
        fast = "multiplies" if has_fast_bfloat16() else "does not multiply"
        print(f"Milliseconds of {name} time, and how many times ours: min / median / max. This CPU {fast} bf16.\n")
        columns = ("ours", "tokens/s (median)", "dense reference", "times ours", "bfloat16", "times ours")
        print(f"| | {' | '.join(columns)} | {peer} | times ours |")
        print("|---|---|---|---|---|---|---|---|---|")
        for architecture in TRAINERS:
            steps = {kernel: our_step(architecture, kernel, arguments, batches) for kernel in ("auto", "reference")}
            steps["bfloat16"] = our_step(architecture, "auto", arguments, batches, "bfloat16")
            if with_peer:
                steps["peer"] = peer_step(architecture, arguments, batches)
            check(steps)
            print(row(architecture, measure(steps, arguments.rounds, clock), arguments.batch), flush=True)


def our_step(
    architecture: str,
    kernel: str,
    arguments: argparse.Namespace,
    batches: Sequence[Tensor],
    precision: str = "float32",
) -> Step:
    sae = our_sae(architecture, arguments)
    sae.prepare_training(kernel, precision)
    dead = torch.arange(arguments.n) < arguments.dead
    optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE, fused=True)

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


def our_sae(architecture: str, arguments: argparse.Namespace) -> SparseAutoencoder:
    """The same weights at every call; the dead latents are positive, but too small to be selected."""
    options = {"reduction": "dictionary_learning"} if architecture == "matryoshka" else {}
    sae = build(
        SaeConfig(
            architecture=architecture,
            d_model=arguments.d,
            dictionary_size=arguments.n,
            k=arguments.k,
            plm="none",
            plm_revision="none",
            layer=0,
            hook="residual",
            normaliser={"kind": "rms", "scale": 1.0, "folded": False},
            options=options,
        )
    )
    with torch.no_grad():
        sae.W_enc[: arguments.dead].mul_(0.1)
    return sae


def install(folder: Path) -> bool:
    """Make the peer importable; its `__init__` needs a language model's tools, its trainers do not."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*command, PEER, PEER_NEEDS], env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return False
    sys.path.append(str(folder))
    package = types.ModuleType("dictionary_learning")
    package.__path__ = [str(folder / "dictionary_learning")]
    sys.modules["dictionary_learning"] = package
    return True


def peer_step(architecture: str, arguments: argparse.Namespace, batches: Sequence[Tensor]) -> Step:
    module, name = TRAINERS[architecture]
    more: dict[str, Any] = {}
    if architecture == "matryoshka":
        more["group_fractions"] = list(FRACTIONS["power_law"])
    with contextlib.redirect_stdout(sys.stderr):
        trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)(
            steps=100_000,
            activation_dim=arguments.d,
            dict_size=arguments.n,
            k=arguments.k,
            layer=0,
            lm_name="none",
            lr=LEARNING_RATE,
            warmup_steps=0,
            device="cpu",
            **more,
        )
    ours = our_sae(architecture, arguments).state_dict()
    theirs = dict(trainer.ae.named_parameters())
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
    with torch.no_grad():
        for key, parameter in theirs.items():
            value = ours[names.get(key, key)]
            parameter.copy_(value if value.shape == parameter.shape else value.T)

    def step(index: int) -> float:
        trainer.num_tokens_since_fired[: arguments.dead] = trainer.dead_feature_threshold
        # Step 0 would set b_dec to the median of the batch.
        return float(trainer.update(index + 1, batches[index % NUM_BATCHES]))

    return step


def check(steps: Mapping[str, Step]) -> None:
    """The first two losses agree; the first has the same weights, the second what one step made of them."""
    for index in range(2):
        losses = {name: step(index) for name, step in steps.items()}
        for name, loss in losses.items():
            assert abs(loss / losses["auto"] - 1) < (1e-2 if name == "bfloat16" else 1e-4), (index, name, losses)


def measure(steps: Mapping[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every step in every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds):
        for name, step in steps.items():
            start = clock()
            step(index)
            times[name].append(clock() - start)
    return times


def row(architecture: str, times: Mapping[str, Sequence[float]], batch: int) -> str:
    ours = times["auto"]
    cells = [f"`{architecture}`", spread(ours, 1e3, 0), f"{batch / median(ours):,.0f}"]
    for name in ("reference", "bfloat16", "peer"):
        if name in times:
            ratios = [other / own for other, own in zip(times[name], ours, strict=True)]
            cells += [spread(times[name], 1e3, 0), spread(ratios, 1.0, 1)]
        else:
            cells += ["", ""]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], factor: float, digits: int) -> str:
    return " / ".join(f"{factor * value:.{digits}f}" for value in (min(values), median(values), max(values)))


if __name__ == "__main__":
    main()
