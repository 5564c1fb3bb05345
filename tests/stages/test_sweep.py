"""The sweep through the wrapper: every member is what `train_sae` gives, and the best is chosen as it says."""

# ruff: noqa: F401, F811  (fixtures of the evaluation tests are imported by name)
from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plmsae.artifacts.manifest import Manifest, list_files, read_manifest, write_manifest
from plmsae.errors import DataError, UserError
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.selection import concept_scores, fidelity_scores
from plmsae.params import ParamsFile, validate
from plmsae.plms.base import ProteinLM
from plmsae.saes import load_folder
from plmsae.stages import train_sae
from plmsae.stages.catalog import load_params
from plmsae.stages.execute import execute
from plmsae.stages.sweep import STAGE, SweepParams
from plmsae.training import checkpoint
from plmsae.training import run as after_step
from plmsae.training.comparison import Row, best, non_dominated, on_front
from plmsae.training.parameters import TrainSaeParams
from tests.evaluation.conftest import plm, sequences, store
from tests.stages.test_train_sae import SCALE, SMALL, make_store, tiny
from tests.training.streams import activations

BASE = {**SMALL, "tokens": 20_000}
GRID: dict[str, list[Any]] = {"architecture": ["topk", "relu"], "k": [4, 8], "penalty": [0.05], "seed": [0, 1]}


