"""BatchTopK SAE with AuxK (Bussmann, Leask and Nanda 2024, "BatchTopK Sparse Autoencoders", section 3).

    a = ReLU(W_enc (x - b_dec) + b_enc)
    training    z = the B k largest of all B n entries of a batch, zero elsewhere
    inference   z = a where a > theta, zero elsewhere
    L = mean_t ||x - x^||^2 + alpha * L_aux        (AuxK as in `topk.py`)

so that a token may use more latents than another and k is their mean. The paper takes for theta the mean over batches
of the smallest value that was kept, of which about k latents remain (106 for k = 100 in issue 29 of
dictionary_learning). Here theta is measured once the weights stand: `calibrate` puts it between the N k-th and the
next largest value of N held-out tokens, so that exactly N k values lie above it. Training never reads theta.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Dictionary
from plmsae.saes.group import total_of
from plmsae.saes.pairs import Pairs
from plmsae.saes.selection import keep_largest, rows_per_block
from plmsae.saes.sparse_step import encode_batch
from plmsae.saes.topk import TopK

UNCALIBRATED = -1.0


class BatchTopK(TopK):
    """See the module docstring; `config.k` is the mean number of latents per token.

    Attributes:
        prefixes: How much of the dictionary, from its start, reconstructs by itself in the training: all of it.
        threshold: theta, a scalar >= 0 once calibrated; -1 before, and then nothing can be encoded or saved.

    Options: those of `TopK`.
    """

    homogeneous: ClassVar[tuple[str, ...]] = (*TopK.homogeneous, "threshold")
    training_encodes: ClassVar[bool] = False
    calibrated: ClassVar[bool] = True

    threshold: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.prefixes: tuple[int, ...] = (config.dictionary_size,)
        self.register_buffer("threshold", torch.tensor(UNCALIBRATED))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """As `TopK`; the threshold is not calibrated."""
        super().initialise(generator, center)
        self.threshold.fill_(UNCALIBRATED)

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        active = self._rectified(x)
        return torch.where(active > self.threshold, active, 0.0)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class.

        Raises:
            UserError: The threshold is not calibrated.
        """
        if not bool(self.threshold >= 0):
            raise UserError(
                "this SAE has no threshold yet, so nothing says which latents fire",
                fix="measure it on held-out activations: sae.calibrate(x)",
            )
        return Dictionary.encode_sparse(self, x)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the threshold so that the latents of x [N, d] fire k times per token on average.

        Where fewer than N k values are positive, the threshold is 0 and every positive value passes. Equal values
        at the threshold all pass or all fail.

        Args:
            x: Held-out activations, scaled as in the training.

        Raises:
            UserError: There are no rows, or they are of another width.
            DataError: A row holds NaN or infinity.
        """
        x = self.encoder_input(x)
        num_rows = total_of(len(x), x.device, self.group)
        if not num_rows:
            raise UserError("a threshold cannot be measured on 0 rows", fix="pass held-out activations")
        count = self.config.k * num_rows
        highest = x.new_zeros(0)
        for block in torch.split(x, rows_per_block(len(self.W_enc), x.device)):
            values = torch.cat([highest, self._rectified(block).flatten()])
            highest = values.topk(min(count + 1, len(values))).values
        if self.group.size > 1:
            highest = self.group.gather(highest)
            highest = highest.topk(min(count + 1, len(highest))).values
        if len(highest) <= count:
            self.threshold.fill_(0.0)
            return
        kept, left_out = highest[count - 1], highest[count]
        # A midpoint that rounds up to the smallest kept value would drop it: the comparison is strict.
        middle = (kept.double() + left_out.double()).mul(0.5).to(kept.dtype)
        self.threshold.copy_(torch.where(middle < kept, middle, left_out))

    def weights_problem(self) -> str | None:
        """See the base class."""
        if bool(self.threshold >= 0):
            return None
        return f"the threshold is {float(self.threshold):.3g}: negative, so it was never calibrated"

    def _select(self, centered: Tensor) -> Pairs:
        """See `TopK`; a bag per token and group of latents."""
        count = self.training_k * len(centered) * self.group.size
        places, values = encode_batch(centered, self.W_enc, self.b_enc, count, self._work, self.precision, self.group)
        return Pairs.of_places(places, values, len(centered), torch.tensor(self.prefixes, device=centered.device))

    def _selected(self, pre: Tensor) -> Tensor:
        return keep_largest(pre.relu(), self.training_k * len(pre) * self.group.size, self.group)

    def _rectified(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc.t()).relu_()
