"""Baselines: principal and independent components as latents, behind the same interface as an SAE.

    s = E (x - b_dec);   of the m scores the k largest in magnitude are kept;   x^ = C^T s + b_dec

Latents 0..m-1 are the positive parts of the scores and m..2m-1 the negative parts, so that both directions of a
component count as units of their own, as with `neurons`. PCA: the rows of C are orthonormal and E = C. ICA: C holds
the columns of the mixing matrix, brought to unit norm, and E the unmixing rows, scaled to match. Fitting needs data
and, for ICA, scikit-learn: see `plmsae.evaluation.baselines`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.constraints import unit_rows_

ORTHONORMAL = 1e-3


class Components(SparseAutoencoder):
    """What PCA and ICA share: 2 m latents of m components, `W_dec` [m, d] and the mean `b_dec` [d].

    Raises:
        UserError: `dictionary_size` is odd or above 2 d_model, or `k` is above the number of components.
    """

    W_dec: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        m, d = config.dictionary_size // 2, config.d_model
        if config.dictionary_size != 2 * m or m > d or config.k > m:
            raise UserError(
                f"'{config.architecture}' of width {d} has two latents for each of at most {d} components, and k is at "
                f"most their number; not {config.dictionary_size} latents and k = {config.k}",
                where="dictionary_size, k",
                fix=f"set dictionary_size to an even number up to {2 * d}, and k to at most half of it",
            )
        self.register_buffer("W_dec", torch.zeros(m, d))
        self.register_buffer("b_dec", torch.zeros(d))

    @property
    @abstractmethod
    def encoder(self) -> Tensor:
        """E [m, d]."""

    @property
    def num_components(self) -> int:
        """m."""
        return self.config.dictionary_size // 2

    @property
    def atoms(self) -> Tensor:
        """Plus and minus the components, [2 m, d]."""
        return torch.cat([self.W_dec, -self.W_dec])

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """The first m axes, until components are set; the generator is not used."""
        del generator
        axes = torch.eye(self.num_components, self.config.d_model)
        self.W_dec.copy_(axes)
        if self.encoder is not self.W_dec:
            self.encoder.copy_(axes)
        self.b_dec.zero_() if center is None else self.b_dec.copy_(center)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: of each component the latent on x's side of the mean."""
        scores = (self.encoder_input(x) - self.b_dec) @ self.encoder.T
        if self.config.k == self.num_components:
            components = torch.arange(self.num_components, device=scores.device).expand_as(scores)
            return components + self.num_components * (scores < 0), scores.abs()
        components = scores.abs().topk(self.config.k, dim=1, sorted=False).indices
        kept = scores.gather(1, components)
        return components + self.num_components * (kept < 0), kept.abs()

    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """There is nothing to train by gradients.

        Raises:
            UserError: Always.
        """
        del x, dead
        raise UserError(
            f"the baseline '{self.config.architecture}' is fitted, not trained",
            fix="fit it with plmsae.evaluation.baselines, or train another architecture, e.g. topk",
        )

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Components back to norm 1."""
        unit_rows_(self.W_dec)

    def _check(self, components: Tensor, name: str) -> Tensor:
        """Components in float64, if they are numbers [m, d]."""
        return _finite(components, self.W_dec, name)

    def _check_center(self, center: Tensor) -> Tensor:
        """The mean in float64, if it is numbers [d]."""
        return _finite(center, self.b_dec, "center")


def _finite(given: Tensor, wanted: Tensor, name: str) -> Tensor:
    if given.shape != wanted.shape:
        raise UserError(
            f"'{name}' has shape {tuple(given.shape)}, not {tuple(wanted.shape)}",
            where=name,
            fix="pass one row per component, each as wide as the activations",
        )
    if not bool(torch.isfinite(given).all()):
        raise DataError(f"'{name}' holds NaN or infinity", where=name, fix="fit on more rows, or fewer components")
    return given.double()


class PCA(Components):
    """Principal components; k of them per token, or all (k = m), which is the projection onto their span."""

    @property
    def encoder(self) -> Tensor:
        """E = C."""
        return self.W_dec

    @torch.no_grad()
    def set_components(self, components: Tensor, center: Tensor) -> None:
        """Take fitted components [m, d], first the one of largest variance, and the mean [d].

        Raises:
            UserError: A shape does not fit.
            DataError: The components are not finite or not orthonormal.
        """
        C, mean = self._check(components, "components"), self._check_center(center)
        error = float((C @ C.T - torch.eye(len(C), dtype=C.dtype, device=C.device)).abs().max())
        if error > ORTHONORMAL:
            raise DataError(
                f"the components are not orthonormal: an inner product is off by {error:.3g}",
                where="components",
                fix="pass eigenvectors of the covariance as rows",
            )
        self.W_dec.copy_(C)
        self.b_dec.copy_(mean)


class ICA(Components):
    """Independent components: encoder and decoder differ, as the mixing directions are not orthogonal."""

    W_enc: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("W_enc", torch.zeros_like(self.W_dec))

    @property
    def encoder(self) -> Tensor:
        """E."""
        return self.W_enc

    @torch.no_grad()
    def set_components(self, unmixing: Tensor, mixing: Tensor, center: Tensor) -> None:
        """Take a fitted model: s = unmixing (x - center), x = mixing^T s + center.

        Args:
            unmixing: [m, d], one row per component.
            mixing: [m, d], one row per component (the transpose of the usual mixing matrix).
            center: [d].

        Raises:
            UserError: A shape does not fit.
            DataError: A number is not finite, or the matrices do not invert each other on the components.
        """
        E, C = self._check(unmixing, "unmixing"), self._check(mixing, "mixing")
        mean = self._check_center(center)
        error = float((E @ C.T - torch.eye(len(C), dtype=C.dtype, device=C.device)).abs().max())
        if not error <= ORTHONORMAL:
            raise DataError(
                f"unmixing and mixing do not invert each other: off by {error:.3g}",
                where="unmixing, mixing",
                fix="pass the pseudo-inverse of the unmixing matrix, transposed, as mixing",
            )
        lengths = torch.linalg.vector_norm(C, dim=1, keepdim=True)
        self.W_enc.copy_(E * lengths)
        self.W_dec.copy_(C / lengths)
        self.b_dec.copy_(mean)
