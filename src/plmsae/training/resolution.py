"""From the parameters of `train_sae` and a preset to an SAE's configuration and the settings of its training.

A parameter that is null takes the preset's value; one that is given wins. What comes out has no null left, and is
written into the SAE's training record, so that nobody has to know the preset to know how an SAE was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plmsae.activations.metadata import StoreMetadata
from plmsae.errors import UserError
from plmsae.saes import SaeConfig
from plmsae.saes.matryoshka import FRACTIONS, sizes_of
from plmsae.training.parameters import SELECTS_K
from plmsae.training.presets import Recipe, recipe
from plmsae.training.schedules import default_learning_rate
from plmsae.training.settings import TrainingSettings, resolve_device

# A target for L0 is reached by the thresholds: at the weights' rate they lag behind, L0 overshoots and, since latents
# have died meanwhile, hardly comes back (measured on the demo: docs/architectures.md).
TARGET_THRESHOLD_RATE = 5.0
# Parameter -> option of the architecture, for those that are passed on as they are.
_OPTIONS = {
    "aux_alpha": "aux_alpha",
    "penalty": "penalty",
    "reconstruction": "reconstruction",
    "target_l0": "target_l0",
    "l0_control": "l0_control",
    "bandwidth": "bandwidth",
    "initial_threshold": "initial_threshold",
    "group_reduction": "reduction",
}


@dataclass(frozen=True)
class Resolved:
    """What a training needs.

    Attributes:
        config: The SAE.
        settings: How to train it.
        record: Both as far as they say how it was trained, for `SaeConfig.training`.
    """

    config: SaeConfig
    settings: TrainingSettings
    record: dict[str, Any]


def resolve(params: Mapping[str, Any], metadata: StoreMetadata) -> Resolved:
    """Fill in the preset.

    Args:
        params: Parameters of `train_sae` by name, consistent with each other.
        metadata: Of the activations.

    Raises:
        UserError: Parameters that do not fit each other or the activations; a training that would end before the
            preset's warm-up does; a device that is not there.
    """
    chosen = recipe(params["preset"], params["architecture"])
    config = _config(params, chosen, metadata)
    settings = _settings(params, chosen, config)
    _check_warmups(params, settings)
    return Resolved(config, settings, _record(params, config, settings))


def _config(params: Mapping[str, Any], chosen: Recipe, metadata: StoreMetadata) -> SaeConfig:
    size = params["dictionary_size"] or (params["expansion_factor"] or 1) * metadata.d_model
    selects = params["architecture"] in SELECTS_K
    if selects and params["k"] > size:
        raise UserError(
            f"k = {params['k']} is larger than the dictionary of {size} latents",
            where="train_sae.k",
            fix=f"lower train_sae.k to at most {size}, or enlarge the dictionary",
        )
    if selects and params["aux_k"] is not None and params["aux_k"] > size:
        raise UserError(
            f"aux_k = {params['aux_k']} is larger than the dictionary of {size} latents",
            where="train_sae.aux_k",
            fix="lower it, or set it to null",
        )
    return SaeConfig(
        architecture=params["architecture"],
        d_model=metadata.d_model,
        dictionary_size=size,
        k=params["k"] if selects else size,
        plm=metadata.plm,
        plm_revision=metadata.plm_revision,
        layer=metadata.layer,
        hook=metadata.hook,
        normaliser={"kind": "rms", "scale": metadata.normaliser.scale, "folded": False},
        options=_options(params, chosen, metadata.d_model, size),
    )


def _options(params: Mapping[str, Any], chosen: Recipe, d_model: int, dictionary_size: int) -> dict[str, Any]:
    """`SaeConfig.options`: the recipe's, then the parameters that are given; the rest is the architecture's default."""
    options = dict(chosen.options)
    options |= {option: params[name] for name, option in _OPTIONS.items() if params[name] is not None}
    if params["aux_k"] is not None:
        options["aux_k"] = params["aux_k"]
    elif chosen.aux_k is not None:
        options["aux_k"] = chosen.aux_k(d_model, dictionary_size)
    if params["architecture"] == "matryoshka":
        fractions = params["group_fractions"] or "power_law"
        shares = FRACTIONS[fractions] if isinstance(fractions, str) else tuple(fractions)
        options["group_sizes"] = sizes_of(shares, dictionary_size)
    return options


def _settings(params: Mapping[str, Any], chosen: Recipe, config: SaeConfig) -> TrainingSettings:
    def given(name: str, otherwise: Any) -> Any:
        return otherwise if params[name] is None else params[name]

    batch_size = given("batch_size", chosen.batch_size)
    num_steps = -(-params["tokens"] // batch_size)

    def share_of(name: str, otherwise: float) -> float:
        fraction = params[name]
        return otherwise if fraction is None else float(fraction * num_steps)

    clip_norm = given("clip_norm", chosen.clip_norm)
    dead_after = chosen.dead_after_tokens or min(10_000_000, max(1, params["tokens"] // 80))
    beta1, beta2 = chosen.betas
    rate = given("learning_rate", chosen.learning_rate or default_learning_rate(config.dictionary_size))
    # The quadratic form of other presets keeps the one rate of its library.
    fast = params["preset"] == "plmsae" or config.options.get("l0_control") == "controller"
    threshold_rate = TARGET_THRESHOLD_RATE * rate if fast and config.options.get("target_l0") is not None else None
    return TrainingSettings(
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=rate,
        warmup_steps=float(given("warmup_steps", chosen.warmup.of(num_steps, batch_size))),
        decay_steps=share_of("decay_fraction", chosen.decay.of(num_steps, batch_size)),
        dead_after_tokens=given("dead_after_tokens", dead_after),
        validate_every=params["validate_every"],
        num_valid_rows=params["num_valid_rows"],
        checkpoint_every=params["checkpoint_every"],
        seed=params["seed"],
        device=resolve_device(params["device"]),
        betas=(given("adam_beta1", beta1), given("adam_beta2", beta2)),
        eps=given("adam_eps", chosen.eps),
        clip_norm=clip_norm or None,
        clip_first=chosen.clip_first,
        clip_together=chosen.clip_together,
        threshold_learning_rate=given("threshold_learning_rate", threshold_rate),
        penalty_warmup_steps=share_of("penalty_warmup_fraction", chosen.penalty_warmup.of(num_steps, batch_size)),
        warmup_from_zero=chosen.warmup_from_zero,
        anneal_fraction=given("anneal_fraction", chosen.anneal_fraction),
        anneal_from=max(params["k"], min(config.d_model, config.dictionary_size)),
        resample_steps=tuple(given("resample_steps", chosen.resample_steps)),
        num_resample_rows=given("num_resample_rows", chosen.num_resample_rows),
        center=given("center", chosen.center),
        num_center_rows=batch_size if chosen.center_on_batch else None,
        precision=params["precision"],
        wandb_project=params["wandb_project"],
    )


def _check_warmups(params: Mapping[str, Any], settings: TrainingSettings) -> None:
    """The libraries refuse a training that is shorter than its warm-up; our own preset is for short ones as well."""
    if params["preset"] == "plmsae":
        return
    spans = {"warmup_steps": settings.warmup_steps}
    if params["architecture"] not in SELECTS_K:
        spans["penalty_warmup_fraction"] = settings.penalty_warmup_steps
    for name, steps in spans.items():
        if params[name] is None and steps >= settings.num_steps:
            raise UserError(
                f"preset '{params['preset']}' has a warm-up of {steps:,.0f} steps, and this training "
                f"{settings.num_steps:,} steps in all",
                where=f"train_sae.{name}",
                fix=f"raise train_sae.tokens above {int(steps) * settings.batch_size:,}, or set train_sae.{name}",
            )


def _record(params: Mapping[str, Any], config: SaeConfig, settings: TrainingSettings) -> dict[str, Any]:
    """JSON-like; a schedule or an initial value that has no effect is left out."""
    assert settings.betas is not None
    record: dict[str, Any] = {
        "preset": params["preset"],
        "steps": settings.num_steps,
        "tokens": settings.num_steps * settings.batch_size,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "decay_steps": settings.decay_steps,
        "warmup_from_zero": settings.warmup_from_zero,
        "adam": {"beta1": settings.betas[0], "beta2": settings.betas[1], "eps": settings.eps},
        "clip_norm": settings.clip_norm,
        "dead_after_tokens": settings.dead_after_tokens,
        "center": "zero" if config.architecture == "l1_april" else settings.center,
        "seed": settings.seed,
        "kernel": params["kernel"],
        "precision": settings.precision,
        "device": settings.device,
        "threads": params["threads"],
    }
    if params["order_seed"] is not None:
        record["order_seed"] = params["order_seed"]
    if settings.clip_norm is not None:
        record["clip_first"] = settings.clip_first
    if config.architecture == "jump_relu":
        record["clip_together"] = settings.clip_together
        record["threshold_learning_rate"] = settings.threshold_learning_rate or settings.learning_rate
    if settings.num_center_rows is not None:
        record["num_center_rows"] = settings.num_center_rows
    if config.architecture not in SELECTS_K:
        record["penalty_warmup_steps"] = settings.penalty_warmup_steps
    if settings.anneal_fraction:
        record |= {"anneal_fraction": settings.anneal_fraction, "anneal_from": settings.anneal_from}
    if settings.resample_steps:
        record |= {"resample_steps": list(settings.resample_steps), "num_resample_rows": settings.num_resample_rows}
    return record
