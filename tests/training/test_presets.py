"""The table of presets, and how parameters and a preset become settings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from plmsae.activations.metadata import Normaliser, StoreMetadata
from plmsae.errors import UserError
from plmsae.params import validate
from plmsae.saes import build, trainable_architectures
from plmsae.training.parameters import TrainSaeParams
from plmsae.training.presets import PRESETS, Span, at_most_512, half_width, power_of_two, recipe
from plmsae.training.resolution import SELECTS_K, Resolved, resolve
from plmsae.training.schedules import annealed_k, warmup, warmup_decay

PAIRS = [(preset, architecture) for preset in PRESETS for architecture in PRESETS[preset]]
MISSING = [(p, a) for p in PRESETS for a in trainable_architectures() if a not in PRESETS[p]]


def resolved(architecture: str = "topk", preset: str = "plmsae", d_model: int = 256, **changes: Any) -> Resolved:
    store = StoreMetadata(
        plm="plm", plm_revision="r", layer=1, hook="residual", dtype="float32", d_model=d_model, block_rows=8,
        num_tokens={"train": 1000, "valid": 100}, normaliser=Normaliser(scale=1.0), sequences_sha256="cd" * 32,
    )  # fmt: skip
    given = {"architecture": architecture, "preset": preset, "device": "cpu", **changes}
    return resolve(validate(TrainSaeParams, given, section="train_sae").model_dump(), store)


def test_our_defaults_are_what_they_were_before_there_were_presets() -> None:
    run = resolved()
    settings = run.settings
    assert (settings.num_steps, settings.batch_size, settings.learning_rate) == (1954, 2048, 4e-4)
    assert (settings.warmup_steps, settings.decay_steps, settings.warmup_from_zero) == (100, 0.2 * 1954, False)
    assert (settings.betas, settings.eps, settings.clip_norm) == ((0.9, 0.999), 6.25e-10, 1.0)
    assert (settings.clip_first, settings.clip_together) == (False, False)
    assert (settings.center, settings.num_center_rows, settings.num_init_rows) == ("geometric_median", None, 16_384)
    assert (settings.dead_after_tokens, settings.resample_steps, settings.anneal_fraction) == (50_000, (), 0.0)
    assert run.config.options == {"aux_alpha": 1 / 32, "aux_k": 128}
    assert resolved(tokens=10**9).settings.dead_after_tokens == 10_000_000
    for architecture, penalty in (("relu", 0.1), ("gated", 0.1), ("l1_april", 5 / 16), ("jump_relu", 1e-3)):
        run = resolved(architecture)
        assert run.settings.penalty_warmup_steps == 0.05 * 1954
        assert run.settings.betas == ((0.0, 0.999) if architecture in ("gated", "jump_relu") else (0.9, 0.999))
        assert build(run.config).options["penalty"] == penalty


@pytest.mark.parametrize(("preset", "architecture"), PAIRS)
def test_every_pair_builds_and_says_in_the_record_how(preset: str, architecture: str) -> None:
    run = resolved(architecture, preset, tokens=50_000_000)
    sae = build(run.config)
    assert set(run.config.options) <= set(sae.default_options)
    record, settings = run.record, run.settings
    assert record["preset"] == preset
    assert record["tokens"] == settings.num_steps * settings.batch_size >= 50_000_000
    assert record["adam"] == dict(zip(("beta1", "beta2", "eps"), (*(settings.betas or ()), settings.eps)))
    for name in ("learning_rate", "warmup_steps", "decay_steps", "clip_norm", "dead_after_tokens", "warmup_from_zero"):
        assert record[name] == getattr(settings, name)
    assert ("penalty_warmup_steps" in record) == (architecture not in SELECTS_K)
    assert "torch" not in repr(record)


@pytest.mark.parametrize(("preset", "architecture"), MISSING)
def test_pairs_that_do_not_exist_are_refused_with_those_that_do(preset: str, architecture: str) -> None:
    with pytest.raises(UserError, match=f"preset '{preset}' has no {architecture}; it has .*relu") as error:
        recipe(preset, architecture)
    assert error.value.fix.startswith("choose one of plmsae, paper")
    with pytest.raises(UserError, match=f"preset '{preset}' has no {architecture}"):
        resolved(architecture, preset)


def test_interplm_is_the_one_with_gaps() -> None:
    assert [("interplm", name) for name in ("gated", "l1_april", "matryoshka")] == MISSING


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'interplm'"):
        resolved(preset="interpml")
    with pytest.raises(UserError, match="unknown preset 'sae_lens'") as error:
        recipe("sae_lens", "topk")
    assert "'paper'" in error.value.fix


@pytest.mark.parametrize(
    ("architecture", "given", "where", "wanted"),
    [
        ("topk", {"learning_rate": 0.5}, "learning_rate", 0.5),
        ("topk", {"batch_size": 512}, "batch_size", 512),
        ("topk", {"warmup_steps": 0}, "warmup_steps", 0),
        ("topk", {"decay_fraction": 0.0}, "decay_steps", 0),
        ("topk", {"clip_norm": 0.0}, "clip_norm", None),
        ("topk", {"clip_norm": 3.0}, "clip_norm", 3.0),
        ("topk", {"adam_beta1": 0.5}, "betas", (0.5, 0.999)),
        ("topk", {"adam_beta2": 0.5}, "betas", (0.9, 0.5)),
        ("topk", {"adam_eps": 1e-3}, "eps", 1e-3),
        ("topk", {"center": "mean"}, "center", "mean"),
        ("topk", {"dead_after_tokens": 7}, "dead_after_tokens", 7),
        ("topk", {"anneal_fraction": 0.5}, "anneal_fraction", 0.5),
        ("relu", {"penalty_warmup_fraction": 0.0}, "penalty_warmup_steps", 0),
        ("relu", {"resample_steps": []}, "resample_steps", ()),
        ("relu", {"num_resample_rows": 9}, "num_resample_rows", 9),
        ("jump_relu", {"threshold_learning_rate": 0.25}, "threshold_learning_rate", 0.25),
    ],
)
@pytest.mark.parametrize("preset", ["paper", "dictionary_learning", "interplm"])
def test_what_is_given_wins(preset: str, architecture: str, given: dict[str, Any], where: str, wanted: object) -> None:
    plain = resolved(architecture, preset, tokens=10**9).settings
    changed = resolved(architecture, preset, tokens=10**9, **given).settings
    assert getattr(changed, where) == wanted
    if wanted:
        assert getattr(plain, where) != wanted


def test_options_that_are_given_win() -> None:
    run = resolved("jump_relu", "dictionary_learning", tokens=10**8, target_l0=7.0, penalty=0.5)
    assert run.config.options["target_l0"] == 7.0
    assert run.config.options["penalty"] == 0.5
    assert run.config.options["l0_control"] == "quadratic"
    run = resolved("jump_relu", "dictionary_learning", tokens=10**8, l0_control="controller")
    assert run.config.options["target_l0"] == 20.0
    run = resolved("matryoshka", "dictionary_learning", tokens=10**8, group_reduction="reference", aux_alpha=0.0)
    assert (run.config.options["reduction"], run.config.options["aux_alpha"]) == ("reference", 0.0)
    run = resolved("relu", "interplm", reconstruction="squared")
    assert run.config.options["reconstruction"] == "squared"
    assert resolved("relu", reconstruction="unsquared").config.options == {"reconstruction": "unsquared"}
    assert resolved("batch_topk", "paper", aux_k=3).config.options["aux_k"] == 3


@pytest.mark.parametrize(
    ("architecture", "preset", "changes", "message"),
    [
        ("topk", "dictionary_learning", {}, "warm-up of 1,000 steps, and this training 157 steps"),
        ("relu", "dictionary_learning", {"warmup_steps": 5}, "warm-up of 2,000 steps"),
        ("jump_relu", "paper", {"warmup_steps": 5, "batch_size": 256}, "warm-up of 10,000 steps"),
    ],
)
def test_a_training_within_the_warmup_is_refused(
    architecture: str, preset: str, changes: dict[str, Any], message: str
) -> None:
    given = {"tokens": 157 * 256, "batch_size": 256, **changes}
    with pytest.raises(UserError, match=message) as error:
        resolved(architecture, preset, **given)
    assert "train_sae.tokens" in error.value.fix
    resolved(architecture, preset, **{**given, "warmup_steps": 5}, **(
        {} if architecture == "topk" else {"penalty_warmup_fraction": 0.1}
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "changes", "wanted"),
    [
        ("plmsae", {}, None),
        ("plmsae", {"target_l0": 8}, 2e-3),
        ("plmsae", {"target_l0": 8, "l0_control": "controller"}, 2e-3),
        ("dictionary_learning", {}, None),
        ("dictionary_learning", {"l0_control": "controller"}, 2e-3),
    ],
)
def test_thresholds_with_a_target_are_faster(preset: str, changes: dict[str, Any], wanted: float | None) -> None:
    run = resolved("jump_relu", preset, learning_rate=4e-4, tokens=10**8, **changes)
    assert run.settings.threshold_learning_rate == (None if wanted is None else pytest.approx(wanted))
    assert run.record["threshold_learning_rate"] == pytest.approx(wanted or 4e-4)
    assert resolved("jump_relu", target_l0=8, threshold_learning_rate=0.1).settings.threshold_learning_rate == 0.1


def test_a_target_needs_a_target() -> None:
    with pytest.raises(UserError, match="give target_l0 as well"):
        resolved("jump_relu", l0_control="quadratic")
    resolved("jump_relu", "interplm", tokens=10**8, l0_control="controller")


def test_spans_and_rules_by_hand() -> None:
    assert Span(steps=7).of(100, 64) == 7
    assert Span(share=0.05).of(1001, 64) == pytest.approx(50.05)
    assert Span(share=0.05, whole="down").of(1019, 64) == 50
    assert Span(share=0.5, whole="up").of(1001, 64) == 501
    assert Span(tokens=204_800).of(10, 2048) == 100
    assert Span(tokens=204_800, steps=1, share=0.5).of(10, 1024) == 206
    assert [half_width(d, 100) for d in (1, 9, 320)] == [1, 4, 100]
    assert [power_of_two(d, 10**6) for d in (1, 320, 768, 1280)] == [1, 128, 512, 512]
    assert [at_most_512(320, n) for n in (40, 5120)] == [40, 512]
    # Rates: 2e-4 at 2^14 latents, halved by four times as many.
    assert resolved("topk", "interplm", expansion_factor=64).settings.learning_rate == pytest.approx(2e-4)
    assert resolved("topk", "interplm", expansion_factor=256).settings.learning_rate == pytest.approx(1e-4)
    assert math.isclose(resolved("relu", "paper", tokens=10**9).settings.learning_rate, 1e-3)


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_our_schedules_are_of_tokens_so_another_batch_size_has_the_same(architecture: str) -> None:
    """A step of 2,048 tokens against four of 512, over 400 x 2,048."""
    given = {"tokens": 400 * 2048, "anneal_fraction": 0.3 if architecture == "topk" else None}
    wide, narrow = (resolved(architecture, **given, batch_size=size).settings for size in (2048, 512))
    assert wide.dead_after_tokens == narrow.dead_after_tokens
    for step in range(400):
        first, last = 4 * step, 4 * step + 3  # of the small steps
        spans = [(s.num_steps, s.warmup_steps, 0.0) for s in (wide, narrow)]
        assert warmup_decay(step, *spans[0]) == pytest.approx(warmup_decay(last, *spans[1]))
        spans = [(s.num_steps, 0.0, s.decay_steps) for s in (wide, narrow)]
        assert warmup_decay(step, *spans[0]) == pytest.approx(warmup_decay(first, *spans[1]))
        assert warmup(step, wide.penalty_warmup_steps) == pytest.approx(warmup(last, narrow.penalty_warmup_steps))
        k = [annealed_k(n, s.num_steps, 32, 256, s.anneal_fraction) for n, s in ((step, wide), (first, narrow))]
        assert k[0] == k[1]


def test_a_reference_kernel_has_no_bfloat16() -> None:
    assert resolved(precision="bfloat16").record["precision"] == "bfloat16"
    with pytest.raises(UserError, match="kernel reference is the papers' step in float32"):
        resolved(precision="bfloat16", kernel="reference")
