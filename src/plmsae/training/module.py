"""One SAE under Lightning: a training step whose order is explicit, and state that a checkpoint can hold exactly.

The order matters: remove the atoms' parallel gradient, clip the global norm, Adam, renormalise the atoms. Clipping
before the projection scales by a gradient that is then thrown away (InterPLM does so for its ReLU SAE, hence
`clip_first`); projecting after Adam would let its moments fill with a direction that the renormalisation undoes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from plmsae.errors import DataError
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.training.checkpoint import Checkpoint
from plmsae.training.l0_control import l0_control_of
from plmsae.training.schedules import annealed_k, warmup, warmup_decay
from plmsae.training.settings import TrainingSettings

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_COUNTERS = ("tokens_since_fired", "window")


class SaeModule(LightningModule):
    """Trains one SAE; the loop around it decides when to validate, report and save.

    Args:
        sae: The SAE, initialised.
        settings: How to train it.
        after_step: Called with the module when a step is complete.
    """

    def __init__(
        self, sae: SparseAutoencoder, settings: TrainingSettings, after_step: Callable[[SaeModule], None]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sae = sae
        self.settings = settings
        self.after_step = after_step
        self.num_steps_done = 0
        # Sums since the last row of the curves: loss, squared error, AuxK or penalty, active latents; and their number.
        self.register_buffer("window", torch.zeros(5, dtype=torch.float64))
        # Training tokens since each latent last fired; all start as if they had just done so.
        self.register_buffer("tokens_since_fired", torch.zeros(sae.config.dictionary_size, dtype=torch.int64))
        self._restored: Checkpoint | None = None
        # Submodule: its state moves with this one's.
        self.l0_control = l0_control_of(sae, settings.num_steps)

    tokens_since_fired: Tensor
    window: Tensor

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; parameters that the architecture names have a group of their own, after the shared one."""
        own, settings = self.sae.own_group, self.settings
        shared = [parameter for name, parameter in self.sae.named_parameters() if name not in own]
        groups = [{"params": shared}, *({"params": [getattr(self.sae, name)]} for name in own)]
        optimizer = torch.optim.Adam(
            groups, lr=settings.learning_rate, betas=settings.betas or self.sae.betas, eps=settings.eps, fused=True
        )
        if self._restored is not None:
            for name, parameter in self.sae.named_parameters():
                optimizer.state[parameter] = {
                    moment: self._restored.tensors[f"adam.{name}.{moment}"].to(parameter.device) for moment in _MOMENTS
                }
        return optimizer

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        """One step on rows [B, d] of unit mean squared norm.

        Raises:
            DataError: The loss is not finite.
        """
        del batch_index
        settings, optimizer = self.settings, self.optimizers()
        step, num_steps = self.num_steps_done, settings.num_steps
        factor = warmup(step, settings.penalty_warmup_steps, settings.warmup_from_zero)
        self.sae.penalty_factor = factor if self.l0_control is None else factor * self.l0_control.factor
        if settings.anneal_fraction:
            k, start = self.sae.config.k, settings.anneal_from
            self.sae.training_k = annealed_k(step, num_steps, k, start, settings.anneal_fraction)
        terms: LossTerms = self.sae.loss(batch, self.dead)
        active = terms.counts.sum() / len(batch)
        if self.l0_control is not None:
            self.l0_control.observe(active)
        values = [terms.total.detach(), terms.reconstruction, terms.aux, active, torch.ones_like(active)]
        self.window += torch.stack(values)
        if batch.device.type == "cpu":
            self.check_finite()
        optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        if settings.clip_first:
            self._clip()
        self.sae.constrain_gradients()
        if not settings.clip_first:
            self._clip()
        steps = (settings.warmup_steps, settings.decay_steps)
        factor = warmup_decay(step, num_steps, *steps, settings.warmup_from_zero)
        for place, group in enumerate(optimizer.param_groups):
            own = settings.threshold_learning_rate if place else None
            group["lr"] = (settings.learning_rate if own is None else own) * factor
        optimizer.step()
        self.sae.constrain_weights()
        self.tokens_since_fired += len(batch)
        self.tokens_since_fired[terms.counts > 0] = 0
        self.num_steps_done += 1
        self.after_step(self)

    def _clip(self) -> None:
        """Scale gradients down to `clip_norm`: each group of the optimiser by itself, or all in one norm."""
        bound = self.settings.clip_norm
        if bound is None:
            return
        groups = [group["params"] for group in self.optimizers().param_groups]
        if self.settings.clip_together:
            groups = [[parameter for group in groups for parameter in group]]
        for parameters in groups:
            torch.nn.utils.clip_grad_norm_(parameters, bound)

    def check_finite(self) -> None:
        """Stop if a loss since the last row of the curves was not finite.

        On a CPU this runs before the weights change. On a GPU it would wait for every step, so the loop calls it
        where it waits anyway: before a row of the curves and before a checkpoint.

        Raises:
            DataError: Names the step by which it happened.
        """
        if not bool(torch.isfinite(self.window).all()):
            raise DataError(
                f"the training diverged: the loss of step {self.num_steps_done} is not finite",
                where=f"learning rate {self.settings.learning_rate:.3g}",
                fix="lower train_sae.learning_rate or lengthen train_sae.warmup_steps",
            )

    def forget(self, latents: Tensor) -> None:
        """Give latents [m] that were started anew fresh moments, and count their silence from now."""
        state = self.optimizers().optimizer.state
        for name, parameter in self.sae.named_parameters():
            if name != "b_dec":  # all others have a row per latent
                state[parameter]["exp_avg"][latents] = 0.0
                state[parameter]["exp_avg_sq"][latents] = 0.0
        self.tokens_since_fired[latents] = 0

    def checkpoint(self, info: dict[str, Any]) -> Checkpoint:
        """Everything that the rest of the training depends on; `info` is what the loop adds."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors |= {name: getattr(self, name) for name in _COUNTERS}
        if self.l0_control is not None:
            tensors["l0_control"] = self.l0_control.state
        state = self.optimizers().optimizer.state
        for name, parameter in self.sae.named_parameters():
            tensors |= {f"adam.{name}.{moment}": state[parameter][moment] for moment in _MOMENTS}
        return Checkpoint(self.num_steps_done, tensors, info)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; call before the loop starts."""
        prefix = "sae."
        self.sae.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
        )
        for name in _COUNTERS:
            getattr(self, name).copy_(checkpoint.tensors[name])
        if self.l0_control is not None:
            self.l0_control.state.copy_(checkpoint.tensors["l0_control"])
        self.num_steps_done = checkpoint.step
        self._restored = checkpoint