def described(folder: Path, kind: str) -> Path:
    """A folder with a manifest, as an output of the stage that makes such a kind."""
    manifest = Manifest(
        stage="ingest" if kind == "sequences" else "extract_activations",
        kind=kind,
        params={},
        inputs={},
        source_files={},
        environment={},
        files=list_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A synthetic store; the sequences are not read where fvu chooses."""
    root = tmp_path_factory.mktemp("inputs")
    train, valid = SCALE * activations(6000), SCALE * activations(1500, seed=1)
    (root / "sequences").mkdir()
    return {
        "activations": make_store(root / "store", train, valid),
        "sequences": described(root / "sequences", "sequences"),
    }


def run(root: Path, inputs: dict[str, Path], **changes: Any) -> Path:
    given = {"train_sae": BASE, "grid": GRID, "select_by": "fvu", **changes}
    params = validate(SweepParams, given, section="sweep")
    execute(dataclasses.replace(STAGE, tracked=False), params, root=root, inputs=inputs)
    return root / "outputs" / "sweep"


def run_alone(root: Path, inputs: dict[str, Path], params: TrainSaeParams) -> Path:
    stage = dataclasses.replace(train_sae.STAGE, tracked=False)
    execute(stage, params, root=root, inputs={"activations": inputs["activations"]})
    return root / "outputs" / "train_sae"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(output: Path) -> list[dict[str, str]]:
    with (output / "members.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> Path:
    return run(tmp_path_factory.mktemp("sweep"), inputs)


NAMES = [f"topk-k{k}-seed{seed}" for k in (4, 8) for seed in (0, 1)] + [f"relu-penalty0.05-seed{s}" for s in (0, 1)]


@pytest.mark.parametrize("name", [NAMES[1], NAMES[2], NAMES[5]])
def test_a_member_is_byte_for_byte_what_train_sae_gives(
    output: Path, inputs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    member = validate(SweepParams, {"train_sae": BASE, "grid": GRID}, section="sweep").members()[name]
    assert member.order_seed == 0  # the order of the rows is the base's, whatever the member's seed
    alone = files(run_alone(tmp_path, inputs, member))
    del alone["manifest.json"]
    assert files(output / "members" / name) == alone


def test_the_table_names_the_best_and_the_front(output: Path) -> None:
    rows = table(output)
    assert [row["member"] for row in rows] == NAMES
    assert list(rows[0]) == [
        *("member", "chosen", "pareto_front", "architecture", "k", "penalty", "seed"),
        *("l0", "fvu", "dead_fraction", "score", "failed"),
    ]
    assert [(row["k"], row["penalty"]) for row in rows] == [("4", "")] * 2 + [("8", "")] * 2 + [("", "0.05")] * 2
    for row in rows:
        metrics = json.loads((output / "members" / row["member"] / "metrics.json").read_text())
        for name in ("fvu", "l0", "dead_fraction"):
            assert float(row[name]) == metrics[name]
        assert row["score"] == row["fvu"]
    points = {row["member"]: (float(row["l0"]), float(row["fvu"])) for row in rows}
    for row in rows:
        l0, fvu = points.pop(row["member"])
        beaten = any(a <= l0 and b <= fvu for a, b in points.values())  # no two are equal in both
        points[row["member"]] = (l0, fvu)
        assert row["pareto_front"] == str(int(not beaten))
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    assert float(chosen["fvu"]) == min(float(row["fvu"]) for row in rows)


def test_the_best_is_the_output_as_train_sae_writes_it(output: Path) -> None:
    (chosen,) = [row["member"] for row in table(output) if row["chosen"] == "1"]
    member, whole = files(output / "members" / chosen), files(output)
    own = {"members.csv", "figures/pareto.png", "manifest.json", "metrics.json", "summary.md"}
    assert {name for name in whole if not name.startswith("members/")} == {*member, *own}
    assert all(whole[name] == data for name, data in member.items() if name not in own)
    metrics = json.loads(whole["metrics.json"])
    assert json.loads(member["metrics.json"]).items() <= metrics.items()
    assert (metrics["num_members"], metrics["num_failed_members"]) == (6, 0)
    assert f"`{chosen}` is best" in whole["summary.md"].decode()
    assert whole["figures/pareto.png"].startswith(b"\x89PNG")
    manifest = read_manifest(output)
    assert manifest.kind == "sae"
    assert SweepParams.model_validate(manifest.params).members().keys() == set(NAMES)


def test_a_sweep_that_was_cut_off_ends_in_the_same_bytes(
    output: Path, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = []

    def interrupted(folder: Path, state: checkpoint.Checkpoint) -> Path:
        saved = checkpoint.save_checkpoint(folder, state)
        saves.append(state.step)
        if len(saves) == 2:
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(after_step, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, inputs)
    assert saves == [50, 79]
    assert not (tmp_path / "outputs").exists()
    assert files(run(tmp_path, inputs)) == files(output)


def test_one_that_diverges_is_recorded_and_the_others_are_as_they_are(inputs: dict[str, Path], tmp_path: Path) -> None:
    base = {**BASE, "tokens": 5000, "validate_every": 1, "num_valid_rows": 100, "clip_norm": 0.0, "warmup_steps": 0}
    alone = files(run(tmp_path / "alone", inputs, train_sae=base, grid={"learning_rate": [0.003]}))
    output = run(tmp_path / "both", inputs, train_sae=base, grid={"learning_rate": [0.9, 0.003]})
    wild, good = table(output)
    assert wild["failed"].startswith("the training diverged: FVU is ")
    assert "last good step" in wild["failed"]
    assert [wild[name] for name in ("chosen", "pareto_front", "l0", "fvu", "score")] == ["0", "0", "", "", ""]
    assert (good["member"], good["chosen"], good["failed"]) == ("learning_rate0.003", "1", "")
    found = files(output)
    assert {name.split("/")[1] for name in found if name.startswith("members/")} == {"learning_rate0.003"}
    assert {name for name in alone if found[name] != alone[name]} <= {
        *("manifest.json", "metrics.json", "summary.md", "members.csv"),
    }
    assert "(1 of them diverged)" in found["summary.md"].decode()
    with pytest.raises(DataError, match="diverged"):
        run(tmp_path / "none", inputs, train_sae=base, grid={"learning_rate": [0.9, 0.95]})


def test_on_the_fly_the_members_are_what_they_are_alone(tiny: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    file = tiny / "sequences.parquet"
    live = {"sequences": str(file), "sequences_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    base = {**BASE, "tokens": 4000, "expansion_factor": 8, "num_valid_rows": 100, **live}
    ports = {**inputs, "activations": tiny / "store"}
    output = run(tmp_path / "sweep", ports, train_sae=base, grid={"k": [2, 4]})
    member = validate(SweepParams, {"train_sae": base, "grid": {"k": [2, 4]}}, section="sweep").members()["k4"]
    alone = files(run_alone(tmp_path / "alone", ports, member))
    del alone["manifest.json"]
    assert files(output / "members" / "k4") == alone
    assert read_manifest(output).source_files == {"train_sae.sequences": live["sequences_sha256"]}
    with pytest.raises(DataError, match="has sha256") as caught:
        run(tmp_path / "other", ports, train_sae={**base, "sequences_sha256": "0" * 64}, grid={"k": [2, 4]})
    assert caught.value.where == "sweep.train_sae.sequences_sha256"


def test_dominance_by_hand() -> None:
    #                 best fvu     dominated    best l0     dominated by ties  equal points
    points = [(8.0, 0.10), (9.0, 0.20), (2.0, 0.30), (2.0, 0.35), (4.0, 0.20), (4.0, 0.20)]
    assert non_dominated(points) == [True, False, True, False, True, True]
    assert non_dominated([]) == []
    rows = [Row("a", {}, 0.1, 8.0, 0.0, 1.0), Row("b", {}, failed="diverged"), Row("c", {}, 0.2, 9.0, 0.0, 1.0)]
    assert on_front(rows) == [True, False, False]


def test_the_best_by_hand() -> None:
    rows = [
        Row("first", {}, fvu=0.3, l0=9.0, score=0.5),
        Row("failed", {}, failed="diverged"),
        Row("sparser", {}, fvu=0.4, l0=8.0, score=0.5),
        Row("worse", {}, fvu=0.1, l0=1.0, score=0.4),
    ]
    assert best(rows, "concepts").name == "sparser"
    assert best(rows, "fvu").name == "worse"
    with pytest.raises(DataError, match="no member"):
        best([rows[1]], "fvu")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, plm: ProteinLM, sequences: Path, store: Path) -> dict[str, Path]:
    """Real proteins and activations of the bundled model, with manifests."""
    root = tmp_path_factory.mktemp("real")
    shutil.copytree(sequences, root / "sequences")
    shutil.copytree(store, root / "store")
    return {
        "sequences": described(root / "sequences", "sequences"),
        "activations": described(root / "store", "activations"),
    }


@pytest.mark.parametrize("select_by", ["fidelity", "concepts"])
def test_the_best_on_validation_proteins_can_be_evaluated(
    real: dict[str, Path], tmp_path: Path, select_by: str
) -> None:
    base = {**BASE, "tokens": 5000, "expansion_factor": 1, "num_valid_rows": 256, "num_test_rows": 1000}
    choice: dict[str, Any] = {"max_proteins": None, "max_tokens": 1024, "threads": 1, "seed": 3}
    concepts: dict[str, Any] = {"min_instances": 3, "min_proteins": 2, "thresholds": [0.0, 0.5], "scored_share": 0.4}
    output = run(
        tmp_path, real, train_sae=base, grid={"k": [2, 24]}, select_by=select_by, **choice, **concepts, masked_share=0.2
    )
    rows = table(output)
    saes = {row["member"]: load_folder(output / "members" / row["member"] / "sae") for row in rows}
    loaded = Inputs.load(real["sequences"], real["activations"], output, root=tmp_path)  # as evaluate loads its SAE
    if select_by == "fidelity":
        scores = fidelity_scores(loaded, saes, masked_share=0.2, **choice)
    else:
        scores = concept_scores(loaded, saes, **concepts, **choice)
    assert {row["member"]: float(row["score"]) for row in rows} == pytest.approx(scores)
    (chosen,) = [row["member"] for row in rows if row["chosen"] == "1"]
    assert chosen == max(scores, key=lambda name: scores[name])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics[f"valid_{select_by}"] == pytest.approx(scores[chosen])


PARAMS = """train_sae:
  architecture: relu
  tokens: 1000
  penalty: 0.2
sweep:
  train_sae:
    tokens: 500
  grid: {seed: [0, 1]}
"""


def test_what_the_section_leaves_out_comes_from_train_sae(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS)
    params = load_params(ParamsFile(path, ["train_sae.penalty=0.3"]), STAGE)
    assert isinstance(params, SweepParams)
    assert params.train_sae.keys() == TrainSaeParams.model_fields.keys()
    members = params.members()
    assert {(m.architecture, m.tokens, m.penalty, m.order_seed) for m in members.values()} == {("relu", 500, 0.3, 0)}
    assert validate(SweepParams, params.model_dump(mode="json"), section="sweep") == params


@pytest.mark.parametrize(
    ("override", "message", "place"),
    [
        ("sweep.grid={lernrate: [1]}", "unknown parameter 'lernrate'", "sweep.grid"),
        ("sweep.grid={k: [4]}", "no architecture of the grid takes 'k'", "sweep"),
        ("sweep.grid={penalty: [0.1, -1]}", "member 'penalty-1' is not valid", "sweep"),
        ("sweep.grid={penalty: 0.1}", "sweep.grid.penalty", "sweep.grid"),
        ("sweep.grid=[1]", "sweep.grid", "sweep.grid"),
        ("sweep.train_sae.penaltyy=0.1", "did you mean 'penalty'", "(sweep.train_sae.penaltyy)"),
        ("train_sae.aux_k=3", "aux_k is for", "params.yaml"),
        ("train_sae.tokens=0", "train_sae.tokens", "params.yaml, line 7 (sweep.train_sae.tokens)"),
        ("sweep.train_sae=3", "sweep.train_sae", "sweep.train_sae"),
        ("sweep.select_by=fuv", "sweep.select_by", "sweep.select_by"),
    ],
)
def test_wrong_parameters_are_named_with_their_place(tmp_path: Path, override: str, message: str, place: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS if override != "train_sae.tokens=0" else PARAMS.replace("tokens: 500", "tokens: 0"))
    with pytest.raises(UserError) as caught:
        load_params(ParamsFile(path, [override]), STAGE)
    assert message in str(caught.value)
    assert place in str(caught.value.where)


def test_members_that_do_not_fit_the_store_are_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="member 'k100': k = 100 is larger than the dictionary of 64"):
        run(tmp_path, inputs, grid={"k": [6, 100]})
    base = {**BASE, "batch_size": None, "k": 6}
    with pytest.raises(UserError, match="share their batches, but batch_size is 2048 for 'plmsae' and"):
        run(tmp_path, inputs, train_sae=base, grid={"preset": ["plmsae", "paper"]})
