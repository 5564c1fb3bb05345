"""Entries of `evaluate` that train SAEs of their own, through the wrapper: on control models, and on every layer."""

# ruff: noqa: F401, F811  (fixtures of the evaluation tests are imported by name)
from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from plmsae.artifacts.manifest import Manifest, read_manifest
from plmsae.errors import DataError, UserError
from plmsae.evaluation.inputs import Inputs, Proteins
from plmsae.evaluation.layers import evaluate as evaluate_layers
from plmsae.params import Params, validate
from plmsae.plms import load_plm
from plmsae.saes import load_folder
from plmsae.stages import extract_activations, train_sae
from plmsae.stages.evaluate import STAGES, BaselinesParams, FidelityParams
from plmsae.stages.execute import execute
from plmsae.stages.extract_activations import ExtractActivationsParams
from plmsae.stages.spec import Stage, StageContext
from plmsae.stages.variant_entries import ControlsParams, LayersParams
from plmsae.stages.variants import Failure, Recipe, attempted
from plmsae.training import checkpoint
from plmsae.training import run as after_step
from plmsae.training.parameters import TrainSaeParams
from tests.activations.conftest import write_model
from tests.evaluation.conftest import sequences
from tests.stages.test_sweep import described, files

STAGE = {stage.entry: stage for stage in STAGES}
NEVER_SEEN = 31  # a token of ESM-2 that no residue has
CONCEPTS: dict[str, Any] = {
    "max_proteins": 15,
    "min_instances": 3,
    "min_proteins": 2,
    "num_resamples": 40,
    "threads": 1,
    "seed": 1,
}
TRAINING: dict[str, Any] = {
    "expansion_factor": 4,
    "k": 3,
    "tokens": 6_000,
    "batch_size": 256,
    "learning_rate": 0.003,
    "warmup_steps": 5,
    "validate_every": 10,
    "num_valid_rows": 256,
    "num_test_rows": 1000,
    "num_latent_max_rows": 3000,
    "checkpoint_every": 10,
    "threads": 1,
    "device": "cpu",
}


