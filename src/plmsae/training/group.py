"""The processes of a data-parallel training, and what they do together (docs/adr/0016-data-parallel.md).

Each has the same weights and its own rows of a batch. Gradients and counts are added up once per step, by name and
where this code says so: a wrapper around the module would not know of backward passes by hand, of several SAEs per
batch, or that atoms are projected after the sum. Every sum has the same bits in all processes, so weights that start
equal stay equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from plmsae.errors import TryAgainError, UserError
from plmsae.saes.group import Group
from plmsae.training.checkpoint import Checkpoint

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """The processes of `torch.distributed`'s default group; see `plmsae.saes.group.Group`.

    Args:
        device: Where the backend takes tensors; others travel over it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self

    def sum_(self, x: Tensor) -> Tensor:
        """See `Group`."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def max_(self, x: Tensor) -> Tensor:
        """See `Group`."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def gather(self, x: Tensor) -> Tensor:
        """See `Group`."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(x)
        sizes = self.sum_(lengths).tolist()
        padded = torch.zeros(max(sizes), *x.shape[1:], dtype=x.dtype, device=self.device)
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        with _together():
            dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)]).to(x.device)

    def _reduce(self, x: Tensor, how: Any) -> Tensor:
        with _together():
            if x.device == self.device and x.is_contiguous():
                dist.all_reduce(x, how)
                return x
            moved = x.to(self.device).contiguous()
            dist.all_reduce(moved, how)
            return x.copy_(moved)


def use_gpu() -> torch.device:
    """Make the GPU of this process, by LOCAL_RANK, the one that `cuda` means.

    Raises:
        UserError: The machine has fewer.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
            where="train_sae.num_processes",
            fix="start at most one process per GPU",
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that the environment names as torchrun sets it, and leave them at the end.

    Args:
        device: `cpu` (over gloo) or `cuda` (over NCCL, one GPU per process by LOCAL_RANK).

    Raises:
        UserError: The environment is not that of such a process, or there are more processes than GPUs.
        TryAgainError: The others do not answer.
    """
    missing = [name for name in _ENVIRONMENT if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{', '.join(missing)} is not set: this process does not know the others",
            where="environment",
            fix="start it with torchrun, or train with train_sae.num_processes",
        )
    place = use_gpu() if device == "cuda" else torch.device("cpu")
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", device_id=place if device == "cuda" else None)
    except (OSError, RuntimeError) as error:
        raise TryAgainError(
            f"the processes of the training did not find each other: {error}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            fix="run it again; it goes on from the last checkpoint",
        ) from error
    try:
        ranks = Ranks(place)
        yield ranks
        ranks.sum_(torch.zeros(1))  # nobody leaves while another still reads from it
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Around what needs the other processes.

    Raises:
        TryAgainError: One of them is gone.
    """
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own for it
        raise TryAgainError(
            f"another process of the training does not answer: {str(error).splitlines()[0]}",
            fix="run it again; it goes on from the last checkpoint",
        ) from error


def average_(tensors: Sequence[Tensor], group: Group) -> None:
    """The mean of each tensor over the processes, in place: matrices by themselves, all vectors in one."""
    if group.size == 1:
        return
    vectors = [tensor for tensor in tensors if tensor.ndim < 2]
    if vectors:
        flat = group.sum_(torch.cat([vector.flatten() for vector in vectors])).div_(group.size)
        for vector, part in zip(vectors, torch.split(flat, [vector.numel() for vector in vectors])):
            vector.copy_(part.view_as(vector))
    for tensor in tensors:
        if tensor.ndim >= 2:
            group.sum_(tensor).div_(group.size)


def from_first_(x: Tensor, group: Group) -> Tensor:
    """x of the first process in all of them, in place."""
    if group.size > 1:
        if group.rank:
            x.zero_()
        group.sum_(x)
    return x


def of_first(checkpoint: Checkpoint | None, group: Group) -> Checkpoint | None:
    """The checkpoint that the first process found, in all of them: the others need not see its folder."""
    if group.size == 1:
        return checkpoint
    if not int(from_first_(torch.tensor(int(checkpoint is not None)), group)):
        return None
    info, state = b"", b""
    if checkpoint is not None:
        info = json.dumps({"step": checkpoint.step, "info": checkpoint.info}).encode()
        state = save({name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
    data = json.loads(_bytes_of_first(info, group))
    return Checkpoint(int(data["step"]), load(_bytes_of_first(state, group)), dict(data["info"]))


def _bytes_of_first(data: bytes, group: Group) -> bytes:
    text = torch.zeros(int(from_first_(torch.tensor(len(data)), group)), dtype=torch.uint8)
    if group.rank == 0 and data:
        text = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return from_first_(text, group).numpy().tobytes()


def differing(tensors: Sequence[Tensor], group: Group) -> bool:
    """Whether a tensor has other values in one process than in another; NaN counts as a value."""
    if group.size == 1:
        return False
    sums = torch.stack([tensor.double().sum().cpu().view(torch.int64) for tensor in tensors])
    both = torch.cat([sums, -sums])
    group.max_(both)
    return not torch.equal(both[: len(sums)], -both[len(sums) :])
