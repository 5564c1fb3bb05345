"""Real proteins, the bundled model and SAEs made by hand: everything an evaluation reads, in a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plmsae.activations.blocks import BlockStore
from plmsae.activations.extract import extract
from plmsae.activations.plan import Settings
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import read_sequences, write_annotations, write_sequences
from plmsae.proteins.uniprot import read_uniprot_tsv
from plmsae.saes import SaeConfig, build, save
from plmsae.saes.base import SparseAutoencoder
from tests.workspace import FIXTURE

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
LAYER = 3


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def plm() -> ProteinLM:
    return load_plm("esm_small")


_MADE: dict[str, Path] = {}


def _made(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], None]) -> Path:
    """A folder that is made once: the fixtures are imported into several modules, and each has them as its own."""
    if name not in _MADE:
        folder = factory.mktemp(name)
        make(folder)
        _MADE[name] = folder
    return _MADE[name]


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `ingest` output: every third protein in the same split."""
    return _made("ingest", tmp_path_factory, _ingest)


def _ingest(folder: Path) -> None:
    proteins = list(read_uniprot_tsv(FIXTURE))
    splits = ("train", "valid", "test")
    write_sequences(
        folder,
        {
            "accession": [protein.accession for protein in proteins],
            "offset": [0] * len(proteins),
            "sequence": [protein.sequence for protein in proteins],
            "length": [len(protein.sequence) for protein in proteins],
            "cluster": [protein.accession for protein in proteins],
            "split": [splits[number % 3] for number in range(len(proteins))],
            "name": [protein.name for protein in proteins],
        },
    )
    features = [(protein.accession, feature) for protein in proteins for feature in protein.features]
    columns = {name: [getattr(feature, name) for _, feature in features] for name in features[0][1]._fields}
    write_annotations(
        folder, {"accession": [accession for accession, _ in features], "offset": [0] * len(features), **columns}
    )


def _store(factory: pytest.TempPathFactory, plm: ProteinLM, sequences: Path, layer: int) -> Path:
    def make(folder: Path) -> None:
        settings = Settings(layer=layer, block_rows=512)
        extract(plm, read_sequences(sequences), folder / "out", folder / "parts", settings, sequences_sha256="0" * 64)

    return _made(f"store_of_layer{layer}", factory, make) / "out"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, plm: ProteinLM, sequences: Path) -> Path:
    """Activations of the middle layer."""
    return _store(tmp_path_factory, plm, sequences, LAYER)


@pytest.fixture(scope="session")
def embedding_store(tmp_path_factory: pytest.TempPathFactory, plm: ProteinLM, sequences: Path) -> Path:
    """Activations of layer 0, where a residue's state is a function of its letter."""
    return _store(tmp_path_factory, plm, sequences, 0)


def sae_config(plm: ProteinLM, architecture: str, layer: int, size: int, k: int) -> SaeConfig:
    return SaeConfig(
        architecture=architecture,
        d_model=plm.d_model,
        dictionary_size=size,
        k=k,
        plm=plm.name,
        plm_revision=plm.revision,
        layer=layer,
        hook="residual",
        normaliser={"kind": "rms", "scale": 1.0, "folded": True},
    )


def random_sae(plm: ProteinLM, store: Path, layer: int = LAYER) -> SparseAutoencoder:
    """A TopK SAE with random atoms and measured maxima."""
    sae = build(sae_config(plm, "topk", layer, 256, 16), seed=1).requires_grad_(False)
    rows = torch.cat(list(BlockStore(store, "train").rows(4096)))
    sae.b_dec.copy_(rows.mean(dim=0))
    sae.latent_max.copy_(sae.encode(rows).amax(dim=0))
    return sae


def letter_sae(plm: ProteinLM) -> SparseAutoencoder:
    """At layer 0: latent j is 1 on residues with the j-th letter and 0 elsewhere."""
    embeddings = plm.hidden(plm.tokenize([LETTERS]), 0)
    sae = build(sae_config(plm, "topk", 0, len(LETTERS), 1)).requires_grad_(False)
    sae.W_enc.copy_(torch.linalg.pinv(embeddings.double()).T.float())
    sae.W_dec.copy_(embeddings)
    sae.latent_max.fill_(1.0)
    return sae


def saved(sae: SparseAutoencoder, folder: Path) -> Path:
    """A `train_sae` output with this SAE."""
    save(sae, folder / "sae")
    return folder