def run(stage: Stage, params: Params, root: Path, inputs: dict[str, Path], output: str | None = None) -> Path:
    folder = root / (output or stage.output)
    execute(dataclasses.replace(stage, tracked=False), params, root=root, inputs=inputs, output=folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small model; one embedding that no residue has is beyond what float16 holds.

    So all is well until the values of the embedding are permuted.
    """
    root = tmp_path_factory.mktemp("work")
    weights = write_model(root / "lm") / "model.safetensors"
    tensors = load_file(weights)
    tensors["esm.embeddings.word_embeddings.weight"][NEVER_SEEN] = 2e5
    save_file(tensors, weights)
    return root


@pytest.fixture(scope="module")
def inputs(root: Path, sequences: Path) -> dict[str, Path]:
    """Proteins, activations of layer 1, their SAE and its baselines, each as its stage makes it."""
    shutil.copytree(sequences, root / "sequences")
    (root / "validation").mkdir()
    ports = {"sequences": described(root / "sequences", "sequences")}
    extraction = ExtractActivationsParams(plm="./lm", layer=1, dtype="float16", block_rows=256, threads=1)
    checked = {**ports, "validation": described(root / "validation", "report")}
    ports["activations"] = run(extract_activations.STAGE, extraction, root, checked)
    training = validate(TrainSaeParams, TRAINING, section="train_sae")
    ports["sae"] = run(train_sae.STAGE, training, root, {"activations": ports["activations"]})
    return ports


@pytest.fixture(scope="module")
def baselines(root: Path, inputs: dict[str, Path]) -> dict[str, Path]:
    fitted = {"fit_rows": 2048, "ica_rows": 1024, "ica_components": 4, "ica_iterations": 5}
    return {**inputs, "baselines": run(STAGE["baselines"], BaselinesParams(**CONCEPTS, **fitted), root, inputs)}


CONTROLS = ControlsParams(**CONCEPTS, fit_rows=2048)
LAYERS = LayersParams(**CONCEPTS, fidelity_proteins=5)


@pytest.fixture(scope="module")
def controls(root: Path, baselines: dict[str, Path]) -> Path:
    return run(STAGE["controls"], CONTROLS, root, baselines)


@pytest.fixture(scope="module")
def layers(root: Path, inputs: dict[str, Path]) -> Path:
    return run(STAGE["layers"], LAYERS, root, inputs)


def test_the_sae_has_the_numbers_that_it_has_among_the_baselines(controls: Path, baselines: dict[str, Path]) -> None:
    """Two programs, one protocol."""
    ours = json.loads((controls / "metrics.json").read_text())
    theirs = json.loads((baselines["baselines"] / "metrics.json").read_text())
    assert ours["num_concepts"] == theirs["num_concepts"] > 3
    for name in ("mean_f1_sae", "mean_f1_sae_low", "mean_f1_sae_high", "fvu_sae", "fvu_sae_low", "l0_sae"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name
    table = pd.read_parquet(controls / "controls.parquet").set_index(["kind", "method"])
    order = [("sae", "sae"), ("control", "random_weights"), ("control", "permuted_weights")]
    order += [("baseline", name) for name in ("neurons", "pca", "ica", "random")]
    assert table.index.tolist() == [*order, ("letters", "residue")]
    assert table.loc[("baseline", "pca"), "mean_f1"] == theirs["mean_f1_pca"]
    assert table.loc[("baseline", "pca"), "f1_gain_of_sae_low"] == theirs["f1_gain_over_pca_low"]
    assert table.loc[("letters", "residue"), "num_concepts_sae_better"] == theirs["num_concepts_better_than_residue"]
    random = table.loc[("control", "random_weights")]
    assert random["f1_gain_of_sae"] == pytest.approx(ours["mean_f1_sae"] - ours["mean_f1_random_weights"])
    assert random["f1_gain_of_sae_low"] <= random["f1_gain_of_sae"] <= random["f1_gain_of_sae_high"]
    assert (controls / "figures" / "controls.png").read_bytes().startswith(b"\x89PNG")


def test_a_control_is_trained_as_the_sae_was(controls: Path, root: Path, inputs: dict[str, Path]) -> None:
    """Byte for byte the SAE that one gets by naming the control in the pipeline; its FVU by another route."""
    name = "./lm?random=0"
    given = ExtractActivationsParams.model_validate(
        {**read_manifest(inputs["activations"]).params, "plm": name, "plm_revision": None}
    )
    ports = {"sequences": inputs["sequences"], "validation": root / "validation"}
    activations = run(extract_activations.STAGE, given, root, ports, "by_hand/activations")
    training = validate(TrainSaeParams, TRAINING, section="train_sae")
    alone = run(train_sae.STAGE, training, root, {"activations": activations}, "by_hand/sae")
    sae = load_folder(controls / "members" / "random_weights" / "sae")
    by_hand = load_folder(alone / "sae")
    assert all(torch.equal(tensor, by_hand.state_dict()[key]) for key, tensor in sae.state_dict().items())
    assert (sae.config.plm, sae.config.layer, sae.config.training["seed"]) == (name, 1, 0)

    plm = load_plm(name, root=root)
    proteins = Proteins(inputs["sequences"]).split("test", CONTROLS.max_proteins, CONTROLS.seed)
    x = torch.cat([plm.hidden(plm.tokenize([sequence]), 1) for sequence in proteins["sequence"]])
    error = (x.double() - sae(x).double()).square().sum()
    fvu = float(error / (x - x.mean(0)).double().square().sum())
    metrics = json.loads((controls / "metrics.json").read_text())
    assert metrics["fvu_random_weights"] == pytest.approx(fvu, rel=1e-3)


def test_a_control_that_cannot_be_measured_is_named_and_the_others_are_there(controls: Path) -> None:
    metrics = json.loads((controls / "metrics.json").read_text())
    assert (metrics["num_controls"], metrics["num_failed_controls"]) == (1, 1)
    assert not [name for name in metrics if "permuted" in name]
    table = pd.read_parquet(controls / "controls.parquet").set_index("method")
    reason = table.loc["permuted_weights", "failed"]
    assert "finite" in reason
    assert table.loc["permuted_weights", ["mean_f1", "fvu", "dead_fraction"]].isna().all()
    assert f"No SAE on permuted weights: {reason}" in (controls / "summary.md").read_text()
    assert not (controls / "members" / "permuted_weights").exists()
    readable = pd.read_csv(controls / "table.csv", keep_default_na=False).set_index("method")
    assert readable.loc["permuted weights"].tolist() == [reason, "", "", "", "", ""]
    assert readable.loc["SAE", "the SAE's lead"] == ""
    assert readable.loc["random weights", "dead"].startswith(f"{metrics['dead_fraction_random_weights']:.3f} [")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, r"with seed = 1, and here it is 2"),
        ({"thresholds": [0.0, 0.5]}, r"with thresholds = .* and here it is \[0.0, 0.5\]"),
        ({"max_proteins": None}, "with max_proteins = 15, and here it is None"),
    ],
)
def test_baselines_of_other_parameters_are_refused(
    change: dict[str, Any], message: str, root: Path, baselines: dict[str, Path]
) -> None:
    with pytest.raises(DataError, match=message):
        run(STAGE["controls"], CONTROLS.model_copy(update=change), root, baselines, "other")


def test_baselines_of_another_sae_or_of_another_stage_are_refused(
    root: Path, baselines: dict[str, Path], layers: Path
) -> None:
    other = shutil.copytree(baselines["sae"], root / "other_sae")
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tokens": 6000', '"tokens": 6001'))
    with pytest.raises(DataError, match="beside another input 'sae'"):
        run(STAGE["controls"], CONTROLS, root, {**baselines, "sae": other}, "other")
    with pytest.raises(DataError, match="is an output of 'evaluate@layers'"):
        run(STAGE["controls"], CONTROLS, root, {**baselines, "baselines": layers}, "other")


@pytest.mark.parametrize("entry", ["controls", pytest.param("layers", marks=pytest.mark.long)])
def test_cut_off_in_its_second_training_it_ends_in_the_same_bytes(
    entry: str, request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For controls it is cut off in the only training: the other control fails before."""
    whole = request.getfixturevalue(entry)
    ports = request.getfixturevalue("baselines" if entry == "controls" else "inputs")
    params: Params = CONTROLS if entry == "controls" else LAYERS
    shutil.copytree(root / "lm", tmp_path / "lm")
    saves = []

    def interrupted(folder: Path, state: checkpoint.Checkpoint) -> Path:
        saved = checkpoint.save_checkpoint(folder, state)
        saves.append(folder)
        if len(set(saves)) == (1 if entry == "controls" else 2) and state.step >= 20:
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(after_step, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(STAGE[entry], params, tmp_path, ports)
    assert not (tmp_path / "outputs").exists()
    (left,) = (tmp_path / ".plmsae" / "checkpoints").iterdir()
    kept = {folder.name for folder in left.iterdir()}
    made = (
        ("permuted_weights.failed", "random_weights.activations") if entry == "controls" else ("layer0", "activations")
    )
    assert set(made) <= kept, "what was complete is not made again"
    assert files(run(STAGE[entry], params, tmp_path, ports)) == files(whole)
    assert not left.exists()


def test_every_layer_stands_beside_the_others(layers: Path, root: Path, inputs: dict[str, Path]) -> None:
    table = pd.read_csv(layers / "layers.csv")
    assert table["layer"].tolist() == [0, 1, 2]
    metrics = json.loads((layers / "metrics.json").read_text())
    own = json.loads((inputs["sae"] / "metrics.json").read_text())
    assert {path.name for path in (layers / "members").iterdir()} == {"layer0", "layer2"}, "its own is used as it is"
    plm = load_plm("./lm", root=root)
    proteins = Proteins(inputs["sequences"]).split("test", LAYERS.max_proteins, LAYERS.seed)
    for layer in (0, 1, 2):
        folder = inputs["sae"] if layer == 1 else layers / "members" / f"layer{layer}"
        sae = load_folder(folder / "sae")
        assert sae.config.layer == layer
        assert sae.config.training["tokens"] == own["training_tokens"]
        seeds = (0, None) if layer == 1 else (1 + layer, 0)
        assert (sae.config.training["seed"], sae.config.training.get("order_seed")) == seeds, "no common first weights"
        x = torch.cat([plm.hidden(plm.tokenize([sequence]), layer) for sequence in proteins["sequence"]])
        fvu = float((x.double() - sae(x).double()).square().sum() / (x - x.mean(0)).double().square().sum())
        assert metrics[f"layer{layer}_fvu"] == pytest.approx(fvu, rel=1e-3)
        dead = float((sae.encode(x) > 0).any(0).logical_not().double().mean())
        assert metrics[f"layer{layer}_dead_fraction"] == pytest.approx(dead, abs=0.04)
        assert metrics[f"layer{layer}_mean_f1"] == pytest.approx(
            pd.read_csv(layers / "concepts.csv")[f"f1 layer{layer}"].mean(), rel=1e-5
        )
        gap = table.loc[layer, "fvu"] - table.loc[1, "fvu"]
        assert table.loc[layer, "fvu_minus_reference"] == pytest.approx(gap, abs=1e-5)
    assert table.loc[1, ["fvu_minus_reference_low", "fvu_minus_reference_high"]].tolist() == [0, 0]
    assert (layers / "figures" / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_fidelity_of_a_layer_is_that_of_its_own_evaluation(layers: Path, root: Path, inputs: dict[str, Path]) -> None:
    params = FidelityParams(max_proteins=5, num_resamples=40, threads=1, seed=1)
    alone = json.loads((run(STAGE["fidelity"], params, root, inputs) / "metrics.json").read_text())
    table = pd.read_parquet(layers / "layers.parquet").set_index("layer")
    assert table.loc[1, "protocol"] == "masked"
    assert table.loc[1, "ce_clean"] == alone["masked_ce_clean"]
    for name in ("delta_ce", "loss_recovered_mean", "loss_recovered_zero_low"):
        assert table.loc[1, name] == alone[f"masked_{name}"]


def test_neighbours_are_matched_and_atoms_only_within_one_stream(layers: Path) -> None:
    table = pd.read_parquet(layers / "matches.parquet")
    assert table[["previous", "layer"]].drop_duplicates().to_numpy().tolist() == [[0, 1], [1, 2]]
    assert table["threshold"].tolist() == [0.5, 0.7, 0.9] * 2
    assert table["of_layer"].between(0, 1).all()
    assert table["of_layer_null"].between(0, 1).all()
    assert table.loc[table["layer"] == 1, "atoms"].notna().all()
    assert table.loc[table["layer"] == 2, "atoms"].isna().all(), "layer 2 lies behind the final norm"
    latents = pd.read_parquet(layers / "latents.parquet")
    readable = pd.read_csv(layers / "table.csv", keep_default_na=False)
    share = table.loc[(table["layer"] == 2) & (table["threshold"] == 0.7), "of_layer"].item()
    (column,) = [name for name in readable if "layer before" in name]
    assert readable[column].str[:4].tolist()[::2] == ["", f"{share:.2f}"]
    assert latents.groupby("layer").size().to_dict() == {"layer1": 32, "layer2": 32}


def test_layers_that_do_not_exist_are_refused_before_anything_is_made(root: Path, inputs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="has no layer 9"):
        run(STAGE["layers"], LAYERS.model_copy(update={"layers": [1, 9]}), root, inputs, "other")


def test_one_layer_alone_has_nothing_to_match_and_one_that_failed_is_named(
    root: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Nor are there concepts here."""
    given = Inputs.load(inputs["sequences"], inputs["activations"], inputs["sae"], root=root)
    fidelity = FidelityParams(max_proteins=3, num_resamples=40, threads=1).model_dump()
    params = LAYERS.model_dump(exclude={"layers", "fidelity_proteins", "masked_share"}) | {"min_instances": 10**6}
    outcome = evaluate_layers({1: given}, tmp_path, reference=1, failed={0: "it diverged"}, fidelity=fidelity, **params)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("layers.csv", "layers.parquet", "table.csv", "figures", "fidelity"),
    }
    assert (outcome.metrics["num_layers"], outcome.metrics["num_failed_layers"]) == (1, 1)
    assert not [name for name in outcome.metrics if "f1" in name or "layer0" in name]
    assert np.isfinite(list(outcome.metrics.values())).all()
    assert "Layer 0 has no SAE: it diverged." in outcome.summary
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert table["layer"].tolist() == [0, 1]
    assert table["FVU"].tolist()[0] == "it diverged"


def context(root: Path, inputs: dict[str, Path], **changes: Any) -> StageContext:
    manifests = {port: read_manifest(folder) for port, folder in inputs.items()}
    if changes:
        manifests["sae"] = manifests["sae"].model_copy(update=changes)
    return StageContext(LAYERS, inputs, manifests, root, root / "checkpoints", {}, root)


def test_a_recipe_is_read_from_the_manifests(root: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = Recipe.of(context(root, inputs))
    assert recipe.training == validate(TrainSaeParams, TRAINING, section="train_sae")
    changed = recipe.extraction_of("./lm?permuted=3", None, [0, 2], "residual")
    assert (changed.plm, changed.layer, [place.layer for place in changed.also]) == ("./lm?permuted=3", 0, [2])
    assert (changed.dtype, changed.block_rows) == ("float16", 256)
    sweep = {"train_sae": recipe.training.model_dump(mode="json"), "grid": {"k": [2, 5]}}
    shutil.copytree(inputs["sae"], tmp_path / "sae")
    (tmp_path / "sae" / "members.csv").write_text("member,chosen\nk2,0\nk5,1\n")
    ports = {**inputs, "sae": tmp_path / "sae"}
    assert Recipe.of(context(root, ports, stage="sweep", params=sweep)).training.k == 5
    with pytest.raises(UserError, match="output of 'steer', which does not say how"):
        Recipe.of(context(root, inputs, stage="steer"))
    live = {**recipe.training.model_dump(mode="json"), "sequences": "a.parquet", "sequences_sha256": "0" * 64}
    with pytest.raises(UserError, match="activations that were not stored"):
        Recipe.of(context(root, inputs, params=live))


def test_a_failure_is_remembered_and_a_user_s_mistake_is_not(
    root: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    own = dataclasses.replace(context(root, inputs), checkpoints=tmp_path)
    calls = []

    def fail(_: StageContext, error: Exception) -> Path:
        calls.append(error)
        raise error

    for _ in range(2):
        assert attempted(own, "first", fail, DataError("it diverged")) == Failure("it diverged")
    assert len(calls) == 1
    with pytest.raises(UserError):
        attempted(own, "second", fail, UserError("wrong"))
    assert [path.name for path in tmp_path.iterdir()] == ["first.failed"]


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (ControlsParams, {"controls": ["random", "random"]}),
        (ControlsParams, {"controls": []}),
        (ControlsParams, {"controls": ["shuffled"]}),
        (LayersParams, {"layers": [2, 1]}),
        (LayersParams, {"layers": [-1]}),
        (LayersParams, {"layers": []}),
        (LayersParams, {"match_thresholds": [0.9, 0.5]}),
    ],
)
def test_wrong_parameters_are_refused(model: type[Params], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(wrong)
