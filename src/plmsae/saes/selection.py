"""Exact selection of the k largest pre-activations of each token.

torch.topk on a CPU costs about 2 ns per candidate in every row, as much as the encoder's matrix product. Two
stages look at far fewer: split the n candidates of a row into groups and take each group's maximum. The k largest
elements lie in the k groups with the largest maxima: any other group is beaten by k elements, one in each of them.
So torch.topk runs over the n/s maxima and then over the k*s members of the chosen groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_SIZES = (8, 16, 32)
# torch.topk needs about three times as long per candidate on rows this short (it sorts pairs instead of keeping a
# heap), so two stages must cut the candidates by more than that.
WORTHWHILE = 3.0
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
