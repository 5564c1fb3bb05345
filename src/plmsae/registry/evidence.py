"""The stage outputs that a version is made from, and what they say about it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.artifacts.checksums import sha256_bytes, sha256_file
from plmsae.artifacts.manifest import Manifest, manifest_sha256
from plmsae.errors import DataError
from plmsae.params import canonical_json, params_sha256
from plmsae.registry.json_files import read_json

if TYPE_CHECKING:
    from plmsae.saes.config import SaeConfig

WEIGHTS = "sae.safetensors"
# What an evaluation wrote for people: the first of them that is there.
READABLE = ("table.csv", "top_residues.csv")


@dataclass(frozen=True)
class Evidence:
    """Verified outputs of the pipeline.

    Attributes:
        folders: Input port of the register stage -> folder: `sequences`, `activations`, `sae` and one per evaluation.
        manifests: Input port -> its manifest.
    """

    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]

    @property
    def sae_folder(self) -> Path:
        """The folder that `plmsae.saes` reads."""
        return self.folders["sae"] / "sae"

    @property
    def evaluations(self) -> dict[str, Path]:
        """Evaluation -> its output folder, in the order of the stage's inputs."""
        return {name: folder for name, folder in self.folders.items() if self.manifests[name].kind == "result"}

    def sha256(self) -> str:
        """Names the evidence: the manifests of the SAE and of every evaluation."""
        ports = {"sae": self.folders["sae"], **self.evaluations}
        return sha256_bytes(canonical_json({port: manifest_sha256(path) for port, path in ports.items()}).encode())

    def sae_sha256(self) -> str:
        """sha256 of the weights."""
        return sha256_file(self.sae_folder / WEIGHTS)

    def evaluation_sha256(self) -> str:
        """Equal for two SAEs whose numbers can be compared.

        It holds the evaluations' parameters, their inputs other than the SAE (data, PLM), and the plmsae version.
        """
        key = {
            name: {
                "params": self.manifests[name].params,
                "inputs": {port: sha for port, sha in self.manifests[name].inputs.items() if port != "sae"},
                "plmsae": self.manifests[name].environment.get("plmsae", ""),
            }
            for name in self.evaluations
        }
        return sha256_bytes(canonical_json(key).encode())

    def metrics(self) -> dict[str, float]:
        """Every metric of the training and of every evaluation, `<stage or evaluation>.<metric>`."""
        sources = {"train_sae": self.folders["sae"], **self.evaluations}
        return {
            f"{source}.{name}": float(value)
            for source, folder in sources.items()
            for name, value in read_json(folder / "metrics.json").items()
        }

    def readable_table(self, evaluation: str) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table that an evaluation wrote for people (`READABLE`); empty if it wrote none.

        Raises:
            DataError: The table cannot be read.
        """
        paths = [self.folders[evaluation] / name for name in READABLE]
        path = next((item for item in paths if item.is_file()), None)
        if path is None:
            return [], []
        try:
            with path.open(newline="", encoding="utf-8") as handle:
                header, *rows = list(csv.reader(handle))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError("the table cannot be read", where=str(path), fix="dvc repro evaluate") from error
        return header, rows

    def tags(self, config: SaeConfig) -> dict[str, str]:
        """What the version's tags say about where it comes from (git is added by the caller)."""
        params = {name: manifest.params for name, manifest in self.manifests.items()}
        source = self.source()
        return {
            "evidence_sha256": self.sha256(),
            "evaluation_sha256": self.evaluation_sha256(),
            "sae_sha256": self.sae_sha256(),
            "sae_manifest_sha256": manifest_sha256(self.folders["sae"]),
            "data_manifest_sha256": manifest_sha256(self.folders["sequences"]),
            "activations_manifest_sha256": manifest_sha256(self.folders["activations"]),
            "params_sha256": params_sha256(params),
            "data_source": str(source.get("source", "")),
            "data_release": str(source.get("release", "")),
            "plm": config.plm,
            "plm_revision": config.plm_revision,
            "layer": str(config.layer),
            "hook": config.hook,
            "architecture": config.architecture,
            "dictionary_size": str(config.dictionary_size),
            "k": str(config.k),
            "seed": str(config.training.get("seed", "")),
            "plmsae_version": self.manifests["sae"].environment.get("plmsae", ""),
        }

    def source(self) -> dict[str, Any]:
        """`source.json` of the sequences: source, release, licence, sha256, num_records."""
        return read_json(self.folders["sequences"] / "source.json")
