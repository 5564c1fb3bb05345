"""Threads as the processes of a group: the same protocol, without starting a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from plmsae.saes.group import Group

Result = TypeVar("Result")


class _Thread:
    def __init__(self, rank: int, board: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(board)
        self._board, self._barrier = board, barrier

    def _all(self, x: Tensor) -> list[Tensor]:
        self._board[self.rank] = x.clone()
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def sum_(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._all(x)).sum(0))

    def max_(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._all(x)).amax(0))

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._all(x))


def on_each(size: int, act: Callable[[Group], Result]) -> list[Result]:
    """What `act` returns on each of `size` threads, by rank."""
    board, barrier = [torch.empty(0)] * size, threading.Barrier(size, timeout=20)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: act(_Thread(rank, board, barrier)), range(size)))
