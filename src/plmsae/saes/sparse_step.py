"""The TopK training step without dense B x n work after the encoder: one autograd function, gradients by hand.

Plain autograd spends six matrix products of 2 B d n operations on a step (encode, decode, and two gradients of
each). Only B k of the B n latents are active, so all but the encoder's are done on the active pairs:

    encode     p = W_enc (x - b_dec) + b_enc, a block of tokens at a time in one reused buffer; k largest of each
    decode     x^ = sum_j z_j W_dec[i_j] + b_dec, gathering k rows per token (embedding_bag)
    dz         g . W_dec[i_j] with g = dL/dx^; masked where z = 0
    dW_dec     rows of g summed per latent with weights z; dW_enc: rows of x - b_dec with weights dz. Both are an
               embedding_bag over the same pairs sorted by latent, whose order of summation is fixed
    db_dec     sum_t g_t - db_enc W_enc: summing before multiplying drops the sixth product

AuxK (Gao et al. 2024, Appendix A.2) runs densely on the dead latents alone, gathered once: a few dead ones cost
little. Its target, the residual, is a constant: `e` is detached.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from plmsae.saes.selection import rows_per_block, top_k_indices


class Workspace(threading.local):
    """Buffers reused from step to step: fresh memory costs more here than the arithmetic that fills it.

    Each thread has its own, so that one SAE can encode in several threads at once.
    """

    def __init__(self) -> None:
        self._block: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Workspace:
        return Workspace()

    def block(self, num_rows: int, like: Tensor) -> Tensor:
        """A buffer [rows, n] of the dtype and device of `like` [n, d]."""
        block = self._block
        if (
            block is None
            or len(block) < num_rows
            or block.shape[1] != len(like)
            or (block.dtype, block.device) != (like.dtype, like.device)
        ):
            self._block = block = torch.empty(num_rows, len(like), dtype=like.dtype, device=like.device)
        return block[:num_rows]


def encode_rows(centered: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, work: Workspace) -> tuple[Tensor, Tensor]:
    """Indices and values [N, k] of the k largest pre-activations of `centered` [N, d]; values are rectified.

    With gradients enabled the values are differentiable; without, one buffer serves all blocks. The numbers are the
    same bit for bit, so training and inference select alike.
    """
    size = rows_per_block(len(W_enc), W_enc.device)
    track = torch.is_grad_enabled() and (centered.requires_grad or W_enc.requires_grad or b_enc.requires_grad)
    indices, values = [], []
    for block in torch.split(centered, size):
        if track:
            pre = torch.addmm(b_enc, block, W_enc.t())
        else:
            pre = torch.addmm(b_enc, block, W_enc.t(), out=work.block(len(block), W_enc))
        chosen = top_k_indices(pre.detach(), k)
        indices.append(chosen)
        values.append(pre.gather(1, chosen).relu())
    if not indices:
        empty = centered.new_zeros(0, k)
        return empty.long(), empty
    return torch.cat(indices), torch.cat(values)


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


def per_variance(residual: Tensor, centered: Tensor) -> Tensor:
    """1 / sum of the squared deviations of the residual [B, d] from its batch mean: AuxK's normaliser, a scalar.

    0 where the deviations are rounding errors beside the input (a constant batch, a perfect reconstruction): the
    quotient would be noise or NaN, and there is nothing for dead latents to explain.
    """
    variance = (residual - residual.mean(0)).square().sum()
    floor = 1e-10 * centered.square().sum() + torch.finfo(residual.dtype).tiny
    return torch.where(variance > floor, 1.0 / variance.clamp_min(floor), 0.0)


class SparseTopKStep(torch.autograd.Function):
    """Loss of a TopK SAE with AuxK; differentiates with respect to the four weights, not to x.

    Inputs: x [B, d], W_enc [n, d], b_enc [n], W_dec [n, d], b_dec [d], dead int64 [m] or None, k, k_aux, alpha,
    workspace. Outputs: total, reconstruction, aux (scalars), indices and values [B, k]; only total has a gradient.
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
        k: int,
        k_aux: int,
        alpha: float,
        work: Workspace,
    ) -> tuple[Tensor, ...]:
        """See the class."""
        centered = x - b_dec
        indices, values = encode_rows(centered, W_enc, b_enc, k, work)
        error = embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values).sub_(centered)  # x^ - x
        reconstruction = error.square().sum() / len(x)
        aux = x.new_zeros(())
        ctx.aux = None
        if dead is not None and len(dead) and alpha:
            dead_values = select_aux(torch.addmm(b_enc[dead], centered, W_enc[dead].t()), k_aux)
            aux_error = torch.addmm(error, dead_values, W_dec[dead])  # ê - e, where e = x - x^ = -error
            scale = per_variance(error, centered)
            aux = aux_error.square().sum() * scale
            ctx.aux = AuxTerm(dead, dead_values, aux_error, scale)
        ctx.alpha = alpha
        ctx.save_for_backward(centered, W_enc, W_dec, indices, values, error)
        ctx.mark_non_differentiable(reconstruction, aux, indices, values)
        ctx.set_materialize_grads(False)
        return reconstruction + alpha * aux, reconstruction, aux, indices, values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """See the class."""
        grad_total = grad_outputs[0]
        if grad_total is None:
            return (None,) * 10
        centered, W_enc, W_dec, indices, values, error = ctx.saved_tensors
        g = error * (2.0 / len(error) * grad_total)
        dz = _value_gradients(g, W_dec, indices, values).masked_fill_(values == 0, 0.0)
        bags = _sort_by_latent(indices, len(W_enc))
        dW_dec = bags.sum_rows(g, values)
        dW_enc = bags.sum_rows(centered, dz)
        db_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, indices.flatten(), dz.flatten())
        db_dec = g.sum(0)
        if ctx.aux is not None:
            aux: AuxTerm = ctx.aux
            r = aux.error * (2.0 * ctx.alpha * grad_total * aux.per_variance)
            dv = (r @ W_dec[aux.dead].t()).masked_fill_(aux.values == 0, 0.0)
            dW_dec.index_add_(0, aux.dead, aux.values.t() @ r)
            dW_enc.index_add_(0, aux.dead, dv.t() @ centered)
            db_enc.index_add_(0, aux.dead, dv.sum(0))
        db_dec.addmv_(W_enc.t(), db_enc, alpha=-1.0)
        return None, dW_enc, db_enc, dW_dec, db_dec, None, None, None, None, None


def _value_gradients(g: Tensor, W_dec: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """g_t . W_dec[i] for every active pair, [B, k]: the gradient of embedding_bag's weights, by its own kernel."""
    with torch.enable_grad():
        weights = values.detach().requires_grad_()
        decoded = embedding_bag(indices, W_dec.detach(), mode="sum", per_sample_weights=weights)
        (gradient,) = torch.autograd.grad(decoded, weights, g)
    return gradient


@dataclass
class _PairsByLatent:
    """Active pairs grouped by latent: `tokens` and `order` [B k] in latent order, `starts` [n] of each group."""

    tokens: Tensor
    order: Tensor
    starts: Tensor

    def sum_rows(self, rows: Tensor, weights: Tensor) -> Tensor:
        """For every latent, the sum over its tokens of weight x row: rows [B, d], weights [B, k] -> [n, d]."""
        weights = weights.flatten()[self.order]
        return embedding_bag(self.tokens, rows, self.starts, mode="sum", per_sample_weights=weights)


def _sort_by_latent(indices: Tensor, num_latents: int) -> _PairsByLatent:
    flat = indices.flatten()
    ordered, order = flat.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(num_latents, device=flat.device))
    return _PairsByLatent(order // indices.shape[1], order, starts)
