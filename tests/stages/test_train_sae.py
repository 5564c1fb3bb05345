"""The stage on a small store of synthetic activations, through the wrapper as in a pipeline."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from plmsae.activations.extract import extract
from plmsae.activations.metadata import Normaliser, StoreMetadata, read_metadata, write_metadata
from plmsae.activations.places import write_stores
from plmsae.activations.plan import Settings
from plmsae.activations.writer import write_chunks, write_index
from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, write_manifest
from plmsae.errors import DataError, UserError
from plmsae.params import validate
from plmsae.plms import load_plm
from plmsae.saes import load_folder
from plmsae.stages.execute import execute
from plmsae.stages.train_sae import STAGE
from plmsae.training.parameters import TrainSaeParams
from tests.activations.conftest import write_model
from tests.training.streams import activations

SCALE = 40.0
SMALL: dict[str, Any] = {
    "expansion_factor": 4,
    "k": 6,
    "tokens": 40_000,
    "batch_size": 256,
    "learning_rate": 0.003,
    "warmup_steps": 10,
    "validate_every": 30,
    "num_valid_rows": 500,
    "checkpoint_every": 50,
    "threads": 1,
    "device": "cpu",
}


def make_store(folder: Path, train: Tensor, valid: Tensor) -> Path:
    for split, x in (("train", train), ("valid", valid)):
        index = write_chunks(folder / split, x, torch.randperm(len(x), generator=torch.Generator().manual_seed(0)), 256)
        write_index(folder / split, [index])
    metadata = StoreMetadata(
        plm="esm_small",
        plm_revision="sha256:ab",
        layer=4,
        hook="residual",
        dtype="float32",
        d_model=train.shape[1],
        block_rows=256,
        num_tokens={"train": len(train), "valid": len(valid)},
        normaliser=Normaliser(scale=SCALE),
        sequences_sha256="cd" * 32,
    )
    write_metadata(folder, metadata)
    write_manifest(
        folder,
        Manifest(
            stage="extract_activations",
            kind="activations",
            params={},
            inputs={},
            source_files={},
            environment={},
            files=list_files(folder),
        ),
    )
    return folder


@pytest.fixture(scope="module")
def raw() -> tuple[Tensor, Tensor]:
    return SCALE * activations(6000), SCALE * activations(1500, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, raw: tuple[Tensor, Tensor]) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), *raw)


def run(root: Path, store: Path, **changes: object) -> Path:
    params = validate(TrainSaeParams, {**SMALL, **changes}, section="train_sae")
    untracked = dataclasses.replace(STAGE, tracked=False)  # what goes to MLflow is tested with the registry
    execute(untracked, params, root=root, inputs={"activations": store})
    return root / "outputs" / "train_sae"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    return run(tmp_path_factory.mktemp("run"), store)


def test_metrics_are_those_of_the_written_sae_on_raw_held_out_rows(output: Path, raw: tuple[Tensor, Tensor]) -> None:
    metrics = json.loads((output / "metrics.json").read_text())
    sae, valid = load_folder(output / "sae"), raw[1]
    sae.check_source("esm_small", "sha256:ab", 4, "residual")
    x, x_hat = valid.double(), sae(valid).double()
    fvu = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    assert metrics["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert fvu < 0.35
    assert metrics["l0"] == pytest.approx(float((sae.encode(valid) > 0).sum(1).double().mean()), abs=0.01)
    assert metrics["num_tokens"] == 1500
    assert metrics["training_tokens"] == 157 * 256
    for name in ("cosine", "l2_ratio", "relative_reconstruction_bias", "dead_fraction", "loss", "train_fvu"):
        assert 0 <= metrics[name] < 2


def test_the_maxima_are_over_the_training_rows(output: Path, raw: tuple[Tensor, Tensor]) -> None:
    sae = load_folder(output / "sae")
    torch.testing.assert_close(sae.latent_max, sae.encode(raw[0]).amax(0), rtol=1e-4, atol=1e-3)
    assert float(sae.latent_max.max()) > 1  # raw units


def test_the_configuration_records_where_it_comes_from(output: Path, store: Path) -> None:
    config = load_folder(output / "sae").config
    assert (config.dictionary_size, config.k, config.d_model) == (64, 6, 16)
    assert config.normaliser == {"kind": "rms", "scale": SCALE, "folded": True}
    record = config.training
    assert record["activations_manifest_sha256"] == manifest_sha256(store)
    assert record["sequences_sha256"] == "cd" * 32
    assert (record["seed"], record["threads"], record["kernel"], record["steps"]) == (0, 1, "auto", 157)
    card = (output / "sae" / "MODEL_CARD.md").read_text()
    for fact in ("esm_small", "sha256:ab", "layer 4", "6,000 residues", "1,500 residues of held-out", "1/40"):
        assert fact in card


def test_tables_and_figures(output: Path) -> None:
    with (output / "curves.csv").open() as handle:
        curves = list(csv.DictReader(handle))
    assert [int(row["step"]) for row in curves] == [30, 60, 90, 120, 150, 157]
    assert float(curves[-1]["valid_fvu"]) < float(curves[0]["valid_fvu"])
    with (output / "density.csv").open() as handle:
        density = list(csv.DictReader(handle))
    metrics = json.loads((output / "metrics.json").read_text())
    assert sum(int(row["num_latents"]) for row in density) == round(64 * (1 - metrics["dead_fraction"]))
    for plot in STAGE.plots:
        rows = curves if plot.file == "curves.csv" else density
        assert {plot.x, *plot.y} <= set(rows[0])
    for name in ("curves", "density"):
        assert (output / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_another_folder_gives_the_same_bytes_and_nothing_else_is_written(
    output: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = run(tmp_path, store)
    first, second = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (output, again)
    )
    assert first == second
    assert str(tmp_path).encode() not in b"".join(second.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".plmsae", "outputs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topp"}, "did you mean 'topk'"),
        ({"architecture": "neurons"}, "unknown architecture"),
        ({"dictionary_size": 100}, "one of expansion_factor and dictionary_size"),
        ({"expansion_factor": None}, "one of expansion_factor and dictionary_size"),
        ({"expansion_factor": None, "dictionary_size": 5}, "k = 6 is larger than the dictionary of 5"),
        ({"k": 65}, "k = 65 is larger than the dictionary of 64"),
        ({"aux_k": 65}, "aux_k = 65 is larger"),
        ({"k": 6.0}, "train_sae.k"),
        ({"penalty": 0.1}, "penalty is for gated, jump_relu, l1_april, relu; with topk set it to null"),
        ({"preset": "dictionary_leraning"}, "did you mean 'dictionary_learning'"),
        (
            {"preset": "interplm", "architecture": "gated"},
            "preset 'interplm' has no gated; it has batch_topk, jump_relu",
        ),
        (
            {"preset": "dictionary_learning", "warmup_steps": None},
            "warm-up of 1,000 steps, and this training 157 steps",
        ),
        ({"reconstruction": "unsquared"}, "reconstruction is for relu; with topk set it to null"),
        ({"architecture": "relu", "aux_alpha": 0.1}, "aux_alpha is for batch_topk, matryoshka, topk; with relu"),
        ({"architecture": "relu", "threshold_learning_rate": 0.1}, "threshold_learning_rate is for jump_relu"),
        ({"architecture": "jump_relu", "l0_control": "controller"}, "give target_l0 as well"),
        ({"penalty_warmup_fraction": 0.1}, "penalty_warmup_fraction is for gated, jump_relu, l1_april, relu"),
        ({"adam_beta1": 1.0}, "train_sae.adam_beta1"),
        ({"clip_norm": -1.0}, "train_sae.clip_norm"),
        ({"architecture": "relu", "aux_k": 3}, "aux_k is for batch_topk, matryoshka, topk; with relu"),
        ({"architecture": "relu", "penalty": -0.1}, "train_sae.penalty"),
        ({"architecture": "jump_relu", "initial_threshold": -0.1}, "train_sae.initial_threshold"),
        ({"architecture": "relu", "anneal_fraction": 0.1}, "anneal_fraction is for batch_topk, matryoshka, topk"),
        ({"resample_steps": [10, 5]}, "steps must ascend"),
        ({"resample_steps": [0]}, "steps must ascend"),
        ({"group_fractions": "power_law"}, "group_fractions is for matryoshka"),
        ({"architecture": "matryoshka", "group_fractions": [0.5, 0.4]}, "sum to 1"),
        ({"architecture": "matryoshka", "group_fractions": [0.01, 0.99]}, r"group_sizes = \[0, 64\]"),
        ({"architecture": "matryoshka", "group_fractions": "powerlaw"}, "train_sae.group_fractions"),
        ({"architecture": "batch_topk", "k": 65}, "k = 65 is larger than the dictionary of 64"),
        ({"learnig_rate": 0.1}, "did you mean 'learning_rate'"),
    ],
)
def test_parameters_that_cannot_work_are_refused_before_any_training(
    store: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, store, **changes)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("architecture", "changes", "l0"),
    [
        ("batch_topk", {}, (5.5, 6.5)),
        ("matryoshka", {"group_fractions": [0.1, 0.3, 0.6]}, (5.5, 6.5)),
        ("relu", {"penalty": 0.1}, (2, 32)),
        ("l1_april", {"penalty": 0.1}, (2, 32)),
        (
            "jump_relu",
            {"target_l0": 8, "l0_control": "controller", "penalty": 1e-3, "bandwidth": 0.1, "initial_threshold": 0.05},
            (7, 9),
        ),
        ("gated", {"penalty": 0.05}, (2, 32)),
    ],
)
def test_every_other_architecture(
    store: Path,
    tmp_path: Path,
    raw: tuple[Tensor, Tensor],
    architecture: str,
    changes: dict[str, Any],
    l0: tuple[float, float],
) -> None:
    output = run(tmp_path, store, architecture=architecture, **changes)
    metrics = json.loads((output / "metrics.json").read_text())
    sae, valid = load_folder(output / "sae"), raw[1]
    assert sae.config.architecture == architecture
    fvu = float((valid - sae(valid)).square().sum() / (valid - valid.mean(0)).square().sum())
    assert metrics["fvu"] == pytest.approx(fvu, rel=1e-3)
    assert fvu < 0.5
    assert l0[0] <= metrics["l0"] <= l0[1]
    norms = sae.atoms.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert sae.config.k == (6 if architecture in ("batch_topk", "matryoshka") else 64)
    record = sae.config.training
    assert ("penalty_warmup_steps" in record) == ("penalty" in changes)
    if "penalty" in changes:
        with (output / "curves.csv").open() as handle:
            weights = [float(row["penalty"]) for row in csv.DictReader(handle)]
        assert record["penalty"] == metrics["penalty"] == weights[-1]
        assert (len({*weights}) == 1) == ("target_l0" not in changes)  # a controller changes it
    if architecture == "matryoshka":
        assert (
            metrics["fvu_prefix_1"] > metrics["fvu_prefix_2"] > metrics["fvu_prefix_3"] == pytest.approx(fvu, rel=1e-3)
        )
        assert sae.config.options["group_sizes"] == [6, 19, 39]


def test_a_preset_through_the_stage(
    store: Path, tmp_path: Path, raw: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """Everything left null, but for a rate that learns something in so few steps."""
    changes = dict.fromkeys(("batch_size", "warmup_steps"))
    with caplog.at_level("INFO", logger="plmsae"):
        output = run(tmp_path, store, architecture="relu", preset="interplm", **changes, learning_rate=0.01)
    sae, metrics = load_folder(output / "sae"), json.loads((output / "metrics.json").read_text())
    wanted = {
        "preset": "interplm", "batch_size": 2048, "steps": 20, "warmup_steps": 1.0, "decay_steps": 10,
        "penalty_warmup_steps": 1, "penalty": 0.06, "clip_first": True, "clip_norm": 1.0, "center": "zero",
        "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, "warmup_from_zero": True,
    }  # fmt: skip
    assert {name: sae.config.training[name] for name in wanted} == wanted
    assert sae.config.options["reconstruction"] == "unsquared"
    assert '"preset": "interplm"' in caplog.text
    assert 0 < metrics["fvu"] < 1.0


def test_an_april_sae_by_dictionary_learning_is_a_plain_one_when_exported(
    store: Path, tmp_path: Path, raw: tuple[Tensor, Tensor]
) -> None:
    given = {"penalty_warmup_fraction": 0.05, "penalty": 0.05}
    output = run(tmp_path, store, architecture="l1_april", preset="dictionary_learning", **given)
    sae, metrics = load_folder(output / "sae"), json.loads((output / "metrics.json").read_text())
    assert dict(sae.config.options) == {"penalty": 0.05}
    fvu = float((raw[1] - sae(raw[1])).square().sum() / (raw[1] - raw[1].mean(0)).square().sum())
    assert metrics["fvu"] == pytest.approx(fvu, rel=1e-3)
    assert fvu < 0.5


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """Activations of two places: layer 2 first, and the store of layer 4."""
    folder = tmp_path_factory.mktemp("two")
    make_store(folder / "layer2.residual", SCALE * activations(600, seed=2), SCALE * activations(300, seed=3))
    shutil.copytree(store, folder / "layer4.residual")
    for name, layer in (("layer2.residual", 2), ("layer4.residual", 4)):
        (folder / name / "manifest.json").unlink()
        metadata = read_metadata(folder / name).model_copy(update={"layer": layer})
        write_metadata(folder / name, metadata)
    write_stores(folder, [(2, "residual"), (4, "residual")])
    manifest = Manifest(
        stage="extract_activations", kind="activations", params={}, inputs={}, source_files={}, environment={},
        files=list_files(folder),
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def test_one_of_several_places(two_stores: Path, output: Path, tmp_path: Path) -> None:
    chosen = run(tmp_path, two_stores, layer=4)
    sae, alone = load_folder(chosen / "sae"), load_folder(output / "sae")
    assert sae.config.layer == 4
    assert all(torch.equal(sae.state_dict()[name], value) for name, value in alone.state_dict().items())
    assert sae.config.training["activations_manifest_sha256"] == manifest_sha256(two_stores)


def test_the_first_place_unless_one_is_named(two_stores: Path, tmp_path: Path) -> None:
    chosen = run(tmp_path, two_stores, tokens=2000, checkpoint_every=5, num_valid_rows=100)
    assert load_folder(chosen / "sae").config.layer == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": 3}, "of layer 2 (residual), layer 4 (residual); none is of layer 3"),
        ({"layer": 4, "hook": "mlp"}, "none is of layer 4 and hook mlp"),
    ],
)
def test_a_place_that_was_not_extracted(two_stores: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, two_stores, **changes)
    assert words in str(caught.value)


def test_the_only_place_is_not_the_one_asked_for(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_sae.layer is 3; the activations are of layer 4"):
        run(tmp_path, store, layer=3)


def test_a_gpu_that_is_not_there(store: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="device 'cuda' is not available"):
        run(tmp_path, store, device="cuda")


def test_activations_with_nan_leave_nothing_behind(raw: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    train = raw[0].clone()
    train[4000, 3] = float("nan")
    bad = make_store(tmp_path / "store", train, raw[1])
    with pytest.raises(DataError, match="1 of 256 activation rows hold NaN"):
        run(tmp_path / "run", bad)
    assert not (tmp_path / "run" / "outputs").exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small model, a table of sequences and their store."""
    root = tmp_path_factory.mktemp("tiny")
    write_model(root / "lm")
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 120, 60)
    table = pd.DataFrame(
        {
            "accession": [f"P{i:05d}" for i in range(60)],
            "sequence": ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths],
            "split": ["train"] * 48 + ["valid"] * 12,
        }
    )
    table.to_parquet(root / "sequences.parquet")
    settings = Settings(layer=1, block_rows=64, shuffle_pool_rows=1000)
    plm = load_plm(str(root / "lm"))
    extract(plm, table, root / "store", root / "parts", settings, sequences_sha256="0" * 64)
    described = Manifest(
        stage="extract_activations",
        kind="activations",
        params={},
        inputs={},
        source_files={},
        environment={},
        files=list_files(root / "store"),
    )
    write_manifest(root / "store", described)
    return root


