"""Every architecture through the training loop: it learns, is as sparse as promised, and resumes to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plmsae.saes import build, save, trainable_architectures
from plmsae.training.center import geometric_median
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.export import held_out
from plmsae.training.loop import Trained, train
from plmsae.training.member import Member, Plan
from tests.training.streams import Rows, activations, small_config, small_settings

# k latents of 64, or n and a penalty that leaves about ten; 200 steps of the small settings.
CONFIGS: dict[str, dict[str, Any]] = {
    "batch_topk": {},
    "gated": {"k": 64, "penalty": 0.05},
    "jump_relu": {"k": 64, "target_l0": 8, "l0_control": "controller", "bandwidth": 0.1, "initial_threshold": 0.05},
    "l1_april": {"k": 64, "penalty": 0.1},
    "matryoshka": {"group_sizes": [4, 12, 48]},
    "relu": {"k": 64, "penalty": 0.1},
    "topk": {},
}
L0 = {"topk": (4, 6), "batch_topk": (5.9, 6.1), "matryoshka": (5.9, 6.1), "jump_relu": (7, 9)}
SETTINGS = {"num_steps": 200, "learning_rate": 4e-3, "checkpoint_every": 50, "validate_every": 40}
every = pytest.mark.parametrize("architecture", trainable_architectures())


class Interrupted(Rows):
    """Fails once the given number of steps is done."""

    stop = 10**9

    def batch(self, step: int) -> torch.Tensor:
        if step > self.stop:  # the loop asks for one batch ahead
            raise KeyboardInterrupt
        return super().batch(step)


def run(architecture: str, checkpoints: Path, stop: int = 10**9) -> Trained:
    torch.set_num_threads(1)
    settings = small_settings(**SETTINGS)
    source = Interrupted(activations(8000), settings.batch_size)
    source.stop = stop
    valid = Rows(activations(2000, seed=1), settings.batch_size)
    config = small_config(architecture=architecture, **CONFIGS[architecture])
    return train(config, "auto", source, valid, settings, checkpoints)


@pytest.fixture(scope="module", params=trainable_architectures())
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(request.param, tmp_path_factory.mktemp("checkpoints"))


def test_it_learns_and_is_as_sparse_as_promised(trained: Trained) -> None:
    architecture = trained.sae.config.architecture
    first, last = trained.curves[0], trained.curves[-1]
    assert last["valid_fvu"] < 0.5
    assert last["valid_fvu"] < first["valid_fvu"]
    assert last["fvu"] == pytest.approx(last["valid_fvu"], rel=0.25)  # as good by threshold as over the batch
    x = activations(3000, seed=2)  # rows that neither the training nor the calibration saw
    active = float((trained.sae.encode(x) > 0).sum(1).double().mean())
    low, high = L0.get(architecture, (2, 30))
    slack = 0.4 if trained.sae.calibrated else 0.0
    assert low - slack <= active <= high + slack
    assert low <= last["l0"] <= high


def test_resuming_ends_with_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    architecture = trained.sae.config.architecture
    save(trained.sae, tmp_path / "whole")
    for stop in (50, 150):
        folder = tmp_path / f"from{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(architecture, folder, stop)
        found = latest_checkpoint(folder)
        assert found is not None
        assert found.step == stop
        resumed = run(architecture, folder)
        save(resumed.sae, tmp_path / f"sae{stop}")
        for name in ("sae.safetensors", "config.json"):
            assert (tmp_path / f"sae{stop}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert resumed.curves == trained.curves


def test_a_finished_training_is_not_calibrated_or_trained_again(tmp_path: Path) -> None:
    first, second = (run("batch_topk", tmp_path) for _ in range(2))
    assert all(torch.equal(tensor, second.sae.state_dict()[name]) for name, tensor in first.sae.state_dict().items())


def test_prefixes_of_a_matryoshka_get_better_and_end_at_the_whole(tmp_path: Path) -> None:
    sae = run("matryoshka", tmp_path).sae
    source = Rows(activations(2000, seed=1), 256)
    found = held_out([sae], source, 1000)[0].compute()
    first, second, last = (found[f"fvu_prefix_{number}"] for number in (1, 2, 3))
    assert "fvu_prefix_4" not in found
    assert 1 > first > second > last
    x = torch.cat([source.batch(step) for step in range(4)])[:1000].double()
    wanted = (x - sae(x.float()).double()).square().sum() / (x - x.mean(0)).square().sum()
    assert last == pytest.approx(float(wanted), rel=1e-5)


@every
def test_optimiser_groups_hold_every_parameter_once(architecture: str) -> None:
    sae = build(small_config(architecture=architecture, **CONFIGS[architecture]))
    optimizer = Member(Plan(sae.config, small_settings()), sae, variance=1.0).optimizer
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in sae.parameters())
    assert [len(group["params"]) for group in optimizer.param_groups[1:]] == [1] * len(sae.own_group)
    assert {group["betas"] for group in optimizer.param_groups} == {sae.betas}


@pytest.mark.parametrize("architecture", ["relu", "l1_april", "jump_relu"])
def test_the_penalty_warms_up_in_the_loop(architecture: str, tmp_path: Path) -> None:
    settings = small_settings(num_steps=12, validate_every=1, penalty_warmup_fraction=0.5)
    options = {"penalty": 0.1} if architecture != "jump_relu" else {"penalty": 0.1, "bandwidth": 0.1}
    config = small_config(64, architecture=architecture, **options)
    source = Rows(activations(8000), 256)
    curves = train(config, "auto", source, Rows(activations(300), 256), settings, tmp_path).curves
    sample = activations(8000)[: settings.num_init_rows].double()
    variance = float((sample - sample.mean(0)).square().sum(1).mean())
    for row in curves:
        penalty = row["loss"] - row["fvu"] * variance
        factor = min(1.0, row["step"] / 6)
        assert penalty == pytest.approx(0.1 * factor * row["aux_loss"], rel=1e-4), row["step"]


def test_five_steps_of_jump_relu_written_out(tmp_path: Path) -> None:
    """Thresholds are clipped apart: in one norm with the weights a large gradient there would scale them away."""
    changes = {"num_steps": 5, "clip_norm": 0.05, "decay_fraction": 0.0, "penalty_warmup_fraction": 0.0}
    settings = small_settings(**changes, threshold_learning_rate=7e-3)
    x = activations(8000)
    config = small_config(
        architecture="jump_relu", **{**CONFIGS["jump_relu"], "l0_control": "quadratic", "penalty": 5.0}
    )
    trained = train(config, "auto", Rows(x, 256), Rows(x[:300], 256), settings, tmp_path).sae
    sae = build(config)
    sae.initialise(torch.Generator().manual_seed(settings.seed), geometric_median(x[: settings.num_init_rows]))
    weights = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    thresholds = [sae.get_parameter("threshold")]
    optimizer = torch.optim.Adam(
        [{"params": weights}, {"params": thresholds}], lr=settings.learning_rate, betas=(0.0, 0.999), eps=6.25e-10
    )
    clipped = []
    for step in range(5):
        for group, rate in zip(optimizer.param_groups, (settings.learning_rate, 7e-3)):
            group["lr"] = rate * (step + 1) / 10
        optimizer.zero_grad()
        sae.loss(x[step * 256 : step * 256 + 256]).total.backward()  # type: ignore[no-untyped-call]
        sae.constrain_gradients()
        clipped.append([float(torch.nn.utils.clip_grad_norm_(group, 0.05)) for group in (weights, thresholds)])
        optimizer.step()
        sae.constrain_weights()
    assert all(norm > 0.05 for norms in clipped for norm in norms)  # both clips did something
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), parameter.detach(), rtol=1e-4, atol=1e-6)
