"""After each step of a training: look, start dead latents anew, report, save, and end where a signal asks for it.

What is due after a step and is cut off by a signal is done first when the training goes on (`interruption.py`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from plmsae.errors import TryAgainError
from plmsae.progress import Progress
from plmsae.saes.dictionary import Dictionary
from plmsae.saes.group import Group
from plmsae.training.checkpoint import latest_step, save_checkpoint
from plmsae.training.data import BatchSource
from plmsae.training.group import differing
from plmsae.training.interruption import Interruption
from plmsae.training.look import add_row, check_error, measure
from plmsae.training.member import Member
from plmsae.training.module import SaeModule
from plmsae.training.resampling import new_directions
from plmsae.training.settings import TrainingSettings
from plmsae.training.wandb_runs import WandbRuns

# Steps between two questions to the other processes, on GPUs, whether a signal came.
ASK_EVERY = 16


class Run:
    """What happens after each step.

    Args:
        settings: Of the training; members differ in what this does not read.
        source: Training rows.
        valid: Held-out rows.
        checkpoints: Folder of checkpoints.
        group: The processes that train together; the first one writes and reports.
        interruption: Says when to end.

    Attributes:
        progress: Told of every step, if there is one.
        wandb: Told of every row of the curves, if there is one.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        source: BatchSource,
        valid: BatchSource,
        checkpoints: Path,
        group: Group,
        interruption: Interruption,
    ) -> None:
        self.settings, self.source, self.valid, self.checkpoints = settings, source, valid, checkpoints
        self.group, self.interruption = group, interruption
        self.progress: Progress | None = None
        self.wandb: WandbRuns | None = None
        self._saved = (0, False)

    def after_step(self, module: SaeModule) -> None:
        """Look, resample, report and save where a step is due for it; end here if a signal came.

        Raises:
            DataError: The last member diverged.
            StopError: A signal came.
        """
        self.finish(module)
        if self.progress is not None:
            self.progress.update(self.settings.batch_size, **_shown(module))
        if self._due(module, self.settings.checkpoint_every):
            self.save(module)
        # Of several processes each is asked whether a signal came; on GPUs no step should wait for the one before.
        if self.group.size == 1 or self.settings.device == "cpu" or module.num_steps_done % ASK_EVERY == 0:
            self.interruption.stop()

    def finish(self, module: SaeModule) -> None:
        """What is due after a step and was not done yet: all of it, unless a signal cut it off last time.

        Raises:
            DataError: The last member diverged.
            StopError: A signal came; nothing is half done.
        """
        step, settings = module.num_steps_done, self.settings
        looks = self._due(module, settings.validate_every)
        if looks:
            module.each(Member.check_finite)
            module.each(Member.check_weights)
        if looks and not all(member.curves and member.curves[-1]["step"] == step for member in module.alive):
            module.each(check_error)
            members = module.alive
            with self.interruption.at_once():
                measured = measure(members, self.valid, settings.num_valid_rows, settings.device)
            found = dict(zip(members, measured))
            module.each(lambda member: add_row(member, found[member]))
            self.report(module)
        for member in module.alive:
            if step in member.settings.resample_steps and member.resampled_at != step:
                self._resample(member)
        module.pending = False

    def report(self, module: SaeModule) -> None:
        """Send the rows of the curves that were not sent yet."""
        if self.wandb is not None:
            self.wandb.log([member.curves for member in module.members])

    def save(self, module: SaeModule) -> None:
        """Write a checkpoint, unless there is nothing new since the last one.

        Raises:
            DataError: The last member diverged; the checkpoints that are there stay.
        """
        if (module.num_steps_done, module.pending) == self._saved:
            return
        module.each(Member.check_finite)
        module.each(Member.check_weights)
        weights = [parameter.detach() for member in module.alive for parameter in member.sae.parameters()]
        if differing(weights, self.group):
            raise TryAgainError(
                f"the processes of the training no longer have the same weights at step {module.num_steps_done}",
                where=f"last checkpoint: step {latest_step(self.checkpoints)}",
                fix="run it again, which goes on from there; if it happens again, a machine computes wrongly",
            )
        if self.group.rank == 0:
            save_checkpoint(self.checkpoints, module.checkpoint(self.source.state()))
        self.kept(module)

    def kept(self, module: SaeModule) -> None:
        """Take note that the state is on disk."""
        step = module.num_steps_done
        self._saved = (step, module.pending)
        if step:
            self.interruption.kept = f"a checkpoint after step {step} of {self.settings.num_steps} is kept"

    def _due(self, module: SaeModule, every: int) -> bool:
        step = module.num_steps_done
        return step == self.settings.num_steps or step % every == 0

    def _resample(self, member: Member) -> None:
        dead = member.dead.nonzero().flatten()
        if len(dead) and isinstance(member.sae, Dictionary):
            # Of the step alone, so that a resumed run draws alike.
            generator = torch.Generator().manual_seed(member.settings.seed + member.num_steps_done)
            with self.interruption.at_once():
                num_rows = member.settings.num_resample_rows
                directions = new_directions(member.sae, self.source, dead, num_rows, generator)
            if directions is not None:
                member.sae.revive(dead, directions)
            member.forget(dead)
        member.resampled_at = member.num_steps_done


def _shown(module: SaeModule) -> dict[str, float]:
    """What the progress says beside the tokens."""
    members = module.alive
    if len(module.members) > 1:
        return {"saes": len(members)}
    row = members[0].curves[-1] if members[0].curves else {}
    return {name: row[name] for name in ("fvu", "l0", "dead_fraction") if row}
