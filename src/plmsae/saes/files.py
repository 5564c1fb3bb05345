"""An SAE on disk: `sae.safetensors` (the tensors) and `config.json` (everything else). Never a pickle.

Reading is strict: a file that does not say exactly what the architecture needs is refused with the file's name and
what to do, because a silently missing bias or a transposed matrix would only show up as poor numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.saes import sae_class
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import RESTORE, SaeConfig

TENSORS = "sae.safetensors"
CONFIG = "config.json"


def save(sae: SparseAutoencoder, folder: Path) -> None:
    """Write an SAE; equal SAEs give equal bytes, and neither file is ever seen half-written.

    Raises:
        DataError: A tensor holds NaN or infinity, or values that the architecture cannot use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    for name, tensor in tensors.items():
        _check_finite(name, tensor, folder / TENSORS, fix="do not save a diverged SAE; lower the learning rate")
    if problem := sae.weights_problem():
        raise DataError(problem, where=str(folder / TENSORS), fix="finish the SAE before it is saved")
    temporary = folder / f".{TENSORS}.tmp"
    save_file(tensors, temporary)
    os.replace(temporary, folder / TENSORS)
    temporary = folder / f".{CONFIG}.tmp"
    temporary.write_text(sae.config.to_json(), encoding="utf-8")
    os.replace(temporary, folder / CONFIG)


def load_folder(folder: Path) -> SparseAutoencoder:
    """Read an SAE, on the CPU and with gradients off.

    Raises:
        UserError: There is no such folder, or it holds no SAE.
        DataError: A file is missing, corrupted, of a newer format, or does not fit the architecture.
    """
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'", fix="pass the folder that holds sae.safetensors and config.json")
    config = read_config(folder)
    path = folder / TENSORS
    if not path.is_file():
        raise DataError(f"'{TENSORS}' is missing", where=str(folder), fix=RESTORE)
    try:
        with torch.device("meta"):
            sae = sae_class(config.architecture)(config)
    except UserError as error:
        raise DataError(error.problem, where=str(folder / CONFIG), fix=error.fix) from error
    sae.load_state_dict(_read_tensors(path, sae.state_dict()), strict=True, assign=True)
    if problem := sae.weights_problem():
        raise DataError(problem, where=str(path), fix=RESTORE)
    return sae.requires_grad_(False).eval()


def read_config(folder: Path) -> SaeConfig:
    """Read `config.json` alone: what an SAE is, without its weights.

    Raises:
        UserError: The folder holds no SAE.
        DataError: The file is malformed.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no SAE: there is no {CONFIG}",
            fix="pass the folder that holds sae.safetensors and config.json, e.g. outputs/train_sae/sae",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError("not a text file", where=str(path), fix=RESTORE) from error
    return SaeConfig.from_json(text, str(path))


def _read_tensors(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, each checked against the name, shape and dtype of `wanted`."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names - set(wanted)):
                raise DataError(f"unknown tensor '{name}'", where=str(path), fix=did_you_mean(name, wanted))
            for name in wanted:
                if name not in names:
                    raise DataError(f"tensor '{name}' is missing", where=str(path), fix=RESTORE)
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise DataError(f"the file is corrupted: {error}", where=str(path), fix=RESTORE) from error
    for name, tensor in tensors.items():
        expected = wanted[name]
        if tensor.shape != expected.shape:
            raise DataError(
                f"tensor '{name}' has shape {tuple(tensor.shape)}; config.json implies {tuple(expected.shape)}",
                where=str(path),
                fix=RESTORE,
            )
        if tensor.dtype != expected.dtype:
            raise DataError(
                f"tensor '{name}' is {tensor.dtype}, not {expected.dtype}", where=str(path), fix="store it as float32"
            )
        _check_finite(name, tensor, path, fix=RESTORE)
    return tensors


def _check_finite(name: str, tensor: Tensor, path: Path, fix: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise DataError(f"tensor '{name}' holds {count} NaN or infinite values", where=str(path), fix=fix)
