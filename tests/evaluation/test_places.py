"""Evaluation and steering take the store that the SAE belongs to where an extraction has several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plmsae.activations.extract import extract
from plmsae.activations.plan import Settings
from plmsae.errors import UserError
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.units import neurons
from plmsae.plms.base import Place, ProteinLM
from plmsae.proteins.tables import read_sequences
from plmsae.steering.inputs import load_source
from tests.evaluation.conftest import LAYER, random_sae, saved


@pytest.fixture(scope="module")
def several(plm: ProteinLM, sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    extract(
        plm,
        read_sequences(sequences),
        folder / "out",
        folder / "parts",
        Settings(layer=1, block_rows=512),
        also=[Place(LAYER, "residual")],
        sequences_sha256="0" * 64,
    )
    return folder / "out"


def test_the_store_of_the_sae(plm: ProteinLM, sequences: Path, store: Path, several: Path, tmp_path: Path) -> None:
    sae = saved(random_sae(plm, store), tmp_path)
    ours, single = (Inputs.load(sequences, folder, sae, root=tmp_path) for folder in (several, store))
    assert ours.store == several / f"layer{LAYER}.residual"
    assert torch.equal(ours.mean, single.mean)
    assert torch.equal(neurons(ours).latent_max, neurons(single).latent_max)
    assert load_source(several, sae, root=tmp_path).plm.name == plm.name


def test_an_sae_of_another_place(plm: ProteinLM, sequences: Path, store: Path, several: Path, tmp_path: Path) -> None:
    sae = saved(random_sae(plm, store, layer=2), tmp_path)
    for load in (
        lambda: Inputs.load(sequences, several, sae, root=tmp_path),
        lambda: load_source(several, sae, root=tmp_path),
    ):
        with pytest.raises(UserError) as caught:
            load()
        assert f"layer 1 (residual), layer {LAYER} (residual); none is of layer 2" in str(caught.value)
