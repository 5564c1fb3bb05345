"""The stage through the wrapper: outputs, metrics, equal bytes, and what a user gets wrong."""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, verify, write_manifest
from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.params import validate
from plmsae.stages.execute import execute
from plmsae.stages.extract_activations import STAGE, ExtractActivationsParams
from tests.activations.conftest import huge_tryptophan, write_model

SMALL = {"layer": 2, "block_rows": 128, "max_tokens_per_batch": 512, "shuffle_pool_rows": 600, "threads": 1}


def write_output(folder: Path, stage: str, kind: str) -> None:
    manifest = Manifest(
        stage=stage, kind=kind, params={}, inputs={}, source_files={}, environment={}, files=list_files(folder)
    )
    write_manifest(folder, manifest)


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 90, 24).astype(np.int32)
    ingest = tmp_path / "outputs" / "ingest"
    ingest.mkdir(parents=True)
    pd.DataFrame(
        {
            "accession": [f"P{i:05d}" for i in range(24)],
            "offset": np.zeros(24, dtype=np.int32),
            "sequence": ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths],
            "length": lengths,
            "cluster": [f"P{i:05d}" for i in range(24)],
            "split": ["train"] * 16 + ["valid"] * 4 + ["test"] * 4,
            "name": "",
        }
    ).to_parquet(ingest / "sequences.parquet")
    write_output(ingest, "ingest", "sequences")
    report = tmp_path / "outputs" / "validate"
    report.mkdir()
    (report / "results.json").write_text("{}")
    write_output(report, "validate", "report")
    return tmp_path


def run(root, **changes):
    params = validate(ExtractActivationsParams, {**SMALL, **changes}, section="extract_activations")
    return execute(STAGE, params, root=root)


def test_store_and_metrics(root):
    result = run(root)
    folder = root / "outputs" / "extract_activations"
    assert verify(folder).kind == "activations"
    sequences = pd.read_parquet(root / "outputs" / "ingest" / "sequences.parquet")
    residues = sequences.groupby("split")["length"].sum()
    store = json.loads((folder / "store.json").read_text())
    assert store["num_tokens"] == {"train": residues["train"], "valid": residues["valid"]}
    assert store["plm"] == "esm_small"
    assert store["plm_revision"].startswith("sha256:")
    assert store["sequences_sha256"] == verify(root / "outputs/ingest").files["sequences.parquet"].sha256
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["num_tokens_train"] == residues["train"]
    assert metrics["num_proteins_valid"] == 4
    assert metrics["normaliser_scale"] == store["normaliser"]["scale"] > 0
    assert 1e-3 < metrics["relative_rounding_error"] < 4e-3
    assert 0 < metrics["centred_fraction"] < 1
    assert "16 train proteins" in result.summary
    assert "esm_small" in result.summary
    assert not {name for name in (*store, *metrics) if "mask" in name}
    assert not any((root / ".plmsae" / "checkpoints").iterdir())


def test_equal_inputs_give_equal_bytes(root):
    run(root)
    first = manifest_sha256(root / "outputs" / "extract_activations")
    run(root)
    assert manifest_sha256(root / "outputs" / "extract_activations") == first
    run(root, seed=1)
    assert manifest_sha256(root / "outputs" / "extract_activations") != first


def test_defaults_fit_the_bundled_model(root):
    params = ExtractActivationsParams()
    assert (params.plm, params.layer, params.hook, params.dtype) == ("esm_small", 4, "residual", "bfloat16")
    execute(STAGE, params, root=root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plm": "esm_tiny"}, "unknown PLM 'esm_tiny'"),
        ({"layer": 40}, "'esm_small' has no layer 40"),
        ({"hook": "mpl"}, "'esm_small' has no hook 'mpl'"),
        ({"plm_revision": "sha256:12"}, "not sha256:12"),
        ({"plm": "./nowhere"}, "PLM folder './nowhere' does not exist"),
    ],
)
def test_what_a_user_gets_wrong(root, changes, words):
    with pytest.raises(UserError) as caught:
        run(root, **changes)
    assert words in str(caught.value)
    assert not (root / "outputs" / "extract_activations").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layr": 3}, "did you mean 'layer'"),
        ({"layer": "3"}, "extract_activations.layer"),
        ({"layer": -1}, "extract_activations.layer"),
        ({"dtype": "int4"}, "extract_activations.dtype"),
        ({"non_finite": "zero"}, "extract_activations.non_finite"),
        ({"block_rows": 0}, "extract_activations.block_rows"),
        ({"threads": 0}, "extract_activations.threads"),
        ({"also": [{"layer": 2}]}, "layer 2 (residual) stands twice"),
        ({"also": [{"layr": 2}]}, "extract_activations.also.0.layr"),
        ({"share": "3/2", "shared": "x"}, "write I/N"),
        ({"share": "0/2", "shared": "x"}, "write I/N"),
        ({"share": "1/2"}, "give store (s3://...) or shared (a folder)"),
    ],
)
def test_parameters_are_checked(root, changes, words):
    with pytest.raises(UserError) as caught:
        run(root, **changes)
    assert words in str(caught.value)


