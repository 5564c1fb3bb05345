"""A training step without dense B x n work after the encoder: one autograd function, gradients by hand.

Plain autograd spends six matrix products of 2 B d n operations on a step (encode, decode, and two gradients of
each). Only B k of the B n latents are active, so all but the encoder's are done on the active pairs (`pairs.py`):

    encode     p = W_enc (x - b_dec) + b_enc, a block of tokens at a time in one reused buffer; the largest of each
               token (TopK) or of all (BatchTopK)
    decode     x^ = sum_i z_i W_dec[i] + b_dec, gathering the active atoms
    dz         g . W_dec[i] with g = dL/dx^; 0 where z = 0
    dW_dec     rows of g summed per latent with weights z; dW_enc: rows of x - b_dec with weights dz
    db_dec     sum_t g_t - db_enc W_enc: summing before multiplying drops the sixth product

With nested prefixes (Matryoshka) a token has a bag of pairs per group. Their sums added up are the errors of all
prefixes, from the same one gathering of atoms. A latent of group j takes part in the prefixes from j on, so for it
g = sum_{i >= j} w_i dL_i/dx^_i, added up from the end; what follows is the same.

AuxK (Gao et al. 2024, Appendix A.2) runs densely on the dead latents alone, gathered once: a few dead ones cost
little. Its target, the residual, is a constant: `e` is detached.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plmsae.saes.group import SOLO, Group
from plmsae.saes.pairs import Pairs
from plmsae.saes.products import multiply, rounded_multiply
from plmsae.saes.selection import largest_of_blocks, rows_per_block, top_k_indices


class Workspace(threading.local):
    """Buffers reused from step to step: fresh memory costs more here than the arithmetic that fills it.

    Each thread has its own, so that one SAE can encode in several threads at once.
    """

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Workspace:
        return Workspace()

    def block(self, num_rows: int, like: Tensor) -> Tensor:
        """A buffer [rows, n] of the dtype and device of `like` [n, d]; one for each dtype."""
        block = self._blocks.get(like.dtype)
        if block is None or len(block) < num_rows or block.shape[1] != len(like) or block.device != like.device:
            block = torch.empty(num_rows, len(like), dtype=like.dtype, device=like.device)
            self._blocks[like.dtype] = block
        return block[:num_rows]


def pre_activations(
    centered: Tensor, W_enc: Tensor, b_enc: Tensor, work: Workspace, precision: str = "float32"
) -> Iterator[Tensor]:
    """W_enc x + b_enc of rows [N, d], a block [b, n] at a time; without autograd each is overwritten by the next.

    With `bfloat16` the factors are rounded, see `products.py`; that is for training steps, and without autograd.
    """
    track = torch.is_grad_enabled() and (centered.requires_grad or W_enc.requires_grad or b_enc.requires_grad)
    low = None if precision == "float32" else W_enc.bfloat16()
    for block in torch.split(centered, rows_per_block(len(W_enc), W_enc.device)):
        if track:
            yield torch.addmm(b_enc, block, W_enc.t())
            continue
        out = work.block(len(block), W_enc)
        if low is None:
            yield torch.addmm(b_enc, block, W_enc.t(), out=out)
        elif block.device.type == "cuda":
            yield torch.add(rounded_multiply(block.bfloat16(), low.t()), b_enc, out=out)
        else:
            narrow = torch.mm(block.bfloat16(), low.t(), out=work.block(len(block), low))
            yield torch.add(narrow, b_enc, out=out)


def encode_rows(
    centered: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, work: Workspace, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Indices and values [N, k] of the k largest pre-activations of `centered` [N, d]; values are rectified.

    With gradients enabled the values are differentiable; without, one buffer serves all blocks. The numbers are the
    same bit for bit, so training and inference select alike, but for a training in bf16 (see `pre_activations`).
    """
    indices, values = [], []
    for pre in pre_activations(centered, W_enc, b_enc, work, precision):
        chosen = top_k_indices(pre.detach(), k)
        indices.append(chosen)
        values.append(pre.gather(1, chosen).relu())
    if not indices:
        empty = centered.new_zeros(0, k)
        return empty.long(), empty
    return torch.cat(indices), torch.cat(values)


def encode_batch(
    centered: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    count: int,
    work: Workspace,
    precision: str = "float32",
    group: Group = SOLO,
) -> tuple[Tensor, Tensor]:
    """The positive ones among the `count` largest pre-activations of all of `centered` [N, d], without autograd.

    With several processes these are the largest of all their rows together, and each gets its own of them.

    Returns:
        Places int64 [m] in the flattened [N, n], ascending, and values [m].
    """

    def blocks() -> Iterator[Tensor]:
        return pre_activations(centered, W_enc, b_enc, work, precision)

    return largest_of_blocks(blocks, len(centered), count, group)


@dataclass
class AuxTerm:
    """State of AuxK: dead latents [m], their values [B, m], error ê - e [B, d], 1 / normaliser (a scalar)."""

    dead: Tensor
    values: Tensor
    error: Tensor
    per_variance: Tensor


def select_aux(pre: Tensor, k_aux: int) -> Tensor:
    """ReLU of the `k_aux` largest of dead pre-activations [B, m] in every row, zero elsewhere."""
    if pre.shape[1] > k_aux:
        top = pre.topk(k_aux, dim=1)
        pre = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return pre.relu()


