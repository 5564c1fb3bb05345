"""The SAEs of a training under Lightning: members that share each batch, whatever their architectures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from plmsae.errors import DataError
from plmsae.training.checkpoint import Checkpoint
from plmsae.training.member import Member

logger = logging.getLogger("plmsae")


class SaeModule(LightningModule):
    """Optimisation is manual: each member has its own optimiser and steps it itself.

    Args:
        members: At least one, before their first step.
        after_step: Called with the module when all members have made a step.

    Attributes:
        num_steps_done: Batches so far.
        pending: Whether something is still to do after the last step, e.g. a row of the curves.
    """

    def __init__(self, members: Sequence[Member], after_step: Callable[[SaeModule], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._members = nn.ModuleList(members)
        self.after_step = after_step
        self.num_steps_done = 0
        self.pending = False

    @property
    def members(self) -> list[Member]:
        """All members."""
        return [cast(Member, member) for member in self._members]

    @property
    def alive(self) -> list[Member]:
        """Those that did not diverge."""
        return [member for member in self.members if member.failed is None]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The members'."""
        return [member.optimizer for member in self.members]

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        """One step of every member on rows [B, d] of unit mean squared norm.

        Raises:
            DataError: The last member diverged.
        """
        del batch_index
        self.each(lambda member: member.step(batch))
        self.num_steps_done += 1
        self.pending = True
        self.after_step(self)

    def each(self, act: Callable[[Member], None]) -> None:
        """Do something with every member; one that diverges by it takes the others down only if there are none.

        Raises:
            DataError: The last member diverged.
        """
        for member in self.alive:
            try:
                act(member)
            except DataError as error:
                if len(self.alive) == 1:
                    raise
                member.fail(error)
                logger.warning("%s: %s (%s); the others go on", member.plan.name, error.problem, error.where)

    def checkpoint(self, source: Mapping[str, int]) -> Checkpoint:
        """Everything that the rest of the training depends on.

        Args:
            source: `BatchSource.state`, which a resume must find again.
        """
        tensors: dict[str, Tensor] = {}
        for place, member in enumerate(self.members):
            tensors |= {f"{place}.{name}": tensor for name, tensor in member.tensors().items()}
        members = [member.info() for member in self.members]
        info: dict[str, Any] = {"source": dict(source), "pending": self.pending, "members": members}
        return Checkpoint(self.num_steps_done, tensors, info)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; call before the loop starts."""
        self.num_steps_done, self.pending = checkpoint.step, bool(checkpoint.info["pending"])
        for place, (member, info) in enumerate(zip(self.members, checkpoint.info["members"], strict=True)):
            prefix = f"{place}."
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
            member.restore(checkpoint.step, tensors, info)
