"""Reconstruction metrics over any number of rows, from sums kept in fp64: no averages of per-batch ratios.

FVU = E||x - x^||^2 / E||x - mu||^2, with mu the mean of all rows that were seen (not of a batch, not zero).
Everything is a function of sums over rows: shards measured apart and merged give what one pass gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.group import Group

DENSE = 0.1
DENSITY_BINS_PER_DECADE = 5
LOWEST_LOG10_DENSITY = -6


class ReconstructionMetrics:
    """Accumulates over batches; `compute` may be called at any time.

    Args:
        d_model: Row width.
        dictionary_size: Number of latents.
        prefixes: Sizes m_1 < ... < m_G = n of nested prefixes that are measured by themselves too; none by default.
    """

    def __init__(self, d_model: int, dictionary_size: int, prefixes: Sequence[int] = ()) -> None:
        if prefixes and (list(prefixes) != sorted({*prefixes, dictionary_size}) or prefixes[0] < 1):
            raise UserError(
                f"prefixes {list(prefixes)} do not ascend to the dictionary's {dictionary_size} latents",
                where="prefixes",
                fix="pass the cumulative sums of the group sizes",
            )
        self.num_tokens = 0
        self.prefixes = tuple(prefixes)
        # Sums of ||x - x^_j||^2, j = 0 (the bias alone) to G - 1; the last prefix is the whole dictionary.
        self._prefix_errors = torch.zeros(len(self.prefixes), dtype=torch.float64)
        self.counts = torch.zeros(dictionary_size, dtype=torch.int64)
        self._sum_x = torch.zeros(d_model, dtype=torch.float64)
        # Sums of: ||x||^2, ||x - x^||^2, ||x^||^2, <x, x^>, cos(x, x^), ||x^||/||x||, active latents
        self._sums = torch.zeros(7, dtype=torch.float64)

    @torch.no_grad()
    def update(self, sae: SparseAutoencoder, x: Tensor) -> None:
        """Encode and decode rows [N, d] and add them."""
        indices, values = sae.encode_sparse(x)
        x_hat = sae.decode_sparse(indices, values, x)
        active = values > 0
        self.counts += torch.bincount(indices[active], minlength=len(self.counts)).cpu()
        for place, size in enumerate((0, *self.prefixes[:-1]) if self.prefixes else ()):
            part = sae.decode_sparse(indices, torch.where(indices < size, values, 0.0), x)
            self._prefix_errors[place] += (x.double() - part.double()).square().sum().cpu()
        x, x_hat = x.double(), x_hat.double()
        square, square_hat = x.square().sum(1), x_hat.square().sum(1)
        inner = torch.linalg.vecdot(x, x_hat)
        norms = square.sqrt() * square_hat.sqrt()
        per_row = (
            square,
            (x - x_hat).square().sum(1),
            square_hat,
            inner,
            torch.where(norms > 0, inner / norms, 0.0),
            torch.where(square > 0, (square_hat / square).sqrt(), 0.0),
            active.sum(1).double(),
        )
        self._sums += torch.stack([row.sum() for row in per_row]).cpu()
        self._sum_x += x.sum(0).cpu()
        self.num_tokens += len(x)

    def merge(self, other: ReconstructionMetrics) -> None:
        """Add what another one has seen: of other rows, by the same SAE.

        Raises:
            UserError: They are of another width, dictionary size or prefixes.
        """
        if (self._sum_x.shape, self.counts.shape, self.prefixes) != (
            other._sum_x.shape,
            other.counts.shape,
            other.prefixes,
        ):
            raise UserError("these metrics are of another SAE", where="merge", fix="merge shards of one SAE only")
        self.num_tokens += other.num_tokens
        self.counts += other.counts
        self._sum_x += other._sum_x
        self._sums += other._sums
        self._prefix_errors += other._prefix_errors

    def add_up(self, group: Group) -> None:
        """Add what the other processes have seen, of rows of their own."""
        if group.size == 1:
            return
        self.num_tokens = int(group.sum_(torch.tensor(self.num_tokens)))
        for sums in (self.counts, self._sum_x, self._sums, self._prefix_errors):
            group.sum_(sums)

    @property
    def variance(self) -> float:
        """E||x - mu||^2 of the rows."""
        mean = self._sum_x / self.num_tokens
        return float(self._sums[0] / self.num_tokens - mean.square().sum())

    def compute(self) -> dict[str, float | int]:
        """All metrics.

        Returns:
            `fvu`; `l0`, mean number of active latents; `cosine`, mean cos(x, x^); `l2_ratio`, mean ||x^||/||x||;
            `relative_reconstruction_bias` E||x^||^2 / E<x, x^> (Rajamanoharan et al. 2024a, equation 10; below 1 is
            shrinkage); `dead_fraction` and `dense_fraction`, latents active on none and on more than a tenth of the
            rows; `num_tokens`. With prefixes also `fvu_prefix_0` (the bias alone) to `fvu_prefix_G` (the whole) and,
            for each group, the latents that a prefix adds to the one before: `fvu_gain_group_j` = fvu_prefix_(j-1) -
            fvu_prefix_j, `l0_group_j` and `dead_fraction_group_j`.

        Raises:
            DataError: No rows, or rows that are all the same.
        """
        if self.num_tokens == 0 or not self.variance > 0:
            raise DataError(
                f"reconstruction cannot be measured on {self.num_tokens} rows that do not vary",
                fix="extract activations of more sequences",
            )
        _, error, square_hat, inner, cosine, ratio, active = (self._sums / self.num_tokens).tolist()
        density = self.counts.double() / self.num_tokens
        return {
            "fvu": error / self.variance,
            "l0": active,
            "cosine": cosine,
            "l2_ratio": ratio,
            "relative_reconstruction_bias": square_hat / inner if inner > 0 else 0.0,
            "dead_fraction": float((self.counts == 0).double().mean()),
            "dense_fraction": float((density > DENSE).double().mean()),
            "num_tokens": self.num_tokens,
            **self._groups(error / self.variance),
        }

    def _groups(self, whole: float) -> dict[str, float]:
        if not self.prefixes:
            return {}
        fvu = [*(self._prefix_errors / (self.num_tokens * self.variance)).tolist(), whole]
        found = {f"fvu_prefix_{place}": value for place, value in enumerate(fvu)}
        for group, (first, last) in enumerate(pairwise((0, *self.prefixes)), start=1):
            counts = self.counts[first:last]
            found[f"fvu_gain_group_{group}"] = fvu[group - 1] - fvu[group]
            found[f"l0_group_{group}"] = float(counts.sum()) / self.num_tokens
            found[f"dead_fraction_group_{group}"] = float((counts == 0).double().mean())
        return found

    def density_histogram(self) -> list[tuple[float, int]]:
        """(lower edge of log10 density, number of latents) of equal bins from 1e-6 to 1; silent latents are in none."""
        num_bins = -LOWEST_LOG10_DENSITY * DENSITY_BINS_PER_DECADE
        density = self.counts[self.counts > 0].double() / max(self.num_tokens, 1)
        places = (density.log10() - LOWEST_LOG10_DENSITY) * DENSITY_BINS_PER_DECADE
        bins = torch.bincount(places.floor().long().clamp(0, num_bins - 1), minlength=num_bins)
        edges = [LOWEST_LOG10_DENSITY + index / DENSITY_BINS_PER_DECADE for index in range(num_bins)]
        return [(round(edge, 6), int(count)) for edge, count in zip(edges, bins.tolist())]
