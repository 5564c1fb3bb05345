"""The processes among which a batch is divided, as far as an SAE's loss and selection have to know them.

A mean over the tokens of a batch needs nothing: every process takes that of its own rows, and the mean of those means,
and of their gradients, is that of the whole batch, since all have equally many rows. What is no mean over tokens (the
largest pre-activations of a batch, AuxK's normaliser, the square of a mean) asks the others through this.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Group(Protocol):
    """Processes that call the same methods in the same order with tensors of the same shape.

    Attributes:
        rank: Which of them this is; the rows of a batch lie in the order of the ranks.
        size: How many they are.
    """

    rank: int
    size: int

    def sum_(self, x: Tensor) -> Tensor:
        """x added up over the processes, in place; the same bits in all of them."""
        ...

    def max_(self, x: Tensor) -> Tensor:
        """The largest of each entry over the processes, in place."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """The rows [m, ...] of every process, one after the other in the order of the ranks; m may differ."""
        ...


class Solo:
    """One process alone: nothing is asked and nothing is copied."""

    rank = 0
    size = 1

    def sum_(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def max_(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


SOLO = Solo()


def mean_of(x: Tensor, group: Group) -> Tensor:
    """x with the mean of its value over the processes; the gradient stays that of this process."""
    if group.size == 1:
        return x
    return x + (group.sum_(x.detach().clone()) / group.size - x.detach())


def total_of(number: int, device: torch.device, group: Group) -> int:
    """A number added up over the processes."""
    return number if group.size == 1 else int(group.sum_(torch.tensor(number, device=device)))