@pytest.fixture
def overflowing(root):
    """Parameters under which every W, and nothing else, overflows; 8 of the proteins have one at residue 5."""
    huge_tryptophan(write_model(root / "lm"))
    path = root / "outputs" / "ingest" / "sequences.parquet"
    sequences = pd.read_parquet(path)
    letters = sequences["sequence"].str.replace("W", "F")
    sequences["sequence"] = [f"{text[:4]}W{text[5:]}" if i % 3 == 1 else text for i, text in enumerate(letters)]
    sequences.to_parquet(path)
    write_output(root / "outputs" / "ingest", "ingest", "sequences")
    return {"plm": "./lm", "layer": 0, "dtype": "float16"}


def test_values_that_are_not_finite_are_refused_by_name(root, overflowing):
    with pytest.raises(DataError) as caught:
        run(root, **overflowing)
    assert caught.value.exit_code == 3
    assert "on 1 of" in str(caught.value)
    accession, _, residue = str(caught.value.where).partition(", ")
    assert (int(accession[1:]) % 3, residue) == (1, "residue 5")
    assert not (root / "outputs" / "extract_activations").exists()


def test_or_masked_counted_and_named(root, overflowing):
    result = run(root, **overflowing, non_finite="mask")
    folder = root / "outputs" / "extract_activations"
    assert (result.metrics["num_masked_train"], result.metrics["num_masked_valid"]) == (5, 2)
    assert json.loads((folder / "store.json").read_text())["num_masked"] == {"train": 5, "valid": 2}
    residues = pd.read_parquet(root / "outputs/ingest/sequences.parquet").groupby("split")["length"].sum()
    assert result.metrics["num_tokens_train"] == residues["train"] - 5
    assert "7 residues of 7 proteins were not finite" in result.summary
    assert "P00001 (1), P00004 (1), P00007 (1)" in result.summary
    result = run(root, non_finite="mask")  # a finite model
    assert (result.metrics["num_masked_train"], result.metrics["num_masked_valid"]) == (0, 0)
    assert "not finite" not in result.summary
    assert "num_masked" not in json.loads((folder / "store.json").read_text())


def test_a_failed_run_leaves_the_old_output(root):
    run(root)
    before = manifest_sha256(root / "outputs" / "extract_activations")
    sequences = pd.read_parquet(root / "outputs" / "ingest" / "sequences.parquet")
    sequences.loc[3, "sequence"] = "ACDJ"
    sequences.to_parquet(root / "outputs" / "ingest" / "sequences.parquet")
    write_output(root / "outputs" / "ingest", "ingest", "sequences")
    with pytest.raises(DataError, match="P00003, position 4"):
        run(root)
    assert manifest_sha256(root / "outputs" / "extract_activations") == before


def test_length_column_must_agree_with_the_sequences(root):
    path = root / "outputs" / "ingest" / "sequences.parquet"
    sequences = pd.read_parquet(path)
    sequences.loc[0, "length"] += 1
    sequences.to_parquet(path)
    write_output(root / "outputs" / "ingest", "ingest", "sequences")
    with pytest.raises(DataError, match="split 'train' holds"):
        run(root)


def test_several_places(root):
    alone = run(root).metrics
    single = json.loads((root / "outputs" / "extract_activations" / "store.json").read_text())
    result = run(root, also=[{"layer": 1}, {"layer": 2, "hook": "mlp"}])
    folder = root / "outputs" / "extract_activations"
    assert verify(folder).kind == "activations"
    assert {name: value for name, value in result.metrics.items() if "layer" not in name} == alone
    assert result.metrics["num_tokens_train_layer2_mlp"] == alone["num_tokens_train"]
    assert result.metrics["normaliser_scale_layer1_residual"] != alone["normaliser_scale"]
    for place in ("layer 2 (residual)", "layer 1 (residual)", "layer 2 (mlp)"):
        assert f"{place} of esm_small" in result.summary
    stores = {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("store.json")}
    assert sorted(stores) == ["layer1.residual", "layer2.mlp", "layer2.residual"]
    assert stores["layer2.residual"] == single


