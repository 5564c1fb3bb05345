"""Checks of `config.options`, so that a bad value is an error before any training time is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plmsae.errors import UserError, did_you_mean


def number(options: Mapping[str, Any], name: str, *, above: bool = False, fix: str) -> float:
    """A finite number >= 0, or > 0 if `above`.

    Raises:
        UserError: It is not.
    """
    value = options[name]
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or value < 0 or (above and value == 0):
        wanted = "> 0" if above else ">= 0"
        raise UserError(f"option {name} = {value!r} is not a number {wanted}", where=f"options.{name}", fix=fix)
    return float(value)


def flag(options: Mapping[str, Any], name: str) -> bool:
    """True or false.

    Raises:
        UserError: It is another value.
    """
    value = options[name]
    if not isinstance(value, bool):
        raise UserError(f"option {name} = {value!r} is not true or false", where=f"options.{name}", fix="false")
    return value


def choice(options: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """One of the known words.

    Raises:
        UserError: It is another value.
    """
    value = options[name]
    if value not in known:
        raise UserError(
            f"option {name} = {value!r} is unknown", where=f"options.{name}", fix=did_you_mean(str(value), known)
        )
    return str(value)


def aux_options(options: Mapping[str, Any], d_model: int, dictionary_size: int) -> tuple[int, float]:
    """`aux_k` (default d_model // 2, at least 1 and at most n) and `aux_alpha` of the architectures with AuxK.

    Raises:
        UserError: One of them is out of range.
    """
    k_aux = options["aux_k"]
    if k_aux is None:
        k_aux = min(max(1, d_model // 2), dictionary_size)
    if type(k_aux) is not int or not 1 <= k_aux <= dictionary_size:
        raise UserError(
            f"option aux_k = {k_aux!r} is not in 1..{dictionary_size}", where="options.aux_k", fix="lower aux_k"
        )
    return k_aux, number(options, "aux_alpha", fix="1/32")


def group_sizes(options: Mapping[str, Any], dictionary_size: int) -> tuple[int, ...]:
    """`group_sizes`: whole numbers >= 1 that sum to the dictionary's size.

    Raises:
        UserError: They are something else.
    """
    sizes = options["group_sizes"]
    if not isinstance(sizes, (list, tuple)) or not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise UserError(
            f"option group_sizes = {sizes!r} is not a list of whole numbers of at least 1",
            where="options.group_sizes",
            fix="enlarge the dictionary or give larger groups",
        )
    if sum(sizes) != dictionary_size:
        raise UserError(
            f"group sizes {list(sizes)} sum to {sum(sizes)}, not to the dictionary of {dictionary_size} latents",
            where="options.group_sizes",
            fix=f"make the last one {sizes[-1] + dictionary_size - sum(sizes)}",
        )
    return tuple(sizes)
