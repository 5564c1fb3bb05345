"""The evaluation stages through their declared work functions, from folders to folders."""

# ruff: noqa: F401, F811  (fixtures of the evaluation tests are imported by name)
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from plmsae.errors import DataError, UserError
from plmsae.evaluation import evaluation, evaluations
from plmsae.params import Params, ParamsFile
from plmsae.plms.base import ProteinLM
from plmsae.stages.concepts_params import ConceptsParams, DerivedParams
from plmsae.stages.evaluate import STAGES, AmortisationParams, BaselinesParams, FidelityParams
from plmsae.stages.evaluation_params import AbsorptionParams, ClusteringParams, PatternsParams, ProbesParams
from plmsae.stages.spec import StageContext, StageResult
from tests.evaluation.conftest import letter_sae, plm, random_sae, saved, sequences, store
from tests.workspace import FIXTURE

# Those that train SAEs of their own are in test_variants.py.
STAGE = {stage.entry: stage for stage in STAGES if stage.run.startswith("plmsae.stages.evaluate:")}
PARAMS: dict[str, Params] = {
    "fidelity": FidelityParams(max_proteins=8, num_resamples=50, threads=1),
    "concepts": ConceptsParams(
        min_instances=5,
        num_resamples=50,
        threads=1,
        derived=[DerivedParams(of="Helix", first=2)],
        interplm_table=str(FIXTURE),
        interplm_min_instances=5,
        interplm_min_residues=100,
    ),
    "baselines": BaselinesParams(
        max_proteins=12,
        min_instances=5,
        fit_rows=2048,
        ica_rows=1024,
        ica_components=16,
        ica_iterations=5,
        num_resamples=50,
        threads=1,
    ),
    "amortisation": AmortisationParams(max_proteins=8, num_tokens=24, num_resamples=50, threads=1),
    "probes": ProbesParams(
        tasks=["secondary_structure"],
        max_proteins=12,
        min_positives=5,
        min_proteins=2,
        fit_residues=1000,
        all_unit_examples=400,
        strengths=[0.1],
        num_resamples=50,
        threads=1,
    ),
    "patterns": PatternsParams(max_proteins=12, min_members=2, num_resamples=50, threads=1),
    "clustering": ClusteringParams(max_proteins=12, min_proteins=4, num_resamples=50, threads=1),
    "absorption": AbsorptionParams(max_proteins=12, min_instances=5, min_proteins=2, num_resamples=50, threads=1),
}


def run(name: str, output: Path, inputs: dict[str, Path]) -> StageResult:
    output.mkdir(parents=True)
    stage = STAGE[name]
    context = StageContext(
        params=PARAMS[name],
        inputs=inputs,
        manifests={},
        output=output,
        checkpoints=output.parent / "checkpoints",
        sources={"interplm_table": FIXTURE} if name == "concepts" else {},
        root=output.parent,
    )
    return stage.work()(context)


@pytest.fixture
def inputs(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> dict[str, Path]:
    return {"sequences": sequences, "activations": store, "sae": saved(random_sae(plm, store), tmp_path / "sae")}


@pytest.mark.parametrize("name", list(PARAMS))
def test_equal_inputs_give_equal_bytes(name: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    results = [run(name, tmp_path / place / "out", inputs) for place in ("first", "second")]
    assert results[0] == results[1]
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) >= 4
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.parametrize("name", list(PARAMS))
def test_plots_name_files_and_columns_that_are_written(name: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    run(name, tmp_path / "run" / "out", inputs)
    for plot in STAGE[name].plots:
        header = (tmp_path / "run" / "out" / plot.file).read_text().splitlines()[0].split(",")
        assert {plot.x, *plot.y} <= set(header)


@pytest.mark.parametrize("name", list(PARAMS))
def test_an_sae_of_another_layer_is_refused_before_anything_is_written(
    name: str, inputs: dict[str, Path], plm: ProteinLM, tmp_path: Path
) -> None:
    other = {**inputs, "sae": saved(letter_sae(plm), tmp_path / "other")}
    with pytest.raises(UserError, match="layer 0; the activations are of layer 3"):
        run(name, tmp_path / "run" / "out", other)
    assert not list((tmp_path / "run" / "out").iterdir())


def test_a_store_without_a_usable_mean_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "store"
    broken.mkdir()
    (broken / "store.json").write_bytes((inputs["activations"] / "store.json").read_bytes())
    for content, message in (
        ({"mean": torch.zeros(3)}, r"shape \[3\]"),
        ({"mean": torch.full((192,), torch.nan)}, "does not fit"),
        ({"other": torch.zeros(1)}, "cannot be read"),
    ):
        save_file(content, broken / "statistics.safetensors")
        with pytest.raises(DataError, match=message):
            run("fidelity", tmp_path / message[:5] / "out", {**inputs, "activations": broken})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{of: Helix, first: 3, ends: 2}", "unknown parameter 'evaluate.concepts.derived.0.ends'"),
        ("{of: Helix, first: 3.0}", "'evaluate.concepts.derived.0.first' = 3.0"),
        ("{of: Helix, first: 3, last: 3}", "exactly one of first, last and near"),
        ("{of: Helixx, first: 3}", "did you mean 'Helix'"),
        ("{first: 3}", "'evaluate.concepts.derived.0.of' is missing"),
    ],
)
def test_wrong_derived_concepts_are_refused(entry: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("evaluate:\n  concepts:\n    derived: []\n")
    file = ParamsFile(tmp_path / "params.yaml", [f"evaluate.concepts.derived=[{entry}]"])
    with pytest.raises(UserError) as caught:
        file.load(ConceptsParams, "evaluate.concepts")
    assert message in str(caught.value)


def test_every_evaluation_is_a_stage_and_takes_the_parameters_of_its_stage() -> None:
    import inspect

    assert set(evaluations()) == set(STAGE)
    for name, stage in STAGE.items():
        assert stage.id == f"evaluate@{name}"
        arguments = list(inspect.signature(evaluation(name)).parameters)
        assert arguments[:2] == ["inputs", "output"]
        pins = {f"{file}_sha256" for file in stage.optional_files}
        assert set(arguments[2:]) == set(stage.params.model_fields) - pins


def test_an_unknown_evaluation_is_named_with_what_was_meant() -> None:
    with pytest.raises(UserError, match="did you mean 'concepts'"):
        evaluation("concept")


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5], [-0.1, 0.5], [0.2, 1.0], [0.6, 0.5]])
def test_thresholds_that_do_not_ascend_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(ValidationError, match=r"ascend|at least 1"):
        ConceptsParams(thresholds=thresholds)
    with pytest.raises(ValidationError, match=r"f1_bounds must ascend|at least 1"):
        BaselinesParams(f1_bounds=thresholds)
