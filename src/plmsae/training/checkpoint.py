"""Checkpoints of a training: whole or not there, verified before use, never a pickle.

A checkpoint is a folder `step-<number>` with `state.safetensors` (weights, optimiser moments, counters, of every SAE of
the training) and `state.json` (everything else, and the sha256 of the tensors). It is written beside its place and
renamed, so a kill leaves the one before; a damaged one is skipped for the newest that is valid.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plmsae.artifacts.checksums import sha256_file

logger = logging.getLogger("plmsae")
TENSORS = "state.safetensors"
INFO = "state.json"
SCHEMA_VERSION = 2
NUM_KEPT = 2
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps: named tensors, and JSON-like information."""

    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the newest `NUM_KEPT`.

    Args:
        folder: Folder of the run's checkpoints; made if need be.
        checkpoint: What to write.

    Returns:
        The checkpoint's own folder.
    """
    final = folder / f"{_PREFIX}{checkpoint.step:012d}"
    writing = folder / f".{final.name}"
    for stale in (writing, final):
        shutil.rmtree(stale, ignore_errors=True)
    writing.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, writing / TENSORS)
    info = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "sha256": sha256_file(writing / TENSORS),
        "info": checkpoint.info,
    }
    (writing / INFO).write_text(json.dumps(info, allow_nan=False) + "\n", encoding="utf-8")
    for path in (writing / TENSORS, writing / INFO, writing):
        _sync(path)
    os.rename(writing, final)
    _sync(folder)
    for old in _folders(folder)[NUM_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The valid checkpoint with the highest step, or None; damaged ones are reported and passed over."""
    for path in _folders(folder):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path.name, error)
    return None


def latest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint by name, for messages."""
    found = _folders(folder)
    return int(found[0].name.removeprefix(_PREFIX)) if found else None


def _folders(folder: Path) -> list[Path]:
    """Complete checkpoint folders, newest step first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.name.removeprefix(_PREFIX).isdigit() and path.is_dir()]
    found = [path for path in named if path.name.startswith(_PREFIX)]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)), reverse=True)


def _read(path: Path) -> Checkpoint:
    data: Mapping[str, Any] = json.loads((path / INFO).read_text(encoding="utf-8"))
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"written by another version of plmsae, schema {data['schema_version']}")
    if sha256_file(path / TENSORS) != data["sha256"]:
        raise ValueError(f"the sha256 of {TENSORS} differs")
    return Checkpoint(step=int(data["step"]), tensors=load_file(path / TENSORS), info=dict(data["info"]))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
