"""When one SAE per process beats one SAE in all of them: tokens per second of both, by the size of the batch.

    python -m benchmarks.data_parallel [--device cpu|cuda] [--processes N] [--dictionary-size N]
        [--batches 512,2048,8192,32768] [--rounds 3] [--json FILE]

Every process has the batch's rows in memory; what is timed is steps alone. `apart` counts the tokens of all processes,
each of which trains an SAE on whole batches; `together` those of the one SAE. On a CPU a process has one thread, and
`threads` is one process with as many threads as there are processes. The rounds of the ways are interleaved, and the
median is reported. Processes start as `plmsae.training.launch` starts them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from plmsae.saes import SaeConfig, build
from plmsae.saes.group import SOLO, Group
from plmsae.training.group import joined
from plmsae.training.launch import environment
from plmsae.training.member import Member, Plan
from plmsae.training.settings import TrainingSettings

STEPS, D_MODEL, K = 8, 640, 32


def seconds_of_step(batch_size: int, dictionary_size: int, device: str, group: Group) -> float:
    """Median seconds of a step on rows of one process."""
    normaliser = {"kind": "rms", "scale": 1.0, "folded": False}
    config = SaeConfig("batch_topk", D_MODEL, dictionary_size, K, "plm", "r", 1, "residual", normaliser)
    settings = TrainingSettings(10**6, batch_size, 1e-4, 10, 0, 10**9, 10**6, 1, 10**6, 0, device=device)
    member = Member(Plan(config, settings), build(config).to(device), 1.0, group).to(device)
    generator = torch.Generator().manual_seed(group.rank)
    rows = torch.randn(batch_size // group.size, D_MODEL, generator=generator).to(device) / D_MODEL**0.5
    member.step(rows)
    found = []
    for _ in range(STEPS):
        group.sum_(torch.zeros(1))  # all begin at once
        start = time.perf_counter()
        member.step(rows)
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def in_processes(way: str, size: int, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Batch size -> tokens per second of a way, of all processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "benchmarks.data_parallel", "--device", arguments.device]
    command += ["--dictionary-size", str(arguments.dictionary_size), "--processes", str(arguments.processes)]
    command += ["--batches", arguments.batches]
    processes = [
        subprocess.Popen(
            [*command, "--way", way, "--json", str(folder / f"{rank}.json")],
            env={**os.environ, **environment(rank, size, rank, store.port)},
        )
        for rank in range(size)
    ]
    if any(process.wait() for process in processes):
        sys.exit(f"a process of '{way}' failed")
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    if way == "together":
        return dict(found[0])
    return {batch: sum(one[batch] for one in found) for batch in found[0]}


def main() -> None:
    """Compare the ways, or be one process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dictionary-size", type=int, default=10_240)
    parser.add_argument("--batches", default="512,2048,8192,32768")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=["threads", "apart", "together"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way is not None:
        torch.set_num_threads(arguments.processes if arguments.way == "threads" else 1)
        sizes = [int(size) for size in arguments.batches.split(",")]
        with joined(arguments.device) as ranks:  # `apart` begins its steps together, and sums nothing else
            group: Group = ranks if arguments.way == "together" else SOLO
            seconds = {
                size: seconds_of_step(size, arguments.dictionary_size, arguments.device, group) for size in sizes
            }
        arguments.json.write_text(json.dumps({size: size / value for size, value in seconds.items()}))
        return
    ways = {"together": arguments.processes, "apart": arguments.processes}
    if arguments.device == "cpu":
        ways = {"threads": 1, **ways}
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for way, size in ways.items():
                rounds[way].append(in_processes(way, size, arguments, Path(folder)))
    result = {
        way: {batch: statistics.median(one[batch] for one in found) for batch in found[0]}
        for way, found in rounds.items()
    }
    sys.stdout.write(f"{'batch':>8}" + "".join(f"{way:>12}" for way in ways) + "  tokens/s\n")
    for batch in result["apart"]:
        sys.stdout.write(f"{batch:>8}" + "".join(f"{result[way][batch]:>12,.0f}" for way in ways) + "\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