def per_variance(residual: Tensor, centered: Tensor, group: Group = SOLO) -> Tensor:
    """1 / sum of the squared deviations of the residual [B, d] from its batch mean: AuxK's normaliser, a scalar.

    0 where the deviations are rounding errors beside the input (a constant batch, a perfect reconstruction): the
    quotient would be noise or NaN, and there is nothing for dead latents to explain.

    With several processes it is that of all their rows, times their number: AuxK is a quotient of sums and no mean
    over tokens, and so the mean over the processes of their rows' errors times this is the whole batch's AuxK.
    """
    mean = residual.mean(0)
    if group.size > 1:
        mean = group.sum_(mean) / group.size
    sums = torch.stack([(residual - mean).square().sum(), centered.square().sum()])
    variance, square = group.sum_(sums)
    floor = 1e-10 * square + torch.finfo(residual.dtype).tiny
    return torch.where(variance > floor, group.size / variance.clamp_min(floor), 0.0)


@dataclass(frozen=True)
class StepSettings:
    """What distinguishes the architectures that share a step.

    Attributes:
        select: The active pairs of centred activations [B, d], with one bag per token and prefix.
        weights: Weight of the squared error of every prefix of the dictionary; the last one is all of it.
        bias_weight: Weight of that of b_dec alone.
        aux_k: Dead latents that AuxK may use per token.
        aux_alpha: Its weight.
        precision: Of AuxK's products, one of `plmsae.saes.products.PRECISIONS`.
        group: The processes that share the batch.
    """

    select: Callable[[Tensor], Pairs]
    aux_k: int
    aux_alpha: float
    weights: tuple[float, ...] = (1.0,)
    bias_weight: float = 0.0
    precision: str = "float32"
    group: Group = SOLO


def add_product(start: Tensor, a: Tensor, b: Tensor, precision: str) -> Tensor:
    """start + a @ b, without autograd."""
    return torch.addmm(start, a, b) if precision == "float32" else start + multiply(a, b, precision)


class SparseStep(torch.autograd.Function):
    """Loss of an SAE with few active pairs and AuxK; differentiates with respect to the four weights, not to x.

    Inputs: x [B, d], W_enc [n, d], b_enc [n], W_dec [n, d], b_dec [d], dead int64 [m] or None, `StepSettings`.
    Outputs: total, reconstruction, aux (scalars), latents and values of the pairs; only total has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        dead: Tensor | None,
        settings: StepSettings,
    ) -> tuple[Tensor, ...]:
        """See the class."""
        centered = x - b_dec
        pairs = settings.select(centered)
        errors = pairs.decode(W_dec).view(len(x), len(settings.weights), x.shape[1])  # x^ - x of every prefix
        errors[:, 0].sub_(centered)
        for j in range(1, len(settings.weights)):
            errors[:, j].add_(errors[:, j - 1])
        squares = [error.square().sum() / len(x) for error in errors.unbind(1)]
        total = (torch.stack(squares) * errors.new_tensor(settings.weights)).sum()
        if settings.bias_weight:
            total = total + settings.bias_weight * centered.square().sum() / len(x)
        aux = x.new_zeros(())
        ctx.aux = None
        if dead is not None and len(dead) and settings.aux_alpha:
            error = errors[:, -1]
            dead_pre = add_product(b_enc[dead], centered, W_enc[dead].t(), settings.precision)
            dead_values = select_aux(dead_pre, settings.aux_k)
            # ê - e, where e = x - x^ = -error
            aux_error = add_product(error, dead_values, W_dec[dead], settings.precision)
            scale = per_variance(error, centered, settings.group)
            aux = aux_error.square().sum() * scale
            ctx.aux = AuxTerm(dead, dead_values, aux_error, scale)
        ctx.settings, reconstruction = settings, squares[-1].clone()
        ctx.save_for_backward(centered, W_enc, W_dec, errors, pairs.latents, pairs.values, pairs.bags, pairs.starts)
        ctx.mark_non_differentiable(reconstruction, aux, pairs.latents, pairs.values)
        ctx.set_materialize_grads(False)
        return total + settings.aux_alpha * aux, reconstruction, aux, pairs.latents, pairs.values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """See the class."""
        grad_total = grad_outputs[0]
        if grad_total is None:
            return (None,) * 7
        centered, W_enc, W_dec, errors, *rest = ctx.saved_tensors
        settings: StepSettings = ctx.settings
        pairs, num_prefixes = Pairs(*rest), len(settings.weights)
        per_row = 2.0 / len(centered) * grad_total
        g = errors * (per_row * errors.new_tensor(settings.weights).unsqueeze(1))
        for j in range(num_prefixes - 2, -1, -1):
            g[:, j].add_(g[:, j + 1])
        db_dec = g[:, 0].sum(0)
        if settings.bias_weight:
            db_dec.sub_(centered.sum(0) * (settings.bias_weight * per_row))
        rows = g.view(-1, centered.shape[1])
        dz = pairs.value_gradients(rows, W_dec)
        by_latent = pairs.by_latent(len(W_enc))
        tokens = pairs.bags if num_prefixes == 1 else pairs.bags // num_prefixes
        dW_dec = by_latent.sum_rows(rows, pairs.bags, pairs.values)
        dW_enc = by_latent.sum_rows(centered, tokens, dz)
        db_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, pairs.latents, dz)
        if ctx.aux is not None:
            aux: AuxTerm = ctx.aux
            r = aux.error * (2.0 * settings.aux_alpha * grad_total * aux.per_variance)
            dv = multiply(r, W_dec[aux.dead].t(), settings.precision).masked_fill_(aux.values == 0, 0.0)
            dW_dec.index_add_(0, aux.dead, multiply(aux.values.t(), r, settings.precision))
            dW_enc.index_add_(0, aux.dead, multiply(dv.t(), centered, settings.precision))
            db_enc.index_add_(0, aux.dead, dv.sum(0))
        db_dec.addmv_(W_enc.t(), db_enc, alpha=-1.0)
        return None, dW_enc, db_enc, dW_dec, db_dec, None, None
