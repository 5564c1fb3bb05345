"""A small working folder with real proteins, as a user would have one: source, params, DVC, git.

It runs the same stages through the same command line as the repository itself, on the committed fixture of about a
hundred short Swiss-Prot entries, in seconds instead of minutes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT / "tests" / "fixtures" / "swissprot_tiny.tsv.gz"
BIN = Path(sys.executable).parent

# What differs from params.yaml to make the pipeline run in seconds.
SMALL: dict[str, dict[str, Any]] = {
    "ingest": {"max_proteins": None, "cluster_method": "linclust"},
    "validate": {"min_proteins": 5},
    "extract_activations": {
        "layer": 2,
        "block_rows": 256,
        "max_tokens_per_batch": 2048,
        "shuffle_pool_rows": 4096,
        "threads": 1,
    },
    "train_sae": {
        "expansion_factor": 2,
        "k": 16,
        "tokens": 60_000,
        "batch_size": 512,
        "warmup_steps": 10,
        "learning_rate": 0.002,
        "validate_every": 10,
        "num_valid_rows": 1024,
        "checkpoint_every": 20,
        "threads": 1,
    },
    "sweep": {"grid": {"k": [8, 16], "seed": [0, 1]}, "min_instances": 3, "min_proteins": 2, "threads": 1},
    "evaluate.fidelity": {"max_proteins": 8, "num_resamples": 100, "threads": 1},
    "evaluate.concepts": {"min_instances": 3, "min_proteins": 2, "num_resamples": 100, "threads": 1},
    "evaluate.baselines": {
        "min_instances": 3,
        "min_proteins": 2,
        "fit_rows": 2048,
        "ica_rows": 1024,
        "ica_components": 16,
        "ica_iterations": 10,
        "num_resamples": 100,
        "threads": 1,
    },
    "evaluate.amortisation": {"max_proteins": 4, "num_tokens": 32, "num_resamples": 100, "threads": 1},
    "evaluate.probes": {
        "tasks": ["secondary_structure"],
        "min_positives": 3,
        "min_proteins": 1,
        "fit_residues": 1000,
        "all_unit_examples": 400,
        "strengths": [0.1],
        "num_resamples": 100,
        "threads": 1,
    },
    "evaluate.patterns": {"min_members": 2, "num_resamples": 100, "threads": 1},
    "evaluate.clustering": {"min_proteins": 3, "num_resamples": 100, "threads": 1},
    "evaluate.absorption": {"min_instances": 3, "min_proteins": 2, "num_resamples": 100, "threads": 1},
    "evaluate.controls": {
        "controls": ["permuted"],
        "min_instances": 3,
        "min_proteins": 2,
        "fit_rows": 2048,
        "num_resamples": 100,
        "threads": 1,
    },
    "evaluate.layers": {
        "layers": [1, 2],
        "fidelity_proteins": 4,
        "min_instances": 3,
        "min_proteins": 2,
        "num_resamples": 100,
        "threads": 1,
    },
    "steer": {"max_proteins": 4, "num_random_directions": 3, "num_resamples": 100, "threads": 1},
}


def environment(root: Path) -> dict[str, str]:
    """Environment of a user's shell with the virtual environment active and nothing of the test process."""
    return {
        "PATH": f"{BIN}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": str(root / ".home"),
        "PYTHONPATH": str(root / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def call(root: Path, *command: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command in the working folder; with `check`, a failure shows what it printed."""
    process = subprocess.run(
        command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and process.returncode:
        raise AssertionError(f"{' '.join(command)} -> {process.returncode}\n{process.stdout}\n{process.stderr}")
    return process


def make_workspace(root: Path) -> Path:
    """Fill `root` with everything that a fresh clone has, made small."""
    (root / "data").mkdir(parents=True)
    (root / ".home").mkdir()
    shutil.copy(FIXTURE, root / "data" / "swissprot.tsv.gz")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copy(ROOT / ".dvcignore", root)
    (root / ".gitignore").write_text("/data/\n/outputs/\n/.plmsae/\n/.home/\n/src/\n__pycache__/\n")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in SMALL.items():
        target = params
        for part in section.split("."):
            target = target[part]
        target.update(values)
    params["ingest"]["source_sha256"] = hashlib.sha256(FIXTURE.read_bytes()).hexdigest()
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    call(root, "git", "init", "--quiet")
    call(root, "dvc", "init", "--quiet")
    shutil.copytree(ROOT / ".dvc" / "plots", root / ".dvc" / "plots", dirs_exist_ok=True)
    call(root, "dvc", "add", "--quiet", "data")
    call(root, "git", "add", "--all")
    call(root, "git", "commit", "--quiet", "--message", "start")
    return root


def output_bytes(root: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file below `outputs/`."""
    folder = root / "outputs"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
