"""Trains every architecture for a short while on the demo's activations and prints a Markdown table of the outcomes.

Run it after `make run`: `python scripts/architectures_table.py` (some minutes). docs/architectures.md holds the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from plmsae.saes import trainable_architectures

STEPS, BATCH = 200, 1024
SETTINGS = {
    "tokens": STEPS * BATCH,
    "batch_size": BATCH,
    "expansion_factor": 8,
    "learning_rate": 6e-4,
    "num_test_rows": 20_000,
    "seed": 0,
}


def main() -> int:
    """Train and print one row per architecture."""
    rows: list[tuple[str, dict[str, int]]] = [(name, {}) for name in trainable_architectures()]
    if "jump_relu" in dict(rows):
        rows.append(("jump_relu", {"target_l0": 32}))
    print("| | FVU | L0 | norm ratio | never active |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="plmsae-") as scratch:
        # These runs are not for the registry of the demo.
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db"}
        for number, (name, extra) in enumerate(rows):
            settings = {**SETTINGS, "architecture": name, **extra}
            command = ["plmsae", "run", "train_sae", "--json", "--output", str(Path(scratch, str(number)))]
            for key, value in settings.items():
                command += ["--set", f"train_sae.{key}={value}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            metrics = json.loads(done.stdout)["metrics"]
            label = f"`{name}`" + "".join(f", `{key}` = {value}" for key, value in extra.items())
            print(
                f"| {label} | {metrics['fvu']:.3f} | {metrics['l0']:.1f} | {metrics['l2_ratio']:.3f} "
                f"| {metrics['dead_fraction']:.0%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
