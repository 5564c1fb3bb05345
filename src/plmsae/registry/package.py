"""The package that travels: a folder with the SAE, its card, its evidence and a manifest; and its MLflow wrapping.

sae.safetensors config.json   the SAE, readable with `plmsae.saes` alone
MODEL_CARD.md                 what it is, what it was trained on, how good it is, how to load it
metrics.json                  every metric of the training and of every evaluation
lineage.json                  parameters, inputs and environment of every stage that went in
latents.parquet concepts.csv  what the latents mean, where the evaluation found it
per_sequence.parquet          fidelity of every test protein, to be compared in pairs when it is evaluated again
manifest.json                 sha256 of all of these
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, write_manifest
from plmsae.registry.card import model_card
from plmsae.registry.evidence import WEIGHTS, Evidence
from plmsae.registry.lineage import LINEAGE_FILE, stage_records

if TYPE_CHECKING:
    from plmsae.saes.config import SaeConfig

SERVED_MODEL = Path(__file__).with_name("served_model.py")
TABLES = ("latents.parquet", "concepts.csv", "per_sequence.parquet")
_SERVING = ("torch", "numpy", "safetensors", "pydantic", "mlflow")


def write_package(folder: Path, evidence: Evidence, config: SaeConfig, name: str, notes: str = "") -> str:
    """Write the package; equal evidence gives equal bytes.

    Args:
        folder: Where to; it must not exist.
        evidence: The verified outputs.
        config: The SAE's configuration.
        name: Registered name, for the card.
        notes: Free text for the card.

    Returns:
        sha256 of its manifest.
    """
    folder.mkdir(parents=True)
    for file in (WEIGHTS, "config.json"):
        shutil.copyfile(evidence.sae_folder / file, folder / file)
    for source in evidence.evaluations.values():
        for table in TABLES:
            if (source / table).is_file():
                shutil.copyfile(source / table, folder / table)
    write_text(folder / "metrics.json", json.dumps(evidence.metrics(), indent=1, sort_keys=True) + "\n")
    record = {"schema_version": 1, "source": evidence.source(), "stages": stage_records(evidence)}
    write_text(folder / LINEAGE_FILE, json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_text(folder / "MODEL_CARD.md", model_card(evidence, config, name, notes))
    manifest = Manifest(
        stage="register",
        kind="sae",
        params={},
        inputs={port: manifest_sha256(path) for port, path in sorted(evidence.folders.items())},
        source_files={},
        environment={"plmsae": evidence.manifests["sae"].environment.get("plmsae", "")},
        files=list_files(folder),
    )
    return write_manifest(folder, manifest)


def write_mlflow_model(folder: Path, package: Path, config: SaeConfig) -> None:
    """Wrap a package as an MLflow model: models-from-code, no pickle, a signature and explicit requirements.

    MLflow writes the absolute paths of the files that it was given into `MLmodel`; they are replaced by the paths
    inside the model.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def tensor(width: int) -> Schema:
        return Schema([TensorSpec(np.dtype("float32"), (-1, width))])

    code = folder.parent / "model.py"
    shutil.copyfile(SERVED_MODEL, code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it would like type hints and an example beside the signature
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(code),
            artifacts={"package": str(package)},
            signature=ModelSignature(tensor(config.d_model), tensor(config.dictionary_size)),
            pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _SERVING],
            metadata={
                "plm": config.plm,
                "plm_revision": config.plm_revision,
                "layer": config.layer,
                "hook": config.hook,
            },
        )
    described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    flavor = described["flavors"]["python_function"]
    flavor["model_code_path"] = code.name
    flavor["artifacts"]["package"]["uri"] = flavor["artifacts"]["package"]["path"]
    write_text(folder / "MLmodel", yaml.safe_dump(described, sort_keys=True))
