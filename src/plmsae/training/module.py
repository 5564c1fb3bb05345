"""One SAE under Lightning: a training step whose order is explicit, and state that a checkpoint can hold exactly.

The order matters: remove the atoms' parallel gradient, clip the global norm, Adam, renormalise the atoms. Clipping
before the projection would scale by a gradient that is then thrown away; projecting after Adam would let its moments
fill with a direction that the renormalisation undoes.
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
from plmsae.training.schedules import annealed_k, penalty_warmup, warmup_decay
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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; the tiny eps is Gao et al.'s: gradients of rare latents are far below the usual 1e-8."""
        own = self.sae.own_group
        shared = [parameter for name, parameter in self.sae.named_parameters() if name not in own]
        groups = [{"params": shared}, *({"params": [getattr(self.sae, name)]} for name in own)]
        optimizer = torch.optim.Adam(
            groups, lr=self.settings.learning_rate, betas=self.sae.betas, eps=6.25e-10, fused=True
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
        self.sae.penalty_factor = penalty_warmup(step, num_steps, settings.penalty_warmup_fraction)
        if settings.anneal_fraction:
            k, start = self.sae.config.k, settings.anneal_from
            self.sae.training_k = annealed_k(step, num_steps, k, start, settings.anneal_fraction)
        terms: LossTerms = self.sae.loss(batch, self.dead)
        active = terms.counts.sum() / len(batch)
        values = [terms.total.detach(), terms.reconstruction, terms.aux, active, torch.ones_like(active)]
        self.window += torch.stack(values)
        if batch.device.type == "cpu":
            self.check_finite()
        optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        self.sae.constrain_gradients()
        factor = warmup_decay(step, num_steps, settings.warmup_steps, settings.decay_fraction)
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], settings.clip_norm)
            group["lr"] = settings.learning_rate * factor
        optimizer.step()
        self.sae.constrain_weights()
        self.tokens_since_fired += len(batch)
        self.tokens_since_fired[terms.counts > 0] = 0
        self.num_steps_done += 1
        self.after_step(self)

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
        self.num_steps_done = checkpoint.step
        self._restored = checkpoint
