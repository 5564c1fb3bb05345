"""The sweeps of a Kubeflow run, one per layer and architecture, and the page that reads them back from the registry."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plmsae.errors import UserError
from plmsae.params import ParamsFile, canonical_json
from plmsae.registry.evidence import Evidence
from plmsae.registry.register import register
from plmsae.stages.catalog import load_params, stage
from plmsae.stages.execute import execute
from plmsae.stages.executor_input import resolve_params, run_task
from plmsae.stages.sweep_page import Row, write_pairs
from plmsae.stages.sweep_pairs_params import SweepPairsParams
from plmsae.stages.sweep_report import SweepReportParams
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import small_sae, write_outputs
from tests.stages.test_executor_input import executor_input

__all__ = ["empty_registry", "root"]
ROOT = Path(__file__).parents[2]
PAIRS, REPORT = stage("sweep_pairs"), stage("sweep_report")


def pairs(*overrides: str) -> SweepPairsParams:
    """The parameters of `params.yaml`, changed."""
    found = load_params(ParamsFile(ROOT / "params.yaml", overrides), PAIRS)
    assert isinstance(found, SweepPairsParams)
    return found


def test_without_layers_and_architectures_it_is_the_sweep_of_the_command() -> None:
    file = ParamsFile(ROOT / "params.yaml", ["sweep.train_sae.tokens=1000"])
    (only,) = pairs("sweep.train_sae.tokens=1000").pairs()
    assert (only.layer, only.architectures) == (3, ("topk",))
    assert only.sweep == load_params(file, stage("sweep"))
    assert pairs().also() == []


def test_every_layer_with_every_architecture_each_without_what_it_does_not_take() -> None:
    found = pairs(
        "sweep_pairs.layers=[1, 4]",
        "sweep_pairs.architectures=[topk, relu, jump_relu]",
        "sweep.grid={k: [4, 8], penalty: [0.1], seed: [0, 1]}",
        "extract_activations.hook=mlp",
        "extract_activations.also=[{layer: 4, hook: mlp}, {layer: 4}]",
    )
    members = {(pair.layer, *pair.architectures): pair.sweep.members() for pair in found.pairs()}
    assert list(members) == [(layer, name) for layer in (1, 4) for name in ("topk", "relu", "jump_relu")]
    for (layer, architecture), own in members.items():
        assert {(member.layer, member.architecture) for member in own.values()} == {(layer, architecture)}
    assert list(members[1, "topk"]) == ["k4-seed0", "k4-seed1", "k8-seed0", "k8-seed1"]
    assert list(members[4, "relu"]) == ["relu-penalty0.1-seed0", "relu-penalty0.1-seed1"]
    assert found.also() == [{"layer": 4, "hook": "mlp"}, {"layer": 4, "hook": "residual"}], "each place once"


def test_an_architecture_that_takes_nothing_of_the_grid_is_one_member() -> None:
    _, relu = pairs("sweep_pairs.architectures=[topk, relu]", "sweep.grid={k: [4, 8]}").pairs()
    assert list(relu.sweep.members()) == ["relu"]


def test_a_grid_may_vary_the_architecture_within_each_sweep() -> None:
    found = pairs("sweep_pairs.layers=[1, 2]", "sweep.grid={architecture: [topk, relu], k: [8]}").pairs()
    assert [pair.architectures for pair in found] == [("topk", "relu")] * 2
    assert list(found[0].sweep.members()) == ["topk-k8", "relu"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("sweep_pairs.layers=[1, 1]",), "1 stands twice"),
        (("sweep_pairs.layers=[-1]",), "no layer -1"),
        (("sweep_pairs.layers=[a]",), "sweep_pairs.layers.0"),
        (("sweep_pairs.architectures=[topkk]",), "topkk"),
        (("sweep_pairs.architectures=[topk, batch_topk]", "sweep.grid={penalty: [0.1]}"), "takes 'penalty'"),
        (("sweep_pairs.architectures=[topk, relu]", "sweep.grid={architecture: [topk]}"), "within a sweep"),
        (("sweep_pairs.layers=[1, 2]", "train_sae.layer=1"), "asks for one layer"),
        (("sweep.grid={k: [100000]}", "sweep_pairs.architectures=[relu]"), "none of relu takes 'k'"),
    ],
)
def test_pairs_that_cannot_work_are_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        pairs(*overrides)
    assert words in f"{caught.value.problem} {caught.value.where}"


def handed_on(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What the task `sweep_pairs` hands on, as Kubeflow reads it; the same as in its executor output."""
    given = json.loads(executor_input(folder / "out", values, {}))
    for value in PAIRS.values:
        given["outputs"]["parameters"][value.name] = {"outputFile": str(folder / "out" / value.name)}
    run_task(PAIRS, json.dumps(given), root=folder)
    texts = {value.name: (folder / "out" / value.name).read_text() for value in PAIRS.values}
    read = {value.name: json.loads(texts[value.name]) for value in PAIRS.values if value.kind is not str}
    read |= {name: text for name, text in texts.items() if name not in read}
    written = json.loads((folder / "out" / "executor_output.json").read_text())["parameterValues"]
    assert {name: written[name] for name in read} == read
    return read


