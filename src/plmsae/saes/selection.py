"""Exact selection of the largest pre-activations: the k of each token, or the B k of a batch.

torch.topk on a CPU costs about 2 ns per candidate in every row, as much as the encoder's matrix product. Two
stages look at far fewer: split the n candidates of a row into groups and take each group's maximum. The k largest
elements lie in the k groups with the largest maxima: any other group is beaten by k elements, one in each of them.
So torch.topk runs over the n/s maxima and then over the k*s members of the chosen groups.

Over a batch, a sample says which value somewhat more than the wanted number of entries exceed. If they do, the largest
are among them, and only those are sorted; if not, all positive ones are. Either way the result is exact. Among equal
values the first in memory are taken, so that the choice does not depend on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from plmsae.saes.group import SOLO, Group, total_of
from plmsae.saes.shared_selection import first_largest_of_all

GROUP_SIZES = (8, 16, 32)
# torch.topk needs about three times as long per candidate on rows this short (it sorts pairs instead of keeping a
# heap), so two stages must cut the candidates by more than that.
WORTHWHILE = 3.0
SCAN_GROUP = 8  # entries that are compared to a floor at once, by their maximum
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


def keep_largest(values: Tensor, count: int, group: Group = SOLO) -> Tensor:
    """The `count` largest of all entries >= 0 of [B, n], of all processes, where they stand, zero elsewhere."""
    flat = values.flatten()
    if group.size == 1:
        chosen = _largest(flat.detach(), min(count, len(flat)))
    else:
        chosen = (flat.detach() > 0).nonzero().flatten()
        if total_of(len(chosen), flat.device, group) > count:
            chosen = chosen[first_largest_of_all(flat.detach()[chosen], count, group)]
    return torch.zeros_like(flat).scatter(0, chosen, flat[chosen]).view_as(values)


def largest_of_blocks(
    blocks: Callable[[], Iterable[Tensor]], num_rows: int, count: int, group: Group = SOLO
) -> tuple[Tensor, Tensor]:
    """The positive ones among the `count` largest entries of [B, n] that come a block of rows at a time.

    Args:
        blocks: Gives the rows in order, contiguous blocks [b, n]; a block need not outlive the next one. Called a
            second time if the first block was no fair sample of the others.
        num_rows: B, at least 1.
        count: How many, at least 1.
        group: The processes that have rows as well, each B of them: the largest are those of all together.

    Returns:
        Places int64 [m] in the flattened [B, n], ascending, and values [m] > 0; those of this process.
    """
    floor: Tensor | None = None
    while True:
        places, values, start = [], [], 0
        for block in blocks():
            if floor is None:
                floor = _floor(block.view(-1), count * len(block) / (num_rows * group.size)).clamp_min(0.0)
                floor = -group.max_(-floor)  # the lowest of all, which lets through what any of them would
            chosen = _above(block, floor)
            places.append(chosen + start)
            values.append(block.view(-1)[chosen])
            start += block.numel()
        assert floor is not None
        found = total_of(sum(map(len, places)), floor.device, group)
        if found >= count or not bool(floor > 0):
            break
        floor = torch.zeros_like(floor)
    place, order = torch.cat(places).sort()
    value = torch.cat(values)[order]
    if found > count:
        solo = group.size == 1
        first = _first_largest(value, count) if solo else first_largest_of_all(value, count, group)
        place, value = place[first], value[first]
    return place, value


def _largest(flat: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the `count` largest entries of [N]."""
    if flat.device.type == "cpu":  # where torch.topk moves every entry about
        candidates = (flat > _floor(flat, count)).nonzero().flatten()
        if len(candidates) >= count:
            return candidates[_first_largest(flat[candidates], count)]
    return _first_largest(flat, count)


def _first_largest(values: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the `count` largest entries of [N]; among equal ones the first."""
    smallest = values.topk(count, sorted=False).values.min()
    chosen = values > smallest
    tied = (values == smallest).nonzero().flatten()
    chosen[tied[: count - int(chosen.sum())]] = True
    return chosen.nonzero().flatten()


def _floor(flat: Tensor, count: float) -> Tensor:
    """A value that somewhat more than `count` entries of [N] exceed, by a sample; -inf where N is too small for one."""
    sample = flat[::SAMPLE_STRIDE]
    rank = int(1.25 * count / SAMPLE_STRIDE) + 16
    if rank >= len(sample):
        return flat.new_full((), -torch.inf)
    return sample.topk(rank).values[-1]


def _above(rows: Tensor, floor: Tensor) -> Tensor:
    """Places, in no particular order, of the entries above `floor` in the flattened [b, n]."""
    n = rows.shape[1]
    if rows.device.type != "cpu" or n % SCAN_GROUP:
        return (rows.view(-1) > floor).nonzero().flatten()
    # As in `top_k_indices`: the maxima run along memory, and few of them are above.
    stride = n // SCAN_GROUP
    groups = (rows.view(-1, SCAN_GROUP, stride).amax(1).view(-1) > floor).nonzero()
    first = groups + groups // stride * (n - stride)
    candidates = (first + torch.arange(0, n, stride)).view(-1)
    return candidates[rows.view(-1)[candidates] > floor]


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
