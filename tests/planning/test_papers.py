"""The presets of papers: valid for the stages, and what the papers say."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from plmsae.errors import UserError
from plmsae.params import ParamsFile, validate
from plmsae.planning.models import transformer
from plmsae.planning.papers import paper, paper_names, preset_file
from plmsae.stages.catalog import sections, stages
from plmsae.stages.extract_activations import ExtractActivationsParams
from plmsae.stages.render import params_schema
from plmsae.training.parameters import TrainSaeParams

ROOT = Path(__file__).parents[2]


def load(name: str) -> tuple[ExtractActivationsParams, TrainSaeParams]:
    data = ParamsFile(preset_file(name, ROOT)).data
    return (
        validate(ExtractActivationsParams, data["extract_activations"], section="extract_activations"),
        validate(TrainSaeParams, data["train_sae"], section="train_sae"),
    )


def test_every_preset_has_its_file_and_every_file_its_preset() -> None:
    assert {path.stem for path in (ROOT / "presets" / "papers").iterdir()} == set(paper_names())


@pytest.mark.parametrize("name", paper_names())
def test_presets_are_valid(name: str) -> None:
    import json

    file = ParamsFile(preset_file(name, ROOT))
    file.check_sections(sections())
    models = {stage.section: stage.params for stage in stages().values()}
    for section in file.data:
        validate(models[section], file.section(section), section=section)
    schema = json.loads(params_schema())
    jsonschema.validate(file.data, {**schema, "required": []})


@pytest.mark.parametrize(
    ("name", "places", "architecture", "latents", "k", "steps"),
    [
        ("interplm-8m", [1, 2, 3, 4, 5, 6], "relu", 10240, None, 500_000),
        ("interplm-650m", [1, 9, 18, 24, 30, 33], "relu", 10240, None, 200_000),
        ("reticular-3b-l18", [18], "topk", 20480, 100, 1_220_703.125),
        ("reticular-3b-l36", [36], "topk", 20480, 100, 1_220_703.125),
        ("reticular-8m", [3], "topk", 10240, 100, 1_220_703.125),
        ("interprot-650m", [24], "topk", 4096, 64, None),
        ("esmc-600m", [5, 15, 25], "relu", 2304, None, None),
    ],
)
def test_presets_say_what_the_papers_say(
    name: str, places: list[int], architecture: str, latents: int, k: int | None, steps: float | None
) -> None:
    extract, train = load(name)
    plm = transformer(extract.plm)
    assert [extract.layer, *(place.layer for place in extract.also)] == places
    assert {extract.hook, *(place.hook for place in extract.also)} == {"mlp" if name == "esmc-600m" else "residual"}
    assert train.architecture == architecture
    assert (train.dictionary_size or (train.expansion_factor or 0) * plm.d_model) == latents
    if k is not None:
        assert train.k == k
    if steps is not None:
        assert train.tokens / train.batch_size == steps
    else:
        assert paper(name).epochs is not None


@pytest.mark.parametrize(
    ("name", "sequences"),
    [("interplm-8m", 5_000_000), ("interplm-650m", 5_000_000), ("reticular-8m", 10_000_000),
     ("reticular-3b-l18", 10_000_000), ("reticular-3b-l36", 10_000_000), ("interprot-650m", 900_000)],
)  # fmt: skip
def test_corpora_are_those_of_the_papers(name: str, sequences: int) -> None:
    ingest = ParamsFile(preset_file(name, ROOT)).section("ingest")
    assert (ingest["mode"], ingest["max_proteins"], ingest["max_residues"]) == ("corpus", sequences, 1022)
    assert "uniref50" in ingest["source"]
    assert paper(name).assumed_sequences is None


def test_the_inconsistency_of_the_8m_preset_is_said() -> None:
    assert any("16 x 320 = 5,120 and 10,240 = 32 x 320" in note for note in paper("reticular-8m").notes)
    assert any("1,024" in note and "1,022" in note for note in paper("interplm-8m").notes)


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        preset_file("interplm-8M")
    assert caught.value.fix == "did you mean 'interplm-8m'?"


def test_presets_are_found_outside_of_the_repository(tmp_path: Path) -> None:
    assert preset_file("interplm-8m", tmp_path) == ROOT / "presets" / "papers" / "interplm-8m.yaml"
