"""The presets: what they say, that they say what was published, and that their trainings run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae.activations.metadata import Normaliser, StoreMetadata
from plmsae.errors import UserError
from plmsae.params import ParamsFile, validate
from plmsae.planning.models import transformer
from plmsae.planning.papers import paper_names
from plmsae.saes import load_folder
from plmsae.stages.catalog import load_params, stage
from plmsae.stages.execute import execute
from plmsae.stages.extract_activations import ExtractActivationsParams
from plmsae.stages.presets import SOURCES, preset_targets
from plmsae.stages.sweep import SweepParams
from plmsae.stages.train_sae import STAGE
from plmsae.training.parameters import TrainSaeParams
from plmsae.training.resolution import Resolved, resolve
from tests.stages.test_train_sae import SCALE, make_store
from tests.training.streams import activations

ROOT = Path(__file__).parents[2]


def preset(name: str) -> ParamsFile:
    return ParamsFile(ROOT / "presets" / f"{name}.yaml")


def resolved(name: str, width: int | None = None) -> Resolved:
    """The training of a preset, on a store as its own extraction would make it."""
    extract = preset(name).load(ExtractActivationsParams, "extract_activations")
    train = preset(name).load(TrainSaeParams, "train_sae")
    store = StoreMetadata(
        plm=extract.plm, plm_revision="r", layer=extract.layer, hook=extract.hook, dtype=extract.dtype,
        d_model=width or transformer(extract.plm).d_model, block_rows=8, num_tokens={"train": 1000, "valid": 100},
        normaliser=Normaliser(scale=1.0), sequences_sha256="cd" * 32,
    )  # fmt: skip
    return resolve(train.model_dump() | {"device": "cpu"}, store)


# Latents, steps, batch, rate, warm-up: the papers' texts and their code (docs/adr/0020).
PUBLISHED: dict[str, tuple[str, int, int, int, float, int]] = {
    "interplm-8m": ("relu", 10_240, 500_000, 2048, 1e-4, 25_000),
    "interplm-650m": ("relu", 10_240, 200_000, 2048, 5e-4, 10_000),
    "reticular-3b-l18": ("topk", 20_480, 1_220_704, 2048, 1e-4, 1000),
    "reticular-3b-l36": ("topk", 20_480, 1_220_704, 2048, 1e-4, 1000),
    "reticular-8m": ("topk", 10_240, 1_220_704, 2048, 1e-4, 1000),
    "reticular-3b-l18-matryoshka": ("matryoshka", 20_480, 300_000, 2048, 1e-4, 1000),
    "reticular-3b-l36-matryoshka": ("matryoshka", 20_480, 300_000, 2048, 1e-4, 1000),
    "reticular-8m-matryoshka": ("matryoshka", 10_240, 300_000, 2048, 1e-4, 1000),
    "reticular-3b-l18-l1": ("l1_april", 20_480, 1_220_704, 2048, 1e-7, 10_000),
    "reticular-3b-l36-l1": ("l1_april", 20_480, 1_220_704, 2048, 1e-7, 10_000),
    "reticular-8m-l1": ("l1_april", 10_240, 1_220_704, 2048, 1e-7, 10_000),
    "interprot-650m": ("topk", 4096, 18_750, 48 * 250, 2e-4, 0),
    "esmc-600m": ("relu", 2304, 48_828_125, 256, 1e-3, 0),
}


@pytest.mark.parametrize("name", paper_names())
def test_a_training_has_the_published_numbers(name: str) -> None:
    run = resolved(name)
    config, settings = run.config, run.settings
    found = (config.architecture, config.dictionary_size, settings.num_steps, settings.batch_size,
             settings.learning_rate, settings.warmup_steps)  # fmt: skip
    assert found == PUBLISHED[name]
    assert settings.decay_steps == 0
    assert not settings.anneal_fraction
    assert not settings.resample_steps


@pytest.mark.parametrize("name", [name for name in paper_names() if name.startswith("reticular")])
def test_reticular_in_figures(name: str) -> None:
    run = resolved(name)
    config, settings = run.config, run.settings
    assert settings.betas == (0.9, 0.999)
    assert (settings.clip_norm, settings.dead_after_tokens) == (1.0, 10_000_000)
    if name.endswith("-l1"):
        assert (config.options["penalty"], settings.penalty_warmup_steps) == (0.1, pytest.approx(10_000, abs=0.5))
        return
    assert config.k == 100
    assert (config.options["aux_alpha"], config.options["aux_k"]) == (1 / 32, config.d_model // 2)
    assert (settings.center, settings.num_center_rows) == ("geometric_median", 2048)
    if name.endswith("-matryoshka"):
        # int(0.0273 n), int(0.0427 n), ... and the rest, as its code cuts them
        sizes = [559, 874, 1554, 3497, 13_996] if config.d_model == 2560 else [279, 437, 777, 1748, 6999]
        assert list(config.options["group_sizes"]) == sizes
        assert config.options["reduction"] == "dictionary_learning"


@pytest.mark.parametrize("name", ["interplm-8m", "interplm-650m"])
def test_interplm_in_figures(name: str) -> None:
    run = resolved(name)
    assert (run.config.options["reconstruction"], run.config.options["penalty"]) == ("unsquared", 0.1)
    settings = run.settings
    assert settings.penalty_warmup_steps == settings.warmup_steps == 0.05 * settings.num_steps
    assert (settings.warmup_from_zero, settings.clip_norm, settings.center) == (True, None, "zero")


def test_interprot_and_esm_c_in_figures() -> None:
    run = resolved("interprot-650m")
    assert (run.config.k, run.config.options["aux_k"], run.settings.dead_after_tokens) == (64, 640, 2000 * 250)
    assert (run.settings.clip_norm, run.settings.center) == (1.0, "zero")
    run = resolved("esmc-600m")
    assert (run.settings.clip_norm, run.settings.center, run.config.hook) == (None, "geometric_median", "mlp")


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("interplm-8m", [1, 2, 3, 4, 5, 6]),
        ("interplm-650m", [1, 9, 18, 24, 30, 33]),
        ("reticular-3b-l18-l1", [18]),
        ("reticular-3b-l36-matryoshka", [36]),
        ("reticular-8m", [3]),
        ("interprot-650m", [24]),
        ("esmc-600m", [5, 15, 25]),
    ],
)
def test_the_layers_are_those_of_the_papers(name: str, places: list[int]) -> None:
    extract = preset(name).load(ExtractActivationsParams, "extract_activations")
    assert [extract.layer, *(place.layer for place in extract.also)] == places
    assert {extract.hook, *(place.hook for place in extract.also)} == {"mlp" if name == "esmc-600m" else "residual"}


@pytest.mark.parametrize(
    ("name", "sequences", "longest"),
    [("interplm-8m", 5_000_000, 1022), ("interplm-650m", 5_000_000, 1022), ("reticular-8m-l1", 10_000_000, 1022),
     ("reticular-3b-l18", 10_000_000, 1022), ("reticular-3b-l36-matryoshka", 10_000_000, 1022),
     ("interprot-650m", 900_000, 1022), ("esmc-600m", 5_000_000, 1024)],
)  # fmt: skip
def test_corpora_are_those_of_the_papers(name: str, sequences: int, longest: int) -> None:
    ingest = preset(name).section("ingest")
    assert (ingest["mode"], ingest["max_proteins"], ingest["max_residues"]) == ("corpus", sequences, longest)
    assert "uniref50" in ingest["source"]


@pytest.mark.parametrize("name", ["full-demo", *paper_names()])
def test_the_sweep_of_a_preset_is_one(name: str) -> None:
    params = load_params(preset(name), stage("sweep"))
    assert isinstance(params, SweepParams)
    members = params.members()
    if name.startswith("interplm"):
        assert len(members) == 20
        published = ((1e-8, 1e-4), (0.07, 0.2)) if name == "interplm-8m" else ((5e-6, 5e-4), (0.04, 0.2))
        for field, (low, high) in zip(("learning_rate", "penalty"), published, strict=True):
            values = {getattr(member, field) for member in members.values()}
            assert (min(values), max(values)) == (low, high)
    if name.endswith("-matryoshka"):
        assert sorted(member.k for member in members.values()) == [1, 2, 4, 8, 16, 32, 64, 128]
    if name != "full-demo":
        assert params.select_by == "fidelity"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), SCALE * activations(4096), SCALE * activations(1024, seed=1))


@pytest.mark.parametrize("name", paper_names())
def test_a_short_training_of_every_preset_runs(name: str, store: Path, tmp_path: Path) -> None:
    """Its section as it is, but for the length and, of a 16-wide store, the size of the dictionary."""
    section = preset(name).section("train_sae")
    smaller: dict[str, Any] = {"tokens": 4 * section["batch_size"], "dictionary_size": 256, "expansion_factor": None}
    params = validate(TrainSaeParams, section | smaller | {"threads": 1, "device": "cpu"}, section="train_sae")
    execute(dataclasses.replace(STAGE, tracked=False), params, root=tmp_path, inputs={"activations": store})
    output = tmp_path / "outputs" / "train_sae"
    training = load_folder(output / "sae").config.training
    assert training["steps"] == 4
    assert (training["preset"], training["batch_size"]) == (section["preset"], section["batch_size"])
    assert training["learning_rate"] == section["learning_rate"]
    assert 0 < json.loads((output / "metrics.json").read_text())["fvu"] < math.inf


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / SOURCES / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_source_takes_over_what_it_extends_and_the_defaults(tmp_path: Path) -> None:
    write(
        tmp_path,
        shared__a="train_sae:\n  k: 16  # of a\n  tokens: 100  # of a, too\n",
        shared__b="train_sae:\n  k: 24\nevaluate:\n  fidelity:\n    seed: 5  # of b\n",
        mine="# What it is.\n# And why.\nextends: [shared/a, shared/b]\ningest:\n  mode: corpus\n",
    )
    (text,) = preset_targets("GENERATED from src/plmsae/stages.", tmp_path).values()
    lines = text.splitlines()
    assert lines[1:4] == ["# GENERATED from presets/sources/mine.yaml.", "# What it is.", "# And why."]
    assert lines[4] == "# To run: cp presets/mine.yaml params.yaml && dvc repro train_sae"
    assert "  k: 24" in lines  # the comment was about another value
    assert "  tokens: 100  # of a, too" in lines
    assert "    seed: 5  # of b" in lines
    data = yaml.safe_load(text)
    assert data["train_sae"] == TrainSaeParams(k=24, tokens=100).model_dump(mode="json")
    assert data["evaluate"]["fidelity"]["seed"] == 5


def test_the_demo_is_taken_over_by_name(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train_sae:\n  k: 7  # the demo's\n  tokens: 8\n")
    write(tmp_path, mine="extends: [params]\ntrain_sae: {tokens: 9}\n")
    targets = preset_targets("GENERATED", tmp_path)
    assert list(targets) == ["presets/mine.yaml"]
    data = yaml.safe_load(targets["presets/mine.yaml"])
    assert (data["train_sae"]["k"], data["train_sae"]["tokens"]) == (7, 9)
    assert "# To run: cp presets/mine.yaml params.yaml && dvc repro\n" in targets["presets/mine.yaml"]


@pytest.mark.parametrize(
    ("files", "problem", "where", "fix"),
    [
        ({"a": "train_sae: {kk: 1}"}, "unknown parameter 'train_sae.kk'", "a.yaml, line 1", "did you mean 'k'"),
        ({"a": "train_sea: {k: 1}"}, "unknown section 'train_sea'", "a.yaml, line 1", "did you mean 'train_sae'"),
        ({"a": "evaluate:\n  fidelty: {seed: 1}"}, "unknown section 'evaluate.fidelty'", "line 2", "evaluate.fidelity"),
        ({"a": "extends: [shared/bb]", "shared__b": ""}, "no source 'shared/bb'", "a.yaml, line 1", "shared/b"),
        ({"a": "extends: shared/b"}, "`extends` is not a list of names", "a.yaml, line 1", "write [name"),
        ({"a": "extends: [shared/b]", "shared__b": "extends: [a]"}, "extends itself", "b.yaml", "break the circle"),
        ({"a": "extends: [shared/b]", "shared__b": "\ntrain_sae: {k: 0}"}, "'train_sae.k' = 0", "b.yaml, line 2", ""),
    ],
)
def test_a_source_that_is_wrong_is_refused(
    files: dict[str, str], problem: str, where: str, fix: str, tmp_path: Path
) -> None:
    write(tmp_path, **files)
    with pytest.raises(UserError) as caught:
        preset_targets("GENERATED", tmp_path)
    assert problem in caught.value.problem
    assert where in (caught.value.where or "")
    assert fix in (caught.value.fix or "")


def test_a_folder_without_sources_has_no_presets(tmp_path: Path) -> None:
    assert preset_targets("GENERATED", tmp_path) == {}
