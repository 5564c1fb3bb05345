"""The edit: hold one latent of the SAE at a value, and its control, a random direction of the same size.

    h_t <- h_t + s (c - f_t) d        (s strength, c the value, f_t the latent's activation at residue t, d its atom)

For a linear decoder this is the reconstruction with the latent set to c plus the reconstruction's error, decode(f') +
(h - decode(f)), without either decoding. It is in raw activation space. Where the SAE's normaliser works per token, d
is in units of the standardised token, and the edit is s (c - f_t) sigma_t d with sigma_t the token's scale; a
normaliser that is folded in has sigma_t = 1. At s = 0 and where f_t = c the state keeps its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.saes.base import SparseAutoencoder


def moved(x: Tensor, amount: Tensor, direction: Tensor) -> Tensor:
    """x + amount * direction; rows whose amount is 0 are returned bit for bit.

    Args:
        x: [R, d] hidden states.
        amount: [R] signed lengths.
        direction: [d].
    """
    return torch.where((amount != 0)[:, None], x + amount[:, None] * direction, x)


class Clamp:
    """Holds a latent at a value on chosen residues; remembers what it met.

    Args:
        sae: The SAE; it takes raw activations.
        latent: Index of the latent.
        value: c, in units of the latent's activation.
        strength: s; 0 changes nothing, 1 is the whole way.
        edited: bool [R], the residues that are edited.

    Attributes:
        activation: [R] the latent's activation on the states that came in.
        amount: [R] s (c - f_t) sigma_t, 0 on residues that are not edited.
    """

    activation: Tensor
    amount: Tensor

    def __init__(self, sae: SparseAutoencoder, latent: int, value: float, strength: float, edited: Tensor) -> None:
        self._sae = sae
        self._latent = torch.tensor([latent])
        self._value = value
        self._strength = strength
        self._edited = edited
        self.atom = sae.atoms[latent].detach()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """[R, d] hidden states -> the edited ones."""
        self.activation = self._sae.encode_subset(x, self._latent)[:, 0]
        amount = self._strength * (self._value - self.activation)
        scale = self._sae.standardise(x).scale
        if scale is not None:
            amount = amount * scale[:, 0]
        self.amount = torch.where(self._edited, amount, torch.zeros_like(amount))
        return moved(x, self.amount, self.atom)


class SameSizeMove:
    """The control of a clamp that has run: the same length at each residue, along another direction.

    Args:
        clamp: The clamp; it must have been called on the same states before.
        direction: [d], of norm 1.
    """

    def __init__(self, clamp: Clamp, direction: Tensor) -> None:
        self._clamp = clamp
        self._direction = direction * clamp.atom.norm()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """[R, d] hidden states -> the edited ones."""
        return moved(x, self._clamp.amount, self._direction)


def random_directions(count: int, width: int, seed: int) -> Tensor:
    """Unit vectors [count, width], uniform on the sphere, a function of the arguments."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).float()
