"""Controls: a model with the shape of a trained one, without what training put into it.

Written after the name of any model, so that a control is just another PLM:

- `NAME?permuted=SEED`: the values of every parameter tensor in random order, each tensor on its own. Keeps the
  distribution of the values (the "shuffled" baseline of InterPLM, Simon and Zou 2024).
- `NAME?random=SEED`: the model's own initialisation: matrices and embeddings normal with the width that the
  architecture starts training from, norms one, biases zero. Reads the configuration alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import UserError

_SYNTAX = re.compile(r"(permuted|random)=(\d{1,9})")


@dataclass(frozen=True)
class Control:
    """What stands in place of the trained values; the seed and a tensor's name decide its values."""

    kind: Literal["permuted", "random"]
    seed: int

    @property
    def needs_weights(self) -> bool:
        """Whether the trained values are read."""
        return self.kind == "permuted"

    def permuted(self, name: str, tensor: Tensor) -> Tensor:
        """The values of a tensor in random order."""
        order = torch.randperm(tensor.numel(), generator=self._generator(name))
        return tensor.flatten()[order].view(tensor.shape)

    def initial(self, name: str, shape: tuple[int, ...], std: float) -> Tensor:
        """A tensor as before training, fp32: normal with deviation `std`; a norm's weight one, a bias zero."""
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        return torch.randn(shape, generator=self._generator(name)) * std

    def _generator(self, name: str) -> torch.Generator:
        text = f"{self.kind} {self.seed} {name}"
        return torch.Generator().manual_seed(int(sha256_bytes(text.encode())[:15], 16))


def split_name(name: str) -> tuple[str, Control | None]:
    """`NAME?permuted=SEED` -> `NAME` and the control; a name without `?` has none.

    Raises:
        UserError: What follows the `?` is not a control.
    """
    base, mark, text = name.rpartition("?")
    if not mark:
        return name, None
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise UserError(
            f"'{text}' is not a control of PLM '{base}'", fix="write NAME?permuted=SEED or NAME?random=SEED"
        )
    return base, Control("permuted" if match[1] == "permuted" else "random", int(match[2]))
