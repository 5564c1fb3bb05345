"""Environments of other libraries, from the package registry: each sees this one's packages (torch, transformers,
safetensors) through a `.pth` file; what a library imports beyond them is installed without its dependencies, which
would replace torch.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

SHARED = ("datasets==5.2.0", "dill==0.4.1", "einops==0.8.2", "multiprocess==0.70.19", "xxhash==4.1.0")
PARSING = ("docstring-parser==0.18.0", "simple-parsing==0.1.9")
PACKAGES = {
    "dictionary_learning": (
        "dictionary-learning==0.1.0", *SHARED, "accelerate==1.15.0", "bidict==0.24.1", "nnsight==0.3.7",
        "python-engineio==4.15.1", "python-socketio==5.18.1", "simple-websocket==1.1.0", "wandb==0.31.0",
        "wsproto==1.3.2", "zstandard==0.25.0",
    ),
    "saelens": (
        "sae-lens==6.54.12", *SHARED, *PARSING, "babe==0.0.8", "better-abc==0.0.3", "jaxtyping==0.3.11",
        "nltk==3.10.4", "plotly==7.1.0", "plotly-express==0.4.1", "tenacity==9.2.1", "transformer-lens==2.16.1",
        "typeguard==4.6.0", "wandb==0.31.0",
    ),
    "sparsify": (
        "eai-sparsify==1.3.3", *SHARED, *PARSING, "accelerate==1.15.0", "natsort==8.4.0", "schedulefree==1.4.1",
    ),
}  # fmt: skip


def environment(peer: str, folder: Path) -> Path:
    """Make the environment of a library in a new folder; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, *PACKAGES[peer]], check=True, timeout=900)
    return python


def kept_environment(peer: str, cache: Path) -> Path:
    """As `environment`, of a folder of the cache that is made anew only if what is in it would differ."""
    content = repr((PACKAGES[peer], sys.version, sysconfig.get_path("purelib")))
    folder = cache / f"{peer}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        environment(peer, folder)
        whole.touch()
    return folder / "bin" / "python"
