"""Presets against the libraries' own trainers: the loss of every step, the weights at the end, the defaults, in fp64.

`golden_trainers.json` is what `scripts/golden_trainers.py` printed, with dictionary_learning 0.1.0 from the package
registry and InterPLM at commit 5f4cbf9. Both sides start at the same weights and see the same batches. Not compared,
since it differs on purpose: AuxK on the step on which a latent wakes up (they count it as alive, we as dead until the
next), and thresholds below zero (we do not let them). Neither happens in these runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plmsae.activations.metadata import Normaliser, StoreMetadata
from plmsae.params import validate
from plmsae.saes import build
from plmsae.training.center import starting_center
from plmsae.training.checkpoint import Checkpoint, save_checkpoint
from plmsae.training.loop import train
from plmsae.training.parameters import TrainSaeParams
from plmsae.training.resolution import Resolved, resolve
from scripts import golden_trainers as theirs

GOLDEN = json.loads((Path(__file__).parent / "golden_trainers.json").read_text())
RUNS = [(preset, architecture) for preset in sorted(GOLDEN) for architecture in sorted(GOLDEN[preset])]
every = pytest.mark.parametrize(("preset", "architecture"), RUNS)


class Formula:
    """The batches of the script."""

    num_rows = 64 * theirs.B

    def __init__(self, one_batch: bool = False) -> None:
        self.one_batch = one_batch

    def batch(self, step: int) -> Tensor:
        return theirs.batch(0 if self.one_batch else step)

    def state(self) -> dict[str, int]:
        return {"batch_size": theirs.B}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def resolved(preset: str, architecture: str, d_model: int = theirs.D, **changes: Any) -> Resolved:
    store = StoreMetadata(
        plm="plm", plm_revision="r", layer=1, hook="residual", dtype="float32", d_model=d_model, block_rows=8,
        num_tokens={"train": 1000, "valid": 100}, normaliser=Normaliser(scale=1.0), sequences_sha256="cd" * 32,
    )  # fmt: skip
    given = {"architecture": architecture, "preset": preset, "k": theirs.K, "device": "cpu", **changes}
    return resolve(validate(TrainSaeParams, given, section="train_sae").model_dump(), store)


def as_run_there(
    preset: str, architecture: str, steps: int = 0, rate: float = theirs.LEARNING_RATE, **changes: Any
) -> Resolved:
    """The preset with what the script gave to their trainers."""
    steps = steps or theirs.STEPS[preset]
    given: dict[str, Any] = {
        "expansion_factor": None, "dictionary_size": theirs.N, "batch_size": theirs.B, "tokens": steps * theirs.B,
        "learning_rate": rate, "penalty": theirs.PENALTY.get(architecture), "validate_every": 1,
        "num_valid_rows": theirs.B,
    }  # fmt: skip
    if preset == "dictionary_learning":
        given["warmup_steps"] = theirs.WARMUP
        given["decay_fraction"] = (steps - min(theirs.DECAY_START, steps - 1)) / steps
    if architecture == "jump_relu" or (preset == "dictionary_learning" and architecture in theirs.PENALTY):
        given["penalty_warmup_fraction"] = theirs.PENALTY_WARMUP / steps
    if architecture == "jump_relu":
        given |= {"bandwidth": theirs.BANDWIDTH, "target_l0": theirs.TARGET_L0}
    if architecture == "matryoshka":
        given["group_fractions"] = list(theirs.GROUPS)
    return resolved(preset, architecture, **given, **changes)


def start(run: Resolved, norm: float, checkpoints: Path) -> None:
    """A checkpoint after no steps, with the script's weights and the preset's start of the decoder's bias."""
    sae = build(run.config)
    values = theirs.start(norm)
    center = starting_center(theirs.batch(0)[: run.settings.num_center_rows], run.settings.center)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(center if name == "b_dec" and center is not None else values[name])
    state = {f"sae.{name}": tensor for name, tensor in sae.state_dict().items()}
    for name, parameter in sae.named_parameters():
        state |= {f"adam.{name}.{moment}": torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
        state[f"adam.{name}.step"] = torch.tensor(0.0, dtype=torch.float32)
    state |= {"tokens_since_fired": torch.zeros(theirs.N, dtype=torch.int64), "window": torch.zeros(5)}
    member = {"name": "sae", "curves": [], "variance": 1.0, "failed": None}
    last_step = {"resampled_at": 0, "penalty_factor": 1.0, "rates": [0.0] * (1 + len(sae.own_group))}
    info = {"source": Formula().state(), "pending": False, "members": [member | last_step]}
    save_checkpoint(checkpoints, Checkpoint(0, {f"0.{name}": value for name, value in state.items()}, info))


@every
def test_the_loss_of_every_step_and_the_weights_at_the_end(preset: str, architecture: str, tmp_path: Path) -> None:
    golden = GOLDEN[preset][architecture]
    run = as_run_there(preset, architecture)
    start(run, golden["start"]["atom_norm"], tmp_path)
    trained = train(run.config, "auto", Formula(), Formula(), run.settings, tmp_path)
    # The median is theirs to within the 1e-5 at which they stop, and 1e-6 beside a norm in their projection.
    rel = 1e-12 if architecture in ("relu", "l1_april", "gated") else 5e-6
    assert [row["loss"] for row in trained.curves] == pytest.approx(golden["loss"], rel=rel)
    found = {name: theirs.digest(parameter) for name, parameter in trained.sae.named_parameters()}
    assert found == pytest.approx(golden["end"], rel=10 * rel, abs=10 * rel)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize(("preset", "architecture"), [run for run in RUNS if "aux_loss" in GOLDEN[run[0]][run[1]]])
def test_the_loss_with_dead_latents(preset: str, architecture: str, kernel: str, tmp_path: Path) -> None:
    golden = GOLDEN[preset][architecture]
    dead_after = (theirs.DEAD_STEPS - 1) * theirs.B
    run = as_run_there(preset, architecture, theirs.AUX_STEPS, theirs.AUX_LEARNING_RATE, dead_after_tokens=dead_after)
    start(run, 1.0, tmp_path)
    same = Formula(one_batch=True)
    trained = train(run.config, kernel, same, same, run.settings, tmp_path)
    assert [row["loss"] for row in trained.curves] == pytest.approx(golden["aux_loss"], rel=5e-6)
    assert golden["num_dead"] > theirs.D // 2  # more than AuxK may use
    assert trained.dead_fraction == golden["num_dead"] / theirs.N


@every
def test_what_is_not_given_is_their_default(preset: str, architecture: str) -> None:
    defaults, begin = GOLDEN[preset][architecture]["defaults"], GOLDEN[preset][architecture]["start"]
    steps = 10_001 if preset == "interplm" else 10_000
    sizes: dict[str, Any] = {"expansion_factor": None, "dictionary_size": theirs.N, "batch_size": 1, "tokens": steps}
    if architecture == "matryoshka":
        sizes["group_fractions"] = list(theirs.GROUPS)
    run = resolved(preset, architecture, **sizes)
    settings, options = run.settings, build(run.config).options
    found = {
        "lr": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "sparsity_warmup_steps": settings.penalty_warmup_steps,
        "penalty_warmup_steps": settings.penalty_warmup_steps,
        "decay_start": steps - settings.decay_steps if settings.decay_steps else None,
        "l1_penalty": options.get("penalty"),
        "sparsity_coefficient": options.get("penalty"),
        "auxk_alpha": options.get("aux_alpha"),
        "top_k_aux": options.get("aux_k"),
        "bandwidth": options.get("bandwidth"),
        "target_l0": options.get("target_l0"),
        "dead_feature_threshold": settings.dead_after_tokens,
        "betas": list(settings.betas or ()),
        "eps": settings.eps,
        "clip_norm": settings.clip_norm,
    }
    for name, value in defaults.items():
        if value is not None or name == "decay_start":
            assert found[name] == pytest.approx(value), name
    sae = build(run.config)
    assert float(sae.atoms.norm(dim=1).mean()) == pytest.approx(begin["atom_norm"])
    encoder = sae.get_parameter("W_enc")
    assert bool(torch.equal(encoder, sae.atoms)) == begin["encoder_is_atoms"]
    # Of a matrix with 256 random entries.
    assert float(encoder.norm(dim=1).mean()) == pytest.approx(begin["encoder_norm"], rel=0.1)
    if begin["threshold"] is not None:
        assert float(sae.get_parameter("threshold").mean()) == pytest.approx(begin["threshold"])


def test_interplm_rounds_its_spans_as_it_does() -> None:
    """Of 10,001 steps: a warm-up of 500.05, lambda over 500, decay from step 5,000."""
    settings = resolved("interplm", "relu", batch_size=1, tokens=10_001).settings
    assert settings.warmup_steps == pytest.approx(500.05)
    assert (settings.penalty_warmup_steps, settings.decay_steps) == (500, 5001)