def test_shares_and_their_store(root):
    alone = run(root)
    folder = root / "outputs" / "extract_activations"
    ours = {name: entry for name, entry in verify(folder).files.items() if name not in ("metrics.json", "summary.md")}
    finished = []
    for i in (1, 2):
        params = {**SMALL, "share": f"{i}/2", "shared": "parts"}
        params = validate(ExtractActivationsParams, params, section="extract_activations")
        result = execute(STAGE, params, root=root, output=root / f"share{i}")
        assert f"Share {i}/2" in result.summary
        assert verify(root / f"share{i}").kind == "activations"
        finished.append(result.metrics["num_parts"])
    times = {path: path.stat().st_mtime_ns for path in (root / "parts").rglob("*.bin")}
    assert len(times) == sum(finished) >= 3
    merged = run(root, shared="parts")
    assert merged.metrics == alone.metrics
    assert {name: verify(folder).files[name] for name in ours} == ours
    assert {path: path.stat().st_mtime_ns for path in (root / "parts").rglob("*.bin")} == times


def test_bfloat16_products_report_their_error(root):
    exact = run(root).metrics
    store = json.loads((root / "outputs" / "extract_activations" / "store.json").read_text())
    result = run(root, precision="bfloat16", also=[{"layer": 0}])
    assert 1e-4 < result.metrics["relative_precision_error"] < 0.05
    assert result.metrics["relative_precision_error_layer0_residual"] == 0  # the embedding has no products
    assert "products were made in bfloat16" in result.summary
    assert result.metrics["normaliser_scale"] == pytest.approx(exact["normaliser_scale"], rel=0.01)
    assert result.metrics["normaliser_scale"] != exact["normaliser_scale"]
    reduced = json.loads((root / "outputs/extract_activations/layer2.residual/store.json").read_text())
    assert (store.get("precision"), reduced["precision"]) == (None, "bfloat16")


def test_auto_asks_the_processor(root, monkeypatch):
    exact = run(root)
    monkeypatch.setattr("plmsae.plms.linear.has_fast_bfloat16", lambda: False)
    assert run(root, precision="auto").metrics == exact.metrics
    monkeypatch.setattr("plmsae.plms.linear.has_fast_bfloat16", lambda: True)
    assert "relative_precision_error" in run(root, precision="auto").metrics


def test_a_gpu_that_is_not_there(root, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        run(root, device="cuda")


@contextmanager
def largest_file(num_bytes):
    """A disk that takes no more than so much of a file: `EFBIG`, which a full one answers with `ENOSPC`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_output_and_what_is_finished(root):
    run(root)
    folder = root / "outputs" / "extract_activations"
    before = manifest_sha256(folder)
    with largest_file(100_000), pytest.raises(TryAgainError, match="no room is left on the disk") as caught:
        run(root, seed=1)
    assert "goes on where it stopped" in str(caught.value)
    assert manifest_sha256(folder) == before
    (checkpoints,) = (root / ".plmsae" / "checkpoints").iterdir()
    assert not list(checkpoints.rglob("*.bin")), "half-written chunks would keep the disk full"
    run(root, seed=1)
    after_trouble = manifest_sha256(folder)
    shutil.rmtree(root / ".plmsae")
    run(root, seed=1)
    assert manifest_sha256(folder) == after_trouble


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "foreign"])
def test_a_store_that_its_manifest_does_not_describe(root, damage):
    from plmsae.stages.train_sae import STAGE as TRAIN
    from plmsae.training.parameters import TrainSaeParams

    run(root)
    chunk = root / "outputs/extract_activations/train/chunk-0-0.bin"
    data = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    elif damage == "foreign":
        (chunk.parent / "chunk-7-0.bin").write_bytes(data)
    else:
        chunk.unlink()
        chunk.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    params = validate(TrainSaeParams, {"tokens": 1}, section="train_sae")
    with pytest.raises(DataError) as caught:
        execute(TRAIN, params, root=root)
    assert ("chunk-7-0.bin" if damage == "foreign" else "chunk-0-0.bin") in str(caught.value)
