"""Exact selection of the k largest pre-activations of each token.

torch.topk on a CPU costs about 2 ns per candidate in every row, as much as the encoder's matrix product. Two
stages look at far fewer: split the n candidates of a row into groups and take each group's maximum. The k largest
elements lie in the k groups with the largest maxima: any other group is beaten by k elements, one in each of them.
So torch.topk runs over the n/s maxima and then over the k*s members of the chosen groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GROUP_SIZES = (8, 16, 32)
# torch.topk needs about three times as long per candidate on rows this short (it sorts pairs instead of keeping a
# heap), so two stages must cut the candidates by more than that.
WORTHWHILE = 3.0
SAMPLE_STRIDE = 61  # prime: a divisor of n would sample the same few latents of every row
BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}


def rows_per_block(num_latents: int, device: torch.device) -> int:
    """Tokens to encode at once, so that their pre-activations stay in cache (CPU) or in memory (GPU)."""
    return max(64, BLOCK_ELEMENTS.get(device.type, 1 << 21) // num_latents)


def group_size(num_latents: int, k: int) -> int:
    """Group size for two stages, or 1 where one stage is faster."""
    fitting = [size for size in GROUP_SIZES if num_latents % size == 0 and num_latents // size >= k]
    best = min(fitting, key=lambda size: num_latents // size + k * size, default=1)
    if best == 1 or WORTHWHILE * (num_latents // best + k * best) > num_latents:
        return 1
    return best


def top_k_indices(pre: Tensor, k: int) -> Tensor:
    """Indices int64 [B, k] of the k largest entries of every row of [B, n], in no particular order."""
    num_rows, n = pre.shape
    size = group_size(n, k) if pre.device.type == "cpu" else 1
    if size == 1:
        return pre.topk(k, dim=1, sorted=False).indices
    # Group j holds the candidates j, j + n/s, j + 2n/s, ...: the maximum then runs along memory.
    stride = n // size
    groups = pre.view(num_rows, size, stride).amax(1).topk(k, dim=1, sorted=False).indices
    members = torch.arange(0, n, stride, device=pre.device).view(1, size, 1)
    candidates = (groups.unsqueeze(1) + members).view(num_rows, size * k)
    chosen = pre.gather(1, candidates).topk(k, dim=1, sorted=False).indices
    return candidates.gather(1, chosen)


def keep_largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest of all entries of [B, n] where they stand, zero elsewhere."""
    flat = values.flatten()
    chosen = _largest(flat.detach(), min(count, len(flat)))
    return torch.zeros_like(flat).scatter(0, chosen, flat[chosen]).view_as(values)


def _largest(flat: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest entries of [N], in no particular order.

    On a CPU torch.topk moves every entry about. A sample says which value somewhat more than `count` entries exceed;
    if they do, the largest are among them, and only those are sorted.
    """
    sample = flat[::SAMPLE_STRIDE]
    rank = int(1.25 * count / SAMPLE_STRIDE) + 16
    if flat.device.type == "cpu" and rank < len(sample):
        candidates = (flat > sample.topk(rank).values[-1]).nonzero().flatten()
        if len(candidates) >= count:
            return candidates[flat[candidates].topk(count, sorted=False).indices]
    return flat.topk(count, sorted=False).indices


def sparse_rows(latents: Callable[[Tensor], Tensor], x: Tensor, block_rows: int) -> tuple[Tensor, Tensor]:
    """Positive latents of every row as indices and values [N, m], where m is the most that any row has.

    Args:
        latents: Dense latents [B, n] >= 0 of rows [B, d].
        x: Rows [N, d].
        block_rows: Rows to hold dense latents of at once.

    Returns:
        Indices int64, distinct within a row, and values; rows with fewer than m positive latents end in zeros. m >= 1.
    """
    indices, values = [], []
    for block in torch.split(x, block_rows):
        z = latents(block)
        width = max(1, int((z > 0).sum(1).max())) if len(block) else 1
        chosen = z.detach().topk(width, dim=1, sorted=True).indices
        indices.append(chosen)
        values.append(z.gather(1, chosen))
    width = max(part.shape[1] for part in indices)
    indices = [_widened(part, width) for part in indices]
    values = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in values]
    return torch.cat(indices), torch.cat(values)


def _widened(indices: Tensor, width: int) -> Tensor:
    """Indices [B, m] with `width - m` others appended to each row, such that a row stays without repeats."""
    more = width - indices.shape[1]
    if not more:
        return indices
    # Of the first `width` latents a row uses at most m, so enough of them are free; a spare column takes the rest.
    used = torch.zeros(len(indices), width + 1, dtype=torch.int8, device=indices.device)
    used.scatter_(1, indices.clamp(max=width), 1)
    return torch.cat([indices, used[:, :width].topk(more, dim=1, largest=False).indices], dim=1)
