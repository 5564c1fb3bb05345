"""SAEs that share each batch: every one is, byte for byte, what training it alone gives; one that diverges is alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.saes import save
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.loop import Trained, train, train_all
from plmsae.training.member import Failed, Plan
from tests.training.streams import Rows, activations, small_config, small_settings
from tests.training.test_architectures import CONFIGS, SETTINGS, Interrupted

# Dead latents are soon called dead, so that AuxK and resampling have something to do.
DEAD = {"dead_after_tokens": 2560, "num_steps": 100}
RESAMPLES = {"resample_steps": (30, 60), "num_resample_rows": 1000}


def plan(name: str, architecture: str = "topk", *, seed: int = 3, size: int = 64, **settings: object) -> Plan:
    k = {"k": size} if "k" in CONFIGS[architecture] else {"k": 4 if name == "small k" else 6}
    options = {**CONFIGS[architecture], **k}
    config = small_config(architecture=architecture, dictionary_size=size, **options)
    given = {**SETTINGS, **DEAD, "seed": seed, **settings}
    return Plan(config, small_settings(**given), "reference" if name == "reference" else "auto", name)


GRID = [
    plan("first"),
    plan("small k", size=128),
    plan("reference", "batch_topk", seed=4),
    plan("annealed", "batch_topk", anneal_fraction=0.5, anneal_from=16, seed=11),
    plan("nested", "matryoshka", learning_rate=1e-3),
    plan("controlled", "jump_relu", seed=5),
    plan("resampled", "relu", size=256, center="mean", **RESAMPLES),
    plan("gated", "gated", clip_first=True, penalty_warmup_fraction=0.2),
    plan("april", "l1_april", seed=6),
]


def run(plans: Sequence[Plan], checkpoints: Path, stop: int = 10**9) -> list[Trained | Failed]:
    torch.set_num_threads(1)
    source = Interrupted(activations(8000), 256)
    source.stop = stop
    return train_all(plans, source, Rows(activations(2000, seed=1), 256), checkpoints)


def sae_bytes(trained: Trained | Failed, folder: Path) -> bytes:
    assert isinstance(trained, Trained)
    save(trained.sae, folder)
    return (folder / "sae.safetensors").read_bytes() + (folder / "config.json").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    folder = tmp_path_factory.mktemp("alone")
    found = [run([plan], folder / plan.name)[0] for plan in GRID]
    assert all(isinstance(trained, Trained) for trained in found)
    return [trained for trained in found if isinstance(trained, Trained)]


def test_each_is_what_training_it_alone_gives(alone: list[Trained], tmp_path: Path) -> None:
    together = run(GRID, tmp_path / "checkpoints")
    distinct = set()
    for item, one, other in zip(GRID, alone, together, strict=True):
        wanted = sae_bytes(one, tmp_path / "one")
        assert sae_bytes(other, tmp_path / "other") == wanted, item.name
        assert isinstance(other, Trained)
        assert other.curves == one.curves, item.name
        assert other.dead_fraction == one.dead_fraction
        distinct.add(wanted)
    assert len(distinct) == len(GRID)


@pytest.mark.parametrize("stop", [50, 75])
def test_a_resumed_training_ends_the_same_for_all(alone: list[Trained], tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(GRID, tmp_path / "checkpoints", stop)
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 50
    resumed = run(GRID, tmp_path / "checkpoints")
    for item, one, other in zip(GRID, alone, resumed, strict=True):
        assert sae_bytes(other, tmp_path / "other") == sae_bytes(one, tmp_path / "one"), item.name
        assert isinstance(other, Trained)
        assert other.curves == one.curves, item.name


def test_one_that_diverges_leaves_the_others_as_they_are(
    alone: list[Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plans = [plan("wild", learning_rate=1e25), GRID[0], plan("wilder", learning_rate=1e30)]
    with caplog.at_level(logging.WARNING, logger="plmsae"):
        first, good, last = run(plans, tmp_path / "whole")
    assert sae_bytes(good, tmp_path / "good") == sae_bytes(alone[0], tmp_path / "alone")
    for name, failed in (("wild", first), ("wilder", last)):
        assert isinstance(failed, Failed)
        assert failed.name == name
        assert "diverged" in failed.problem
        assert failed.last_good_step in (0, 40)
        assert f"{name}: the training diverged" in caplog.text
    # A resume knows that they failed and does not run them again.
    with pytest.raises(KeyboardInterrupt):
        run(plans, tmp_path / "cut", stop=50)
    found = latest_checkpoint(tmp_path / "cut")
    assert found is not None
    assert not any(name.startswith(("0.", "2.")) for name in found.tensors)
    again = run(plans, tmp_path / "cut")
    assert (again[0], again[2]) == (first, last)
    assert sae_bytes(again[1], tmp_path / "again") == sae_bytes(alone[0], tmp_path / "alone")


def test_when_all_diverge_the_training_fails_and_names_the_checkpoint(tmp_path: Path) -> None:
    wild = [plan(f"wild {rate}", learning_rate=rate, checkpoint_every=1) for rate in (1e25, 1e30)]
    with pytest.raises(DataError, match="diverged") as error:
        run(wild, tmp_path)
    assert "last good checkpoint: step" in (error.value.where or "")


@pytest.mark.parametrize("change", [{"num_steps": 99}, {"validate_every": 7}, {"checkpoint_every": 3}])
def test_what_must_be_shared_is_named(tmp_path: Path, change: dict[str, int]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=f"{name} is .* for 'first' and {value} for 'other'"):
        run([GRID[0], plan("other", **change)], tmp_path)


def test_the_case_of_one_raises(tmp_path: Path) -> None:
    wild = plan("wild", learning_rate=1e25)
    rows = Rows(activations(2000), 256)
    with pytest.raises(DataError, match="diverged"):
        train(wild.config, "auto", rows, rows, wild.settings, tmp_path)
