"""One SAE of a training: a step whose order is explicit, and state that a checkpoint can hold exactly.

The order matters: remove the atoms' parallel gradient, clip the global norm, Adam, renormalise the atoms. Clipping
before the projection scales by a gradient that is then thrown away (InterPLM does so for its ReLU SAE, hence
`clip_first`); projecting after Adam would let its moments fill with a direction that the renormalisation undoes.

A member knows nothing of the others: what it becomes depends on its plan and the batches alone, so SAEs that share
each batch end as they would by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from plmsae.errors import DataError
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.group import SOLO, Group
from plmsae.training.group import average_
from plmsae.training.l0_control import l0_control_of
from plmsae.training.schedules import annealed_k, warmup, warmup_decay
from plmsae.training.settings import TrainingSettings

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_COUNTERS = ("tokens_since_fired", "window")


@dataclass(frozen=True)
class Plan:
    """One SAE to train.

    Attributes:
        config: The SAE; its normaliser says what the training rows are divided by.
        settings: How to train it.
        kernel: `auto` or `reference`.
        name: What messages call it, where several are trained together.
    """

    config: SaeConfig
    settings: TrainingSettings
    kernel: str = "auto"
    name: str = "sae"


@dataclass(frozen=True)
class Failed:
    """A training that diverged while others went on.

    Attributes:
        name: The plan's.
        problem: What happened, by which step.
        where: At which learning rate.
        fix: What may help.
        last_good_step: Step of the last row of its curves; 0 if there is none.
    """

    name: str
    problem: str
    where: str | None
    fix: str | None
    last_good_step: int


class Member(nn.Module):
    """Trains one SAE; the loop around it decides when to validate, report and save.

    Args:
        plan: What to train and how.
        sae: The SAE of the plan, initialised, on the device of the training.
        variance: E||x - mu||^2 of training rows, which the curves' FVU is relative to.
        group: The processes that share each batch; every one has this member, with the same state.

    Attributes:
        curves: One row per look.
        failed: Set once it diverged; then it takes no more steps.
        num_steps_done: Its steps so far.
        resampled_at: Step after which dead latents were last started anew; 0 for never.
    """

    tokens_since_fired: Tensor
    window: Tensor

    def __init__(self, plan: Plan, sae: SparseAutoencoder, variance: float, group: Group = SOLO) -> None:
        super().__init__()
        self.group = sae.group = group
        self.plan, self.settings, self.sae, self.variance = plan, plan.settings, sae, variance
        self.curves: list[dict[str, float]] = []
        self.failed: Failed | None = None
        self.num_steps_done = self.resampled_at = 0
        # Sums since the last row of the curves: loss, squared error, AuxK or penalty, active latents; and their number.
        self.register_buffer("window", torch.zeros(5, dtype=torch.float64))
        # Training tokens since each latent last fired; all start as if they had just done so.
        self.register_buffer("tokens_since_fired", torch.zeros(sae.config.dictionary_size, dtype=torch.int64))
        # Submodule: its state moves with this one's.
        self.l0_control = l0_control_of(sae, self.settings.num_steps)
        self.optimizer = self._adam()

    @property
    def num_tokens_done(self) -> int:
        """Training tokens seen so far."""
        return self.num_steps_done * self.settings.batch_size

    @property
    def dead(self) -> Tensor:
        """Latents [n] that have been silent for `dead_after_tokens`."""
        return self.tokens_since_fired >= self.settings.dead_after_tokens

    @property
    def penalty(self) -> float | None:
        """Weight of the sparsity penalty in the last step; None for architectures without one."""
        penalty = getattr(self.sae, "penalty", None)
        return None if penalty is None else float(self.sae.penalty_factor) * float(penalty)

    def step(self, batch: Tensor) -> None:
        """One step on rows [B, d] of unit mean squared norm; with several processes on those of this one.

        Raises:
            DataError: The loss is not finite.
        """
        settings, step = self.settings, self.num_steps_done
        factor = warmup(step, settings.penalty_warmup_steps, settings.warmup_from_zero)
        self.sae.penalty_factor = factor if self.l0_control is None else factor * self.l0_control.factor
        if settings.anneal_fraction:
            k, start = self.sae.config.k, settings.anneal_from
            self.sae.training_k = annealed_k(step, settings.num_steps, k, start, settings.anneal_fraction)
        terms = self._of_all(self.sae.loss(batch, self.dead))
        num_tokens = len(batch) * self.group.size
        active = terms.counts.sum() / num_tokens
        if self.l0_control is not None:
            self.l0_control.observe(active)
        values = [terms.total.detach(), terms.reconstruction, terms.aux, active, torch.ones_like(active)]
        self.window += torch.stack(values)
        if settings.device == "cpu":
            self.check_finite()
        self.optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        average_([parameter.grad for parameter in self.sae.parameters() if parameter.grad is not None], self.group)
        if settings.clip_first:
            self._clip()
        self.sae.constrain_gradients()
        if not settings.clip_first:
            self._clip()
        self._set_rates(step)
        self.optimizer.step()
        self.sae.constrain_weights()
        self.tokens_since_fired += num_tokens
        self.tokens_since_fired[terms.counts > 0] = 0
        self.num_steps_done += 1

    def check_finite(self) -> None:
        """Stop if a loss since the last row of the curves was not finite.

        On a CPU this runs before the weights change. On a GPU it would wait for every step, so the loop calls it
        where it waits anyway: before a row of the curves and before a checkpoint.

        Raises:
            DataError: Names the step by which it happened.
        """
        if not bool(torch.isfinite(self.window).all()):
            raise self.diverged(f"the loss of step {self.num_steps_done} is not finite")

    def check_weights(self) -> None:
        """Stop if a weight is not finite: before a checkpoint, which a resume would start from.

        A gradient can overflow in the step of a loss that does not.

        Raises:
            DataError: Names the parameter.
        """
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in self.sae.parameters()])
        if not bool(finite.all()):
            names = [name for name, _ in self.sae.named_parameters()]
            raise self.diverged(f"{names[int(finite.int().argmin())]} is not finite after step {self.num_steps_done}")

    def diverged(self, how: str) -> DataError:
        """The error of a training that cannot go on."""
        return DataError(
            f"the training diverged: {how}",
            where=f"learning rate {self.settings.learning_rate:.3g}",
            fix="lower train_sae.learning_rate or lengthen train_sae.warmup_steps",
        )

    def fail(self, error: DataError) -> None:
        """Take no more steps, and remember why."""
        last = int(self.curves[-1]["step"]) if self.curves else 0
        self.failed = Failed(self.plan.name, error.problem, error.where, error.fix, last)
        self.optimizer.state.clear()  # a checkpoint has no use for them, and the others may want the memory
        self.optimizer.zero_grad()

    def forget(self, latents: Tensor) -> None:
        """Give latents [m] that were started anew fresh moments, and count their silence from now."""
        for name, parameter in self.sae.named_parameters():
            if name != "b_dec":  # all others have a row per latent
                self.optimizer.state[parameter]["exp_avg"][latents] = 0.0
                self.optimizer.state[parameter]["exp_avg_sq"][latents] = 0.0
        self.tokens_since_fired[latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        """With `info` everything that the rest of its training depends on; nothing once it failed."""
        if self.failed is not None:
            return {}
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors |= {name: getattr(self, name) for name in _COUNTERS}
        if self.l0_control is not None:
            tensors["l0_control"] = self.l0_control.state
        for name, parameter in self.sae.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"adam.{name}.{moment}": state[moment] for moment in _MOMENTS}
        return tensors

    def info(self) -> dict[str, Any]:
        """What is not a tensor, JSON-like."""
        failed = None if self.failed is None else asdict(self.failed)
        return {
            "name": self.plan.name,
            "variance": self.variance,
            "curves": self.curves,
            "failed": failed,
            "resampled_at": self.resampled_at,
            # Of the last step, for a row of the curves that is still to come.
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "penalty_factor": float(self.sae.penalty_factor),
        }

    def restore(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Go on after `step` from what `tensors` and `info` gave."""
        self.num_steps_done, self.variance, self.curves = step, float(info["variance"]), list(info["curves"])
        self.resampled_at, self.sae.penalty_factor = info["resampled_at"], info["penalty_factor"]
        for group, rate in zip(self.optimizer.param_groups, info["rates"], strict=True):
            group["lr"] = rate
        if info["failed"] is not None:
            self.failed = Failed(**info["failed"])
            return
        weights = {name.removeprefix("sae."): value for name, value in tensors.items() if name.startswith("sae.")}
        self.sae.load_state_dict(weights)
        for name in _COUNTERS:
            getattr(self, name).copy_(tensors[name])
        if self.l0_control is not None:
            self.l0_control.state.copy_(tensors["l0_control"])
        for name, parameter in self.sae.named_parameters():
            self.optimizer.state[parameter] = {
                moment: tensors[f"adam.{name}.{moment}"].to(parameter.device) for moment in _MOMENTS
            }

    def _of_all(self, terms: LossTerms) -> LossTerms:
        """The terms of the whole batch from those of this process's rows; the gradient stays that of its rows."""
        if self.group.size == 1:
            return terms
        values = torch.stack([terms.total.detach(), terms.reconstruction, terms.aux]).double()
        sums = self.group.sum_(torch.cat([values, terms.counts.double()]))
        total, reconstruction, aux = sums[:3] / self.group.size
        own = terms.total.detach().double()
        return replace(
            terms,
            total=terms.total + (total - own).to(terms.total.dtype),
            reconstruction=reconstruction,
            aux=aux,
            counts=sums[3:].long(),
        )

    def _adam(self) -> torch.optim.Optimizer:
        """Adam; parameters that the architecture names have a group of their own, after the shared one."""
        own, settings = self.sae.own_group, self.settings
        shared = [parameter for name, parameter in self.sae.named_parameters() if name not in own]
        groups = [{"params": shared}, *({"params": [getattr(self.sae, name)]} for name in own)]
        betas = settings.betas or self.sae.betas
        return torch.optim.Adam(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps, fused=True)

    def _set_rates(self, step: int) -> None:
        settings = self.settings
        spans = (settings.warmup_steps, settings.decay_steps)
        factor = warmup_decay(step, settings.num_steps, *spans, settings.warmup_from_zero)
        for place, group in enumerate(self.optimizer.param_groups):
            own = settings.threshold_learning_rate if place else None
            group["lr"] = (settings.learning_rate if own is None else own) * factor

    def _clip(self) -> None:
        """Scale gradients down to `clip_norm`: each group of the optimiser by itself, or all in one norm."""
        bound = self.settings.clip_norm
        if bound is None:
            return
        groups = [group["params"] for group in self.optimizer.param_groups]
        if self.settings.clip_together:
            groups = [[parameter for group in groups for parameter in group]]
        for parameters in groups:
            torch.nn.utils.clip_grad_norm_(parameters, bound)
