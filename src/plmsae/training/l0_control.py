"""Control of a sparsity penalty's weight, so that L0 reaches a target by the end of a training.

How many latents a weight lambda leaves active depends on the activations and the dictionary, and is not known before.
Here lambda follows from the measured L0, by proportional and integral control of its logarithm:

    e_t = log(L0_t / r_t), limited to [-1, 1]
    I_t = I_{t-1} + g_I e_t / T
    lambda_{t+1} = lambda_0 exp(g_P e_t + I_t)

T is the number of steps, so that the gains mean the same for every length. r_t is a reference that falls (or rises)
geometrically from the L0 of the first step to the target over the first part of the training and then stays: a jump
would wind the integral up while thresholds, which move by at most a learning rate per step, are still on their way.
lambda is limited, and I to what lambda may be. In logarithms twice too many are as bad as half too few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.jump_relu import JumpReLU

PROPORTIONAL = 4.0
INTEGRAL = 80.0
# lambda stays between these. Activations have unit mean squared norm: at 0.1 ten active latents cost as much as
# explaining nothing, and more would only wind the integral up; at 1e-6 a penalty is not felt.
LOWEST, HIGHEST = 1e-6, 0.1
# Share of the training over which the reference moves.
REFERENCE_FRACTION = 0.3


class L0Control(nn.Module):
    """See the module docstring.

    Args:
        target: Wanted mean number of active latents per token.
        start: lambda_0.
        num_steps: Length of the training, T.

    Attributes:
        state: fp64 [4], all that it knows: I, the last e, the log of the first L0 (NaN before), the steps observed. It
            stays on the device of the training, so that no step waits for it.
    """

    state: Tensor

    def __init__(self, target: float, start: float, num_steps: int) -> None:
        super().__init__()
        self.target, self.num_steps = target, num_steps
        self.lowest, self.highest = (math.log(bound / start) for bound in (min(LOWEST, start), max(HIGHEST, start)))
        self.register_buffer("state", torch.tensor([0.0, 0.0, math.nan, 0.0], dtype=torch.float64), persistent=False)

    @property
    def factor(self) -> Tensor:
        """lambda / lambda_0 for the step that comes, a scalar fp32."""
        logarithm = self.state[0] + PROPORTIONAL * self.state[1]
        return logarithm.clamp(self.lowest, self.highest).exp().float()

    @torch.no_grad()
    def observe(self, l0: Tensor) -> None:
        """Take in the L0 of a step, a scalar."""
        log_l0 = l0.double().clamp_min(1e-3).log()
        first = torch.where(self.state[2].isnan(), log_l0, self.state[2])
        share = (self.state[3] / (REFERENCE_FRACTION * self.num_steps)).clamp(max=1.0)
        reference = first + share * (math.log(self.target) - first)
        error = (log_l0 - reference).clamp(-1.0, 1.0)
        integral = (self.state[0] + INTEGRAL / self.num_steps * error).clamp(self.lowest, self.highest)
        self.state.copy_(torch.stack([integral, error, first, self.state[3] + 1]))


def l0_control_of(sae: SparseAutoencoder, num_steps: int) -> L0Control | None:
    """The controller of an SAE that asks for one; None for all others."""
    if isinstance(sae, JumpReLU) and sae.target_l0 is not None and sae.controlled:
        return L0Control(sae.target_l0, sae.penalty, num_steps)
    return None
