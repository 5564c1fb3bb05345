"""Files of other libraries: read without running anything in them, and checked tensor by tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plmsae.errors import DataError, did_you_mean

AGAIN = "copy the file again from where it was published"
# A shape is written in letters ("nd": [n, d], "": a scalar), and a letter has one size in all tensors of a file.
Shapes = Mapping[str, str]


def require_file(folder: Path, name: str) -> Path:
    """Path of a file that must be there.

    Raises:
        DataError: It is not.
    """
    path = folder / name
    if not path.is_file():
        raise DataError(f"'{name}' is missing", where=str(folder), fix="pass the folder that the other library wrote")
    return path


def only_file(folder: Path, suffixes: tuple[str, ...]) -> Path:
    """The one file of weights in a folder, whatever its name.

    Raises:
        DataError: There is none, or more than one.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise DataError(
            f"one file of weights ({' or '.join(suffixes)}) is needed; there are {len(files)}: {names}",
            where=str(folder),
            fix="put the file of one SAE into a folder of its own",
        )
    return files[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping.

    Raises:
        DataError: It is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=str(path), fix=AGAIN) from error
    if not isinstance(data, dict):
        raise DataError("not a JSON mapping", where=str(path), fix=AGAIN)
    return data


def read_pt(path: Path) -> dict[str, Tensor]:
    """The state_dict of a `.pt` file. Only tensors are unpickled, so that loading runs nothing.

    Raises:
        DataError: The file is damaged, holds other Python objects, or is no mapping of names to tensors.
    """
    return tensors_of(read_pt_mapping(path), path)


def tensors_of(data: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """A mapping that holds names and tensors alone.

    Raises:
        DataError: It holds something else; the entry is named.
    """
    for name, tensor in data.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(
                f"entry '{name}' is a {type(tensor).__name__}, not a tensor",
                where=str(path),
                fix="save the state_dict of the SAE alone",
            )
    return dict(data)


def read_pt_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a `.pt` file, of tensors, numbers, texts, lists and mappings; loading runs nothing.

    Raises:
        DataError: The file is damaged, holds other Python objects, or is no mapping.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers raise; each means that the file is not usable
        if type(error).__name__ == "UnpicklingError":
            raise DataError(
                "the file holds Python objects other than tensors, which could run code when they are loaded",
                where=str(path),
                fix="save its state_dict alone, with torch.save(module.state_dict(), path), where you trust it",
            ) from error
        raise DataError(f"the file is damaged: {str(error).splitlines()[0]}", where=str(path), fix=AGAIN) from error
    if not isinstance(data, Mapping):
        raise DataError(f"a {type(data).__name__}, not a state_dict", where=str(path), fix="save its state_dict alone")
    return dict(data)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        DataError: It is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"the file is damaged: {error}", where=str(path), fix=AGAIN) from error
    return tensors


def sha256(path: Path) -> str:
    """Checksum of a file, for the record of what was imported."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def checked(
    tensors: Mapping[str, Tensor], wanted: Shapes, path: Path, optional: Shapes | None = None
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Exactly the wanted tensors, and the sizes that the letters of their shapes stand for.

    Args:
        tensors: As read.
        wanted: Name -> shape of what must be there; the first shape with a letter decides its size.
        path: Where they are from, for messages.
        optional: Name -> shape of what may be there.

    Returns:
        Tensors as contiguous fp32 copies (whole numbers and truth values as they are), and letter -> size.

    Raises:
        DataError: One is missing, unknown, of another shape, no real numbers, or holds NaN or infinity.
    """
    shapes = {**wanted, **(optional or {})}
    for name in tensors:
        if name not in shapes:
            raise DataError(f"unknown tensor '{name}'", where=str(path), fix=did_you_mean(name, shapes))
    sizes: dict[str, int] = {}
    found: dict[str, Tensor] = {}
    for name, letters in shapes.items():
        if name in tensors:
            found[name] = _usable(name, tensors[name], letters, sizes, path)
        elif name in wanted:
            raise DataError(f"tensor '{name}' is missing", where=str(path), fix=AGAIN)
    return found, sizes


def _usable(name: str, tensor: Tensor, letters: str, sizes: dict[str, int], path: Path) -> Tensor:
    if len(tensor.shape) == len(letters):
        for letter, size in zip(letters, tensor.shape):
            sizes.setdefault(letter, size)
    expected = tuple(sizes.get(letter, letter) for letter in letters)
    if tuple(tensor.shape) != expected or tensor.numel() == 0:
        raise DataError(
            f"tensor '{name}' has shape {tuple(tensor.shape)}, not {expected}",
            where=str(path),
            fix="check the class or architecture that the configuration names, and the file",
        )
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise DataError(f"tensor '{name}' is {tensor.dtype}, {tensor.layout}", where=str(path), fix="save it as fp32")
    if not tensor.is_floating_point():
        return tensor.clone()
    copy = tensor.to(torch.float32).clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(copy).all()):
        count = int((~torch.isfinite(copy)).sum())
        raise DataError(f"tensor '{name}' holds {count} NaN or infinite values", where=str(path), fix=AGAIN)
    return copy


def whole_number(value: object, name: str, least: int, most: int, path: Path) -> int:
    """A whole number of a file, in a range.

    Args:
        value: A number, or a tensor of one.
        name: What it is, for messages.
        least: Smallest valid value.
        most: Largest valid value.
        path: Where it is from.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if type(value) is not int or not least <= value <= most:
        raise DataError(
            f"{name} = {value!r} is not a whole number in {least}..{most}", where=str(path), fix="correct the file"
        )
    return value