def test_on_the_fly_reaches_the_fvu_of_the_stored_rows(tiny: Path, tmp_path: Path) -> None:
    file = tiny / "sequences.parquet"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    changes = {"expansion_factor": 8, "k": 4, "num_valid_rows": 10_000}
    found = []
    for name, more in (
        ("stored", {}),
        ("live", {"sequences": str(file), "sequences_sha256": sha256, "num_workers": 1}),
    ):
        output = run(tmp_path / name, tiny / "store", **changes, **more)
        found.append((json.loads((output / "metrics.json").read_text()), load_folder(output / "sae").config.training))
    (stored, _), (live, record) = found
    assert live["fvu"] == pytest.approx(stored["fvu"], rel=0.05)
    assert live["fvu"] != stored["fvu"]  # another order
    assert live["training_epochs"] == stored["training_epochs"]
    assert record["train_sequences_sha256"] == sha256


def test_sequences_that_cannot_be_used(tiny: Path, tmp_path: Path) -> None:
    file = tiny / "store" / "store.json"
    with pytest.raises(UserError, match="does not say which bytes"):
        run(tmp_path, tiny / "store", sequences=str(file), k=4)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="is not a table of proteins with the columns") as caught:
        run(tmp_path, tiny / "store", sequences=str(file), sequences_sha256=sha256, k=4)
    assert caught.value.where == "train_sae.sequences"
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path, tiny / "store", sequences="nothing", sequences_sha256=sha256, k=4)
