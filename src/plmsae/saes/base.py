"""What every sparse autoencoder offers, whatever its architecture.

Shapes: N tokens, d = d_model, n = dictionary_size, k = latents per token. Rows of `W_enc` and `W_dec` belong to one
latent each (rows of `W_dec` are the atoms), which is the layout that gathering them wants.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.saes.config import SaeConfig
from plmsae.saes.group import SOLO, Group
from plmsae.saes.normaliser import Standardised, standardise

KERNELS = ("auto", "reference")


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch.

    Attributes:
        total: Scalar to differentiate.
        reconstruction: Squared error, summed over d and averaged over tokens (detached scalar).
        aux: The auxiliary or sparsity term before its weight (detached scalar; 0 where it does not apply).
        counts: int64 [n], on how many tokens each latent was above zero.
    """

    total: Tensor
    reconstruction: Tensor
    aux: Tensor
    counts: Tensor


class SparseAutoencoder(nn.Module, ABC):
    """Base of all architectures.

    Attributes:
        config: What it is and what it was trained on.
        options: `config.options` over the architecture's defaults.
        kernel: `auto` for the fastest training step, `reference` for the plain dense one; encoding is not affected.
        precision: Of the factors of a training step's matrix products, `float32` or `bfloat16` (`products.py`);
            encoding is not affected. Both are set by `prepare_training`.
        penalty_factor: Factor of the sparsity penalty's weight; a training sets it, with a warm-up to a number in
            [0, 1] and with a controller to a scalar tensor >= 0.
        training_k: Latents per token that a training step selects: k, or more while a training anneals it. Encoding
            is not affected.
        latent_max: Largest value of each latent over a stated sample of training tokens, [n]; zeros until measured.
        group: The processes that share each batch of a training; of no concern to encoding.
        concepts: Latent -> what it was found to mean; filled by `plmsae.load`, not part of the SAE's files.
    """

    default_options: ClassVar[Mapping[str, Any]] = {}
    # Tensors that scale with the input: f(s x; s b) = s f(x; b). An architecture with thresholds adds its own.
    homogeneous: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec", "latent_max")
    # Whether a training step selects the latents that `encode` selects.
    training_encodes: ClassVar[bool] = True
    # Whether `encode` needs a threshold that is measured after the training (see `calibrate`).
    calibrated: ClassVar[bool] = False
    # What a training step can compute its matrix products in.
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    # Adam's decay rates, and the parameters with an optimiser group and a gradient clip of their own.
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    own_group: ClassVar[tuple[str, ...]] = ()

    b_enc: Tensor
    b_dec: Tensor
    latent_max: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        for key in config.options:
            if key not in self.default_options:
                raise UserError(
                    f"architecture '{config.architecture}' has no option '{key}'",
                    where="options",
                    fix=did_you_mean(key, self.default_options) if self.default_options else "remove it",
                )
        self.config = config
        self.options: dict[str, Any] = {**self.default_options, **config.options}
        self.kernel = "auto"
        self.precision = "float32"
        self.penalty_factor: float | Tensor = 1.0
        self.training_k = config.k
        self.group: Group = SOLO
        self.concepts: Mapping[int, str] = {}
        self.register_buffer("latent_max", torch.zeros(config.dictionary_size))

    @property
    @abstractmethod
    def atoms(self) -> Tensor:
        """Decoder directions [n, d], one row per latent."""

    @abstractmethod
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Set all weights to their starting values.

        Args:
            generator: CPU generator; the only source of randomness.
            center: Starting value of `b_dec` [d], e.g. the geometric median of a sample; zeros if not given.
        """

    @abstractmethod
    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latents that may fire on each token.

        Args:
            x: Activations [N, d].

        Returns:
            Indices int64 [N, m], distinct within a row and in no particular order, and values [N, m] >= 0; a value
            is 0 where fewer than m latents are positive. m is k where every token has at most k latents; otherwise
            it is the most that any of these tokens has.

        Raises:
            UserError: x is of another width.
            DataError: x holds NaN or infinity.
        """

    @abstractmethod
    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """Training loss of a batch [N, d]; `dead` (bool [n]) marks latents that have been silent for long.

        With several processes in `group`, x holds the rows of this one, and what is returned are terms whose mean over
        the processes (of counts: the sum) is that of the whole batch; so are the gradients.
        """

    def prepare_training(self, kernel: str, precision: str) -> None:
        """Set how training steps are computed.

        Args:
            kernel: `auto` or `reference`.
            precision: `float32` or `bfloat16`.

        Raises:
            UserError: The architecture has no such step.
        """
        if precision not in self.precisions:
            raise UserError(
                f"architecture '{self.config.architecture}' has no training step in {precision}",
                where="precision",
                fix=f"set it to {' or '.join(self.precisions)}",
            )
        if kernel == "reference" and precision != "float32":
            raise UserError(
                f"the kernel 'reference' is the papers' step in fp32; there is none in {precision}",
                where="kernel, precision",
                fix="set kernel to auto, or precision to float32",
            )
        self.kernel, self.precision = kernel, precision

    def calibrate(self, x: Tensor) -> None:
        """Set what `encode` needs beyond the trained weights, from held-out activations [N, d]; nothing by default.

        With several processes in `group`, each passes rows of its own, and all count.
        """
        del x

    def weights_problem(self) -> str | None:
        """What makes the weights unusable beyond names, shapes and NaN, in words; None if nothing."""
        return None

    def with_unit_atoms(self) -> SparseAutoencoder:
        """The same function with atoms of norm 1; the SAE itself where the training keeps them so."""
        return self

    def constrain_gradients(self) -> None:
        """Change `.grad` before it is clipped and given to the optimiser; nothing by default."""

    def constrain_weights(self) -> None:
        """Restore the weights' constraint after an optimiser step; nothing by default."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents z [..., n] of activations [..., d]."""
        indices, values = self.encode_sparse(x.reshape(-1, x.shape[-1]))
        z = values.new_zeros(len(values), self.config.dictionary_size).scatter(1, indices, values)
        return z.view(*x.shape[:-1], self.config.dictionary_size)

    def encode_subset(self, x: Tensor, latents: Tensor) -> Tensor:
        """`encode(x)[..., latents]` without the rest of the dictionary.

        Which latents fire is still decided among all of them, so the numbers are those of the full encoding.

        Args:
            x: Activations [..., d].
            latents: int64 [m], indices into the dictionary.

        Raises:
            UserError: A latent is out of range.
        """
        n = self.config.dictionary_size
        if latents.numel() and (int(latents.min()) < 0 or int(latents.max()) >= n):
            raise UserError(f"latents must lie in 0..{n - 1}", fix="choose latents of this dictionary")
        wanted, inverse = torch.unique(latents, return_inverse=True)
        indices, values = self.encode_sparse(x.reshape(-1, x.shape[-1]))
        column = torch.full((n,), len(wanted), dtype=torch.int64, device=x.device)
        column[wanted] = torch.arange(len(wanted), device=x.device)
        # One spare column takes the latents that were not asked for.
        z = values.new_zeros(len(values), len(wanted) + 1).scatter(1, column[indices], values)
        return z[:, inverse].view(*x.shape[:-1], len(latents))

    def standardise(self, x: Tensor) -> Standardised:
        """Activations [..., d] as the encoder takes them, and how to come back (see `normaliser.py`).

        Nothing is done, and nothing is spent, unless the normaliser works per token.
        """
        if not self.config.per_token:
            return Standardised(x)
        return standardise(x.to(self.b_dec.dtype), self.config.normaliser)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction [..., d] of latents [..., n], in the space of the activations.

        Args:
            z: Latents.
            x: The activations [..., d] whose reconstruction is asked for. Only read, and then needed, where the
                normaliser works per token: latents do not hold the token's scale.

        Raises:
            UserError: The normaliser works per token and x is not given, or is of other tokens than z.
        """
        return self._restored(self.decode_standardised(z), x)

    def decode_sparse(self, indices: Tensor, values: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction [N, d] of what `encode_sparse` returns, from the k atoms of each token only; x as `decode`.

        Raises:
            UserError: See `decode`.
        """
        return self._restored(self._decode_sparse_standardised(indices, values), x)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction [..., d] of activations [..., d]."""
        rows = x.reshape(-1, x.shape[-1])
        return self.decode_sparse(*self.encode_sparse(rows), rows).view(x.shape)

    def decode_standardised(self, z: Tensor) -> Tensor:
        """The decoder's own output [..., d] for latents [..., n]: of x~ = `standardise(x).rows`, not of x.

        The two are the same unless the normaliser works per token.
        """
        return z @ self.atoms + self.b_dec

    def _decode_sparse_standardised(self, indices: Tensor, values: Tensor) -> Tensor:
        """`decode_standardised` of what `encode_sparse` returns, [N, d]."""
        return nn.functional.embedding_bag(indices, self.atoms, mode="sum", per_sample_weights=values) + self.b_dec

    def _restored(self, x_hat: Tensor, x: Tensor | None) -> Tensor:
        if not self.config.per_token:
            return x_hat
        if x is None or x.shape != x_hat.shape:
            given = "none were given" if x is None else f"those given are of shape {tuple(x.shape)}"
            raise UserError(
                f"the normaliser works per token, so decoding needs the activations {tuple(x_hat.shape)}; {given}",
                where="x",
                fix="sae.decode(z, x); sae.decode_standardised(z) reconstructs the standardised tokens",
            )
        return self.standardise(x).undo(x_hat)

    def folded(self, scale: float) -> SparseAutoencoder:
        """The same SAE for raw activations, when this one was trained on x / scale.

        TopK-like encoders are positively homogeneous, f(s x; s b) = s f(x; b), so scaling the biases alone is exact:
        atoms keep their norm, and latents and reconstructions come out in raw units.

        Args:
            scale: The divisor of the training activations, in raw units.

        Raises:
            UserError: It is folded already, the scale is not a positive number, or the normaliser works per token.
        """
        if self.config.per_token:
            raise UserError(
                f"this SAE takes {self.config.input}: there is no one scale to fold",
                fix="use it as it is, it takes raw activations",
            )
        if self.config.normaliser["folded"]:
            raise UserError("this SAE is folded already: it takes raw activations", fix="use it as it is")
        if not (math.isfinite(scale) and scale > 0):
            raise UserError(f"scale {scale} is not a positive number", fix="pass the normaliser's scale")
        twin = copy.deepcopy(self)
        with torch.no_grad():
            for name in self.homogeneous:
                tensor = getattr(twin, name, None)
                if tensor is not None:
                    tensor.mul_(scale)
        twin.config = self.config.replace(normaliser={"kind": "rms", "scale": float(scale), "folded": True})
        return twin

    def check_source(self, plm: str, plm_revision: str, layer: int, hook: str) -> None:
        """Refuse activations of another origin than those it was trained on.

        Raises:
            UserError: Names both sides of every difference, or says that the normaliser is not folded.
        """
        given = {"plm": plm, "plm_revision": plm_revision, "layer": layer, "hook": hook}
        wrong = [name for name, value in given.items() if getattr(self.config, name) != value]
        if wrong:
            ours = ", ".join(f"{name} {getattr(self.config, name)}" for name in wrong)
            theirs = ", ".join(f"{name} {given[name]}" for name in wrong)
            raise UserError(
                f"the SAE was trained on {ours}; the activations are of {theirs}",
                fix="use activations of the same PLM, revision, layer and hook, or train an SAE on these",
            )
        if not self.config.takes_raw:
            raise UserError(
                f"the SAE takes {self.config.input}, not raw ones",
                fix="fold the normaliser into it: sae.folded(scale)",
            )

    def encoder_input(self, x: Tensor) -> Tensor:
        """Checked activations [N, d], standardised: what the first matrix of the encoder takes.

        Raises:
            UserError: x is not [N, d].
            DataError: x holds NaN or infinity; the first such row is named.
        """
        return self.standardise(self.check_input(x)).rows

    def check_input(self, x: Tensor) -> Tensor:
        """Return x in the SAE's dtype, or say why it cannot be encoded.

        Raises:
            UserError: x is not [N, d].
            DataError: x holds NaN or infinity; the first such row is named.
        """
        if x.ndim != 2 or x.shape[1] != self.config.d_model:
            raise UserError(
                f"activations of shape {tuple(x.shape)}; the SAE takes width {self.config.d_model}",
                fix="use activations of the layer that the SAE was trained on",
            )
        finite = torch.isfinite(x).all(dim=1)
        if not bool(finite.all()):
            rows = (~finite).nonzero().flatten()
            raise DataError(
                f"{len(rows)} of {len(x)} activation rows hold NaN or infinity",
                where=f"row {int(rows[0])}",
                fix="extract the activations again; half precision overflows above 65504",
            )
        return x.to(self.b_dec.dtype)