def test_the_task_hands_on_the_layers_of_the_extraction_and_the_parameters_of_every_sweep(tmp_path: Path) -> None:
    """As the backend gives them: numbers of a list are floats, mappings are texts without the knobs."""
    file = ParamsFile(ROOT / "params.yaml")
    extraction = load_params(file, stage("extract_activations")).model_dump(mode="json")
    sweep = load_params(file, stage("sweep")).model_dump(mode="json")
    for name in stage("extract_activations").knobs:
        extraction.pop(name)
    grid = sweep.pop("grid")
    sweep.pop("select_by")
    values = {
        "params": "{}",
        "layers": [2.0, 5.0],
        "architectures": ["topk", "relu"],
        "grid": canonical_json(grid),
        "extract_activations": canonical_json(extraction),
        "sweep": canonical_json(sweep),
    }
    found = handed_on(tmp_path, values)
    assert found["layer"] == 2
    assert json.loads(found["extract_activations_params"]) == {**extraction, "also": [{"layer": 5, "hook": "residual"}]}
    items = found["pairs"]
    assert [(item["layer"], item["architecture"]) for item in items] == [
        (2, "topk"), (2, "relu"), (5, "topk"), (5, "relu")
    ]  # fmt: skip
    expected = pairs("sweep_pairs.layers=[2, 5]", "sweep_pairs.architectures=[topk, relu]").pairs()
    for item, pair in zip(items, expected, strict=True):
        task = {"grid": item["grid"], "select_by": "concepts", "params": item["params"]}
        assert resolve_params(stage("sweep"), task) == pair.sweep


def registered(root: Path, params: dict[str, Any], data: str = "MKV", **sae: Any) -> str:
    """Register an SAE as the best of a sweep with these parameters; its URI."""
    shutil.rmtree(root / "outputs", ignore_errors=True)
    evidence = write_outputs(root, sae=small_sae(**sae), data=data)
    manifests = {**evidence.manifests, "sae": evidence.manifests["sae"].model_copy(update={"params": params})}
    done = register(Evidence(evidence.folders, manifests), root)
    return f"models:/{done.name}/{done.version}"


def test_the_page_has_the_candidates_that_this_very_sweep_made(root: Path) -> None:
    shutil.copy(ROOT / "params.yaml", root)
    overrides = ["sweep_report.layers=[3, 4]", "sweep_report.architectures=[topk, relu]", "sweep.grid={k: [8, 16]}"]
    overrides.append(f"sweep_report.source_sha256={64 * 'a'}")
    params = load_params(ParamsFile(root / "params.yaml", overrides), REPORT)
    assert isinstance(params, SweepReportParams)
    own = [pair.sweep.model_dump(mode="json") for pair in params.pairs()]
    uris = {
        (3, "topk"): registered(root, own[0], data=64 * "a"),
        # Another sweep's, and one of other proteins; nothing has the name of the fourth.
        (3, "relu"): registered(root, own[0], data=64 * "a", architecture="relu", k=64),
        (4, "topk"): registered(root, own[2], data=64 * "b", layer=4),
    }
    result = execute(REPORT, params, root=root)
    assert dict(result.metrics) == {"num_pairs": 4, "num_registered": 1}
    output = root / "outputs" / "sweep_report"
    with (output / "pairs.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["layer"], row["architecture"], row["member"], row["model"]) for row in rows] == [
        ("3", "topk", "k8", uris[3, "topk"]),
        ("3", "relu", "", ""),
        ("4", "topk", "", ""),
        ("4", "relu", "", ""),
    ]
    assert (rows[0]["fidelity.fvu"], rows[0]["fidelity.fvu_low"], rows[0]["fidelity.l0"]) == ("0.31", "0.3", "7.5")
    page = (output / "report.html").read_text()
    assert "0.310 [0.300, 0.320]" in page
    assert page.count("not registered") == 4, "three rows, and what it means"
    assert "data:image/png" in page
    loose = params.model_copy(update={"source_sha256": None})
    assert execute(REPORT, loose, root=root).metrics["num_registered"] == 2
    by_fidelity = params.model_copy(update={"select_by": "fidelity"})
    assert execute(REPORT, by_fidelity, root=root).metrics["num_registered"] == 0


def test_a_page_without_any_pair_says_so(tmp_path: Path) -> None:
    write_pairs([Row(1, "topk"), Row(2, "topk")], "esm_small", tmp_path)
    assert "not registered" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "figures").exists()
