"""Outputs of a pipeline as the stages write them, made in milliseconds: real SAE files, tables and manifests."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, read_manifest, write_manifest
from plmsae.plms import load_plm
from plmsae.registry.evidence import Evidence
from plmsae.saes import SaeConfig, build, save
from plmsae.saes.base import SparseAutoencoder

LAYER = 3
FIDELITY = {
    "fvu": 0.31,
    "fvu_low": 0.30,
    "fvu_high": 0.32,
    "l0": 7.5,
    "masked_loss_recovered_mean": 91.25,
    "masked_loss_recovered_mean_low": 90.0,
    "masked_loss_recovered_mean_high": 92.5,
    "num_proteins": 40,
}
CONCEPTS = {"mean_f1_sae": 0.41, "mean_f1_neurons": 0.28, "mean_f1_residue": 0.11, "num_concepts": 3}
TRAINING = {"dead_fraction": 0.02, "fvu": 0.29}
SETTINGS = {"seed": 0}
MORE = {"baselines": {"mean_f1_pca": 0.3}, "amortisation": {"fvu_gap": 0.01}}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def small_sae(seed: int = 0, **changes: Any) -> SparseAutoencoder:
    """A folded SAE on the bundled PLM with generic weights."""
    plm = load_plm("esm_small")
    settings: dict[str, Any] = {
        "architecture": "topk",
        "d_model": plm.d_model,
        "dictionary_size": 64,
        "k": 8,
        "plm": plm.name,
        "plm_revision": plm.revision,
        "layer": LAYER,
        "hook": "residual",
        "normaliser": {"kind": "rms", "scale": 1.0, "folded": True},
        "training": {"steps": 10, "seed": seed, "tokens": 1000},
    }
    sae = build(SaeConfig(**{**settings, **changes}), seed=seed)
    with torch.no_grad():
        sae.latent_max.copy_(torch.linspace(0.0, 4.0, sae.config.dictionary_size))
    return sae


def write_outputs(
    root: Path,
    *,
    seed: int = 0,
    fidelity: Mapping[str, float] = FIDELITY,
    concepts: Mapping[str, float] = CONCEPTS,
    data: str = "MKV",
    settings: Mapping[str, Any] = SETTINGS,
    plmsae: str = "0.1.0",
    sae: SparseAutoencoder | None = None,
    more: Sequence[str] = tuple(MORE),
) -> Evidence:
    """Write `outputs/` below `root` and return them as evidence.

    `data` stands for the proteins, `settings` are the parameters of the fidelity evaluation, `plmsae` evaluated it;
    `more` are evaluations beside fidelity and concepts.
    """
    base = root / "outputs"
    folders = {
        "sequences": base / "ingest",
        "activations": base / "extract_activations",
        "sae": base / "train_sae",
        "fidelity": base / "evaluate" / "fidelity",
        "concepts": base / "evaluate" / "concepts",
        **{name: base / "evaluate" / name for name in more},
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    source = {"source": "UniProtKB/Swiss-Prot", "release": "2025_04", "licence": "CC BY 4.0", "sha256": data}
    _write(folders["sequences"] / "source.json", json.dumps(source))
    _finish(folders["sequences"], "ingest", "sequences", {}, {"num_proteins": 3}, {"seed": 0})
    sequences = manifest_sha256(folders["sequences"])
    _finish(
        folders["activations"], "extract_activations", "activations", {"sequences": sequences}, {}, {"layer": LAYER}
    )
    activations = manifest_sha256(folders["activations"])

    save(sae or small_sae(seed), folders["sae"] / "sae")
    _write(folders["sae"] / "curves.csv", "step,loss,fvu,dead_fraction\n0,9.5,0.9,\n10,3.25,0.3,0.02\n")
    _figure(folders["sae"] / "figures" / "curves.png")
    _finish(folders["sae"], "train_sae", "sae", {"activations": activations}, TRAINING, {"k": 8, "seed": seed})
    trained = manifest_sha256(folders["sae"])

    inputs = {"sequences": sequences, "activations": activations, "sae": trained}
    _write(
        folders["fidelity"] / "fidelity.csv",
        "protocol,per,quantity,value,low,high\n"
        "masked,token,ce_clean,2.5,2.4,2.6\nmasked,token,loss_recovered_mean,91.25,90,92.5\n"
        "unmasked,token,ce_clean,0.5,0.4,0.6\nmasked,sequence,ce_clean,2.51,2.4,2.6\n",
    )
    _figure(folders["fidelity"] / "figures" / "fidelity.png")
    _finish(folders["fidelity"], "evaluate@fidelity", "result", inputs, fidelity, dict(settings), plmsae)
    concept_table().to_csv(folders["concepts"] / "concepts.csv", index=False)
    latent_table().to_parquet(folders["concepts"] / "latents.parquet", index=False)
    _finish(folders["concepts"], "evaluate@concepts", "result", inputs, dict(concepts), {"seed": 0})
    for name in more:
        _write(folders[name] / "table.csv", f"what,SAE,PCA\n{name} | measured,0.5,none\n")
        _finish(folders[name], f"evaluate@{name}", "result", inputs, MORE[name], {"seed": 0})
    return Evidence(folders=folders, manifests={port: read_manifest(folder) for port, folder in folders.items()})


def concept_table() -> pd.DataFrame:
    """Three concepts, three methods, in the form of the concept evaluation."""
    f1 = {
        "Zinc finger <C2H2>": {"sae": 0.92, "neurons": 0.55, "residue": 0.3},
        "Active site": {"sae": 0.4, "neurons": 0.45, "residue": 0.2},
        "Never found": {"sae": 0.0, "neurons": 0.1, "residue": 0.1},
    }
    rows = [
        {
            "concept": concept,
            "method": method,
            "latent": None if value == 0 else 5,
            "threshold": None if value == 0 else 0.5,
            "f1_test": value,
            "ci_low": value - 0.01,
            "ci_high": value + 0.01,
            "f1_residue": scores["residue"],
            "beats_residue": method == "sae" and value > scores["residue"],
        }
        for concept, scores in f1.items()
        for method, value in scores.items()
    ]
    return pd.DataFrame(rows)


def latent_table() -> pd.DataFrame:
    """Latent 5 has a name; 6 fails on test, 7 on validation, 8 is no better than the letter; 5's second is no name."""
    columns = ["latent", "rank", "concept", "threshold", "f1_valid", "f1_test", "f1_residue"]
    return pd.DataFrame(
        [
            [5, 1, "Zinc finger <C2H2>", 0.5, 0.9, 0.92, 0.3],
            [5, 2, "Active site", 0.5, 0.8, 0.8, 0.3],
            [6, 1, "Active site", 0.5, 0.9, 0.4, 0.2],
            [7, 1, "Active site", 0.5, 0.4, 0.9, 0.2],
            [8, 1, "Active site", 0.5, 0.9, 0.9, 0.95],
        ],
        columns=columns,
    )


def _finish(
    folder: Path,
    stage: str,
    kind: str,
    inputs: dict[str, str],
    metrics: Mapping[str, float],
    params: dict[str, Any],
    plmsae: str = "0.1.0",
) -> None:
    _write(folder / "metrics.json", json.dumps(dict(metrics), sort_keys=True))
    _write(folder / "summary.md", f"What {stage} found & wrote.\n")
    manifest = Manifest(
        stage=stage,
        kind=kind,
        params=params,
        inputs=inputs,
        source_files={},
        environment={"plmsae": plmsae},
        files=list_files(folder),
    )
    write_manifest(folder, manifest)


def _figure(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(PNG)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
