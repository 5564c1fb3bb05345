"""A grid over parameters of `train_sae`: the members of a sweep, each a complete set of parameters with a name.

A parameter that an architecture does not take is left out for its members, so that {architecture: [topk, relu],
k: [16, 32], penalty: [0.1]} is topk with k 16 and with k 32 and relu with penalty 0.1: three members, none twice.
Members share every batch, so what makes the batches cannot vary.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import UserError, did_you_mean
from plmsae.params import canonical_json, validate
from plmsae.training.parameters import OPTIONS, SELECTS_K, TrainSaeParams

# What may differ between SAEs that are trained on the same batches at the same time.
VARIABLE = (
    "architecture",
    "expansion_factor",
    "dictionary_size",
    "k",
    "preset",
    "learning_rate",
    "threshold_learning_rate",
    "center",
    "warmup_steps",
    "decay_fraction",
    "adam_beta1",
    "adam_beta2",
    "adam_eps",
    "clip_norm",
    "aux_alpha",
    "aux_k",
    "anneal_fraction",
    "resample_steps",
    "num_resample_rows",
    "penalty",
    "penalty_warmup_fraction",
    "reconstruction",
    "target_l0",
    "l0_control",
    "bandwidth",
    "initial_threshold",
    "group_fractions",
    "group_reduction",
    "dead_after_tokens",
    "precision",
    "seed",
)
# Beside `OPTIONS`: parameters that other architectures accept and do not look at.
_TAKEN_BY: Mapping[str, tuple[str, ...]] = {**OPTIONS, "k": SELECTS_K, "anneal_fraction": SELECTS_K}
_SIZES = ("expansion_factor", "dictionary_size")
_LONGEST = 80
_SAFE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")


def expand(base: TrainSaeParams, grid: Mapping[str, Sequence[Any]]) -> dict[str, TrainSaeParams]:
    """The members of a grid, the last parameter varying fastest.

    Args:
        base: Every parameter that the grid does not name.
        grid: Parameter -> its values.

    Returns:
        Name, e.g. `topk-k16-seed0` -> parameters. A name is unique, and safe as the name of a folder and of a run.
        Where seeds vary, `order_seed` is that of the base: the order of the rows is one for all.

    Raises:
        UserError: A parameter that is unknown or cannot vary, no values or one twice, a value that no member takes, or
            members that are not valid; the message names them.
    """
    check_grid(grid)
    base = _shared(base, grid)
    values = base.model_dump()
    seen: dict[str, str] = {}
    members: dict[str, TrainSaeParams] = {}
    unused = set(grid)
    for combination in itertools.product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        architecture = chosen.get("architecture", base.architecture)
        taken = {name: value for name, value in chosen.items() if takes(architecture, name)}
        unused -= set(taken)
        key = canonical_json({"taken": taken})
        if key in seen:
            continue
        name = seen[key] = _name(taken, members)
        fitting = {field: value for field, value in values.items() if takes(architecture, field) or field == "k"}
        members[name] = _member(name, {**fitting, **_one_size(taken), **taken})
    if unused:
        first = sorted(unused)[0]
        raise UserError(
            f"no architecture of the grid takes '{first}'",
            where=f"sweep.grid.{first}",
            fix=f"it is for {', '.join(_TAKEN_BY.get(first, ()))}; add one to the architectures, or leave it out",
        )
    _check_distinct(members)
    return members


def takes(architecture: str, name: str) -> bool:
    """Whether a parameter has an effect on the training of an architecture."""
    if name == "center":
        return architecture != "l1_april"  # starts at zero whatever is asked for
    return architecture in _TAKEN_BY.get(name, (architecture,))


def varied(grid: Mapping[str, Sequence[Any]], member: TrainSaeParams) -> dict[str, Any]:
    """The values of a member along the grid, None where its architecture does not take the parameter."""
    return {name: getattr(member, name) if takes(member.architecture, name) else None for name in grid}


def check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    """Refuse what is wrong with a grid whatever its base is.

    Raises:
        UserError: See `expand`.
    """
    if not grid:
        raise UserError("the grid is empty", where="sweep.grid", fix="give values to try, e.g. {k: [16, 32, 64]}")
    for name, values in grid.items():
        place = f"sweep.grid.{name}"
        if name not in TrainSaeParams.model_fields:
            raise UserError(f"unknown parameter '{name}' of train_sae", where=place, fix=did_you_mean(name, VARIABLE))
        if name not in VARIABLE:
            raise UserError(
                f"'{name}' cannot vary: the members of a sweep share each batch and when it is looked at",
                where=place,
                fix=f"set sweep.train_sae.{name} for all of them, or run a sweep for each value",
            )
        if not values:
            raise UserError(f"'{name}' has no values", where=place, fix="give some, or leave the parameter out")
        texts = [_text(name, value) for value in values]
        for value, text in zip(values, texts, strict=True):
            if texts.count(text) > 1:
                raise UserError(f"'{name}' has the value {value!r} twice", where=place, fix="keep one of them")
    if all(name in grid for name in _SIZES):
        raise UserError(
            "expansion_factor and dictionary_size cannot both vary: a member has one of them",
            where="sweep.grid",
            fix="vary dictionary_size alone",
        )


def _text(name: str, value: Any) -> str:
    try:
        return canonical_json({"value": value})
    except (TypeError, ValueError):
        raise UserError(
            f"'{name}' has the value {value!r}", where=f"sweep.grid.{name}", fix="give a number, a text or a list"
        ) from None


def _shared(base: TrainSaeParams, grid: Mapping[str, Sequence[Any]]) -> TrainSaeParams:
    """The base with one order of the rows, where the seeds of the members would give each its own."""
    if "seed" in grid and base.order_seed is None:
        return base.model_copy(update={"order_seed": base.seed})
    return base


def _one_size(taken: Mapping[str, Any]) -> dict[str, None]:
    """A grid over one way to give the size puts the base's other way out of effect."""
    return {other: None for one, other in (_SIZES, _SIZES[::-1]) if one in taken}


def _member(name: str, values: Mapping[str, Any]) -> TrainSaeParams:
    try:
        return validate(TrainSaeParams, values, section="train_sae")
    except UserError as error:
        raise UserError(
            f"member '{name}' is not valid: {error.problem}",
            where=f"sweep.grid and {error.where}" if error.where else "sweep.grid",
            fix=error.fix,
        ) from error


def _check_distinct(members: Mapping[str, TrainSaeParams]) -> None:
    """Values that read differently and are one, e.g. 1 and 1.0."""
    texts: dict[str, str] = {}
    for name, member in members.items():
        text = canonical_json(member)
        if text in texts:
            raise UserError(
                f"members '{texts[text]}' and '{name}' are the same", where="sweep.grid", fix="keep one of the values"
            )
        texts[text] = name


def _name(taken: Mapping[str, Any], members: Mapping[str, Any]) -> str:
    """`topk-k16-seed0`: an architecture and a preset by their names, the others with the parameter's before it."""
    name = "-".join(_part(key, value) for key, value in taken.items())
    if len(name) <= _LONGEST and _SAFE.fullmatch(name) and name not in members:
        return name
    short = re.sub(r"[^a-zA-Z0-9._-]", "_", name)[: _LONGEST - 9]
    return f"{short}-{sha256_bytes(canonical_json(taken).encode())[:8]}"


def _part(key: str, value: Any) -> str:
    if key in ("architecture", "preset") and isinstance(value, str):
        return value
    if isinstance(value, list):
        text = "_".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) or "none"
    elif isinstance(value, float):
        text = f"{value:.12g}"
    else:
        text = "none" if value is None else str(value)
    return f"{key}{text}"
