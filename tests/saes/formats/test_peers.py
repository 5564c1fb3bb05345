"""Formats against the libraries themselves: each installed in an environment of its own, from the package registry.

Our exports are loaded by the library's own loader, and what it computes on x is compared with what ours computes; SAEs
that the library made and saved are imported, and compared with what its own loader makes of them. `peers/*.py` is what
runs there, in the environments of `environments.py`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats import export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import LAYER_NORM, TOKEN_RMS, TOLD, Draw
from tests.saes.formats.environments import PACKAGES, environment

pytestmark = [pytest.mark.long]
EXPORTED = {
    "dictionary_learning": (
        "relu", "l1_april", "topk", "random", "batch_topk", "matryoshka", "jump_relu", "gated",
    ),
    "saelens": ("relu", "l1_april", "topk", "random", "batch_topk", "matryoshka", "jump_relu", "gated"),
    "sparsify": ("topk", "random"),
}  # fmt: skip
TOLERANCE = 1e-5
THEIR_SCALE = {"dictionary_learning": 7.5, "saelens": 1.0, "sparsify": 1.0}


def exports(peer: str) -> dict[str, SparseAutoencoder]:
    """What is written for a library, by name."""
    saes = {name: generic_sae(name).folded(2.5) for name in EXPORTED[peer]}
    if peer == "saelens":
        for normaliser in (LAYER_NORM, TOKEN_RMS):
            for name in EXPORTED[peer]:
                saes[f"{name}-{normaliser['kind']}"] = generic_sae(name, normaliser=normaliser)
    return {name: sae.requires_grad_(False) for name, sae in saes.items()}


def told(peer: str, name: str, norm_factor: float | None) -> dict[str, Any]:
    if peer == "saelens":
        return {**TOLD, "normaliser": None}
    if name.endswith("-normalised"):
        return {**TOLD, "normaliser": {"kind": "rms", "scale": norm_factor, "folded": True}}
    return TOLD


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of an entry, for wanted entries of size 1."""
    return float((found - wanted).abs().max() / wanted.square().mean().sqrt().clamp_min(1.0))


@pytest.mark.parametrize("peer", sorted(PACKAGES))
def test_the_library_and_we_compute_the_same_both_ways(peer: str, tmp_path: Path) -> None:
    python = environment(peer, tmp_path / "environment")
    exchange = tmp_path / "exchange"
    (exchange / "ours").mkdir(parents=True)
    x = Draw(7)(256, 12, scale=1.0) + 0.3
    theirs_x = THEIR_SCALE[peer] * x
    save_file({"x": x, "theirs": theirs_x}, exchange / "x.safetensors")
    ours = exports(peer)
    for name, sae in ours.items():
        export_sae(sae, exchange / "ours" / name, peer)
    script = Path(__file__).parent / "peers" / f"{peer}.py"
    # A script's own folder comes first on the path, and this one holds files named like the libraries.
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    variables = {**os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([python, "-W", "ignore", "-c", code], cwd=exchange, check=True, timeout=900, env=variables)
    answers = load_file(exchange / "answers.safetensors")
    norm_factor = float(answers.pop("norm_factor")) if "norm_factor" in answers else None
    largest: dict[str, float] = {}
    for name, sae in ours.items():
        largest[f"ours/{name}"] = difference(answers[f"ours/{name}/x_hat"], sae(x))
        assert_latents(sae.encode(x), answers[f"ours/{name}/z"], sae, name)
    for folder in sorted((exchange / "theirs").iterdir()):
        sae = import_sae(folder, peer, **told(peer, folder.name, norm_factor))
        largest[f"theirs/{folder.name}"] = difference(sae(theirs_x), answers[f"theirs/{folder.name}/x_hat"])
    print(f"\n{peer}: {len(largest)} SAEs, largest difference {max(largest.values()):.2g}")
    wrong = {name: value for name, value in largest.items() if value > TOLERANCE}
    assert not wrong
    assert len(answers) == 2 * len(largest)


def assert_latents(found: Tensor, theirs: Tensor, sae: SparseAutoencoder, name: str) -> None:
    """Equal, up to the atoms' norms, which libraries may move between latent and atom."""
    norms = sae.atoms.norm(dim=1)
    same = difference(found, theirs) <= TOLERANCE or difference(found * norms, theirs) <= TOLERANCE
    assert same, name
