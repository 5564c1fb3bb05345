"""Active (token, latent) pairs: sums over them cost B k d operations where dense products cost B n d.

Every sum is an `embedding_bag`, whose order of summation is fixed, over the pairs as they lie or sorted by latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Pairs:
    """P pairs in bags: those of a bag are decoded together. A token has one bag, or one per group of latents.

    Attributes:
        latents: int64 [P].
        values: The latent's value, [P] >= 0.
        bags: int64 [P], ascending: token * number of groups + group.
        starts: int64 [number of bags], where each bag starts; bags may be empty.
    """

    latents: Tensor
    values: Tensor
    bags: Tensor
    starts: Tensor

    @classmethod
    def of_rows(cls, indices: Tensor, values: Tensor) -> Pairs:
        """The pairs of `encode_sparse`'s result, both [B, k]: a bag per token."""
        num_rows, k = indices.shape
        tokens = torch.arange(num_rows, device=indices.device)
        return cls(indices.flatten(), values.flatten(), tokens.repeat_interleave(k), tokens * k)

    @classmethod
    def of_places(cls, places: Tensor, values: Tensor, num_rows: int, prefixes: Tensor) -> Pairs:
        """Pairs by place in the flattened [B, n], ascending: a bag per token and group of latents.

        Args:
            places: int64 [P].
            values: [P].
            num_rows: B.
            prefixes: int64 [G], ascending: the latents below each belong to it; the last one is n.
        """
        n, num_groups = int(prefixes[-1]), len(prefixes)
        tokens = places // n
        latents = places - tokens * n
        bags = tokens
        if num_groups > 1:
            bags = tokens * num_groups + torch.bucketize(latents, prefixes, right=True)
        every = torch.arange(num_rows * num_groups, device=places.device)
        return cls(latents, values, bags, torch.searchsorted(bags, every))

    def decode(self, atoms: Tensor) -> Tensor:
        """Of every bag the sum of value x atom: atoms [n, d] -> [number of bags, d]."""
        return embedding_bag(self.latents, atoms, self.starts, mode="sum", per_sample_weights=self.values)

    def value_gradients(self, g: Tensor, atoms: Tensor) -> Tensor:
        """g[bag] . atom of every pair, [P], for g [number of bags, d]; 0 where the value is 0."""
        if not len(self.values):
            return self.values
        with torch.enable_grad():  # the gradient of embedding_bag's weights, by its own kernel
            weights = self.values.detach().requires_grad_()
            decoded = embedding_bag(self.latents, atoms.detach(), self.starts, mode="sum", per_sample_weights=weights)
            (gradient,) = torch.autograd.grad(decoded, weights, g)
        return gradient.masked_fill_(self.values == 0, 0.0)

    def by_latent(self, num_latents: int) -> PairsByLatent:
        """The same pairs, those of a latent side by side."""
        ordered, order = self.latents.sort(stable=True)
        starts = torch.searchsorted(ordered, torch.arange(num_latents, device=order.device))
        return PairsByLatent(order, starts)


@dataclass(frozen=True)
class PairsByLatent:
    """Pairs in the order of their latents: `order` int64 [P] and where each latent starts, `starts` int64 [n]."""

    order: Tensor
    starts: Tensor

    def sum_rows(self, rows: Tensor, which: Tensor, weights: Tensor) -> Tensor:
        """Of every latent the sum over its pairs of weight x row.

        Args:
            rows: [R, d].
            which: int64 [P], the row of each pair.
            weights: [P].

        Returns:
            [n, d].
        """
        return embedding_bag(which[self.order], rows, self.starts, mode="sum", per_sample_weights=weights[self.order])
