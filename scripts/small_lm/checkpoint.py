"""One-file checkpoints from which training goes on exactly as if it had not stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from plmsae.artifacts.atomic import write_bytes
from plmsae.errors import DataError


def save_checkpoint(
    path: Path, model: torch.nn.Module, optimisers: Mapping[str, torch.optim.Optimizer], state: Mapping[str, Any]
) -> None:
    """Write parameters, optimiser states and `state` (JSON) to one safetensors file, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    for label, optimiser in optimisers.items():
        for index, slots in optimiser.state_dict()["state"].items():
            tensors |= {f"{label}.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(tensors, metadata={"state": json.dumps(state)}))


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        DataError: The file is not a whole checkpoint.
    """
    try:
        with safe_open(path, "pt") as handle:
            state: dict[str, Any] = json.loads(handle.metadata()["state"])
            return state
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a checkpoint: {error}", where=str(path), fix="delete it to start anew") from error


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Put a checkpoint's tensors into `model` and `optimisers` and return its state.

    Raises:
        DataError: The file is not a whole checkpoint of this model.
    """
    state = read_state(path)
    with safe_open(path, "pt") as handle, torch.no_grad():
        names = set(handle.keys())
        for name, parameter in model.named_parameters():
            if f"model.{name}" not in names or handle.get_slice(f"model.{name}").get_shape() != list(parameter.shape):
                raise DataError(f"the checkpoint is of another model: '{name}' differs", where=str(path))
            parameter.copy_(handle.get_tensor(f"model.{name}"))
        for label, optimiser in optimisers.items():
            slots: dict[int, dict[str, torch.Tensor]] = {}
            for name in names:
                owner, _, rest = name.partition(".")
                if owner == label:
                    index, _, slot = rest.partition(".")
                    slots.setdefault(int(index), {})[slot] = handle.get_tensor(name)
            optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return state
