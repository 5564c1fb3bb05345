"""An evaluation that reads rows of the store gets the same from a bucket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from plmsae.activations.extract import extract
from plmsae.activations.metadata import read_metadata
from plmsae.activations.plan import Settings
from plmsae.artifacts.s3 import S3Uri
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.units import neurons
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import read_sequences
from tests.evaluation.conftest import LAYER, random_sae, saved
from tests.s3server import S3Server


def test_neurons_are_those_of_a_local_store(
    plm: ProteinLM, sequences: Path, store: Path, s3: S3Server, tmp_path: Path
) -> None:
    settings = Settings(layer=LAYER, block_rows=512)
    place = S3Uri.parse(f"s3://{s3.bucket()}/stores")
    table, remote = read_sequences(sequences), tmp_path / "remote"
    extract(plm, table, remote, tmp_path / "parts", settings, sequences_sha256="0" * 64, store=place)
    assert read_metadata(remote).location is not None
    inputs = Inputs.load(sequences, store, saved(random_sae(plm, store), tmp_path / "sae"), root=tmp_path)
    assert torch.equal(neurons(replace(inputs, store=remote)).latent_max, neurons(inputs).latent_max)
