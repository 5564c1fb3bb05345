"""Every formula of a plan, in one place: operations, bytes and parameters. Whole numbers or floats in, floats out.

One multiply-add is two operations (FLOP), and only matrix products are counted, as torch's flop counter does: the
element-wise rest is a few per cent of a block. Symbols: d width of the activations, n latents, k active ones, B rows
of a batch, T tokens of one sequence with its special ones, a inner width of the attention, f of the feed-forward
network, L blocks.

Sources: the published architectures (ESM-2, Lin et al. 2023; ESM C, EvolutionaryScale 2024; ProtT5, Elnaggar et al.
2021; ProGen2, Nijkamp et al. 2023). For the training of a dictionary the counts follow from its matrix products,
derived here. The tests compare with torch's counter on real models and steps, with parameter counts of the real
classes and with files on a disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from plmsae.errors import UserError, did_you_mean
from plmsae.planning.models import Transformer

HOOKS = ("embedding", "residual", "attention", "mlp", "final_norm")  # those of plmsae.plms.base.ProteinLM

# ---- protein language models -------------------------------------------------------------------------------------


def plm_parameters(plm: Transformer) -> int:
    """Parameters of the language model with its heads (ESM-2, ESM C, ProGen2), or of the encoder alone (ProtT5)."""
    d, a, f, L, V = plm.d_model, plm.attention, plm.ffn, plm.layers, plm.vocabulary
    if plm.family == "t5":  # no biases, RMS norms, one table of 32 relative positions per head
        return V * d + L * (4 * d * a + 2 * d * f + 2 * d) + 32 * plm.heads + d
    if plm.family == "esmc":  # LayerNorms on query and key without bias; its head is not tied to the embedding
        block = 4 * d * a + 3 * d * f + 2 * a + 4 * d
        return V * d + L * block + d + (d * d + d + 2 * d + V * d + V)
    if plm.family == "progen":  # one LayerNorm per block, biases in the feed-forward network alone, a head of its own
        block = 4 * d * a + 2 * d * f + f + d + 2 * d
        return V * d + L * block + 2 * d + V * d + V
    block = (4 * d * a + 3 * a + d) + (2 * d * f + f + d) + 4 * d
    contact_head = L * plm.heads + 1
    language_head = d * d + d + 2 * d + V  # its last matrix is the embedding
    return V * d + L * block + 2 * d + contact_head + language_head


def attention_flops(plm: Transformer, tokens: float, squared_tokens: float) -> tuple[float, float]:
    """One block's attention: (projections, quadratic term).

    Query, key, value and output: 4 products of T x d x a. Scores and their mix of values: 2 products of T x T x a.
    """
    return 8 * plm.d_model * plm.attention * tokens, 4 * plm.attention * squared_tokens


def feed_forward_flops(plm: Transformer, tokens: float) -> float:
    """One block's feed-forward network: 2 products of T x d x f, 3 with a gate."""
    return 2 * (3 if plm.gated else 2) * plm.d_model * plm.ffn * tokens


def language_head_flops(plm: Transformer, tokens: float) -> float:
    """From the last hidden state to the scores of every token: T x d x d (masked LMs) and T x d x V; ProtT5: none."""
    if plm.family == "t5":
        return 0.0
    dense = 0 if plm.family == "progen" else plm.d_model
    return 2 * plm.d_model * (dense + plm.vocabulary) * tokens


def depth(plm: Transformer, layer: int, hook: str) -> tuple[int, bool]:
    """What has to be computed for a hook: (whole blocks, whether the next block's attention as well).

    `residual` at l is the stream after block l, `attention` and `mlp` at l what these give inside block l; `embedding`
    has layer 0 alone and `final_norm` layer L alone, and neither has a matrix product of its own.

    Raises:
        UserError: The hook or layer does not exist.
    """
    if hook not in HOOKS:
        raise UserError(f"no hook '{hook}'", where="hook", fix=did_you_mean(hook, HOOKS))
    first = {"embedding": 0, "residual": 0, "final_norm": plm.layers}.get(hook, 1)
    last = 0 if hook == "embedding" else plm.layers
    if not first <= layer <= last:
        raise UserError(
            f"'{plm.name}' has no layer {layer} with hook '{hook}'",
            where="layer",
            fix=f"use {first}" if first == last else f"use {first} to {last}",
        )
    return (layer - 1, True) if hook == "attention" else (layer, False)


def forward_flops(
    plm: Transformer, depths: Iterable[tuple[int, bool]], tokens: float, squared_tokens: float
) -> tuple[float, float]:
    """One pass that stops after the last wanted hook: (all products, of these the attention's quadratic term)."""
    blocks, half = max(depths)
    projections, quadratic = attention_flops(plm, tokens, squared_tokens)
    attentions = blocks + half
    total = attentions * (projections + quadratic) + blocks * feed_forward_flops(plm, tokens)
    return total, attentions * quadratic


def forward_memory(plm: Transformer, batch_tokens: int, value_bytes: int) -> int:
    """Bytes that a batch holds at the widest point of a block: an estimate, allocators keep more.

    The stream and its norm (2 d), and the larger of query, key, value and mix (4 a) and the widened rows (f, twice
    with a gate). Scores are never whole in memory (fused attention).
    """
    widest = max(4 * plm.attention, (2 if plm.gated else 1) * plm.ffn)
    return batch_tokens * (2 * plm.d_model + widest) * value_bytes


# ---- the activation store ----------------------------------------------------------------------------------------

# Of plmsae.activations.writer and .chunks; a test compares them and a store that is really written.
CHUNK_BYTES = 64 * 2**20
BLOCK_HEADER_BYTES = 20
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
SCALE_BYTES = 4  # of a row in int8


def row_bytes(d_model: int, dtype: str) -> int:
    """Bytes of one stored row."""
    return d_model * VALUE_BYTES[dtype] + (SCALE_BYTES if dtype == "int8" else 0)


def store_size(
    rows: float, d_model: int, dtype: str, *, block_rows: int, part_rows: int
) -> tuple[float, int, int, int]:
    """One split of a store: (bytes, parts, blocks, chunk files).

    A split is dealt to ceil(rows / part_rows) parts of equal size; a part is cut into blocks, the last one shorter; a
    chunk file takes as many whole blocks as fit into 64 MiB, at least one. Beside the values there are 20 bytes per
    block and a table of 4 (blocks + 2) bytes per chunk.
    """
    if not rows:
        return 0.0, 0, 0, 0
    parts = ceil(rows / part_rows)
    blocks = ceil(rows / parts / block_rows)
    in_chunk = max(1, CHUNK_BYTES // (block_rows * row_bytes(d_model, dtype)))
    chunks = ceil(blocks / in_chunk)
    headers = parts * (blocks * (BLOCK_HEADER_BYTES + 4) + 8 * chunks)
    return rows * row_bytes(d_model, dtype) + headers, parts, parts * blocks, parts * chunks


# ---- the dictionary and its training -----------------------------------------------------------------------------

# Architecture -> parameters of length n beside the two matrices and b_dec.
_VECTORS = {"gated": 3, "jump_relu": 2}
_CALIBRATED = ("batch_topk", "matryoshka")  # one threshold is stored
# Matrix products of B x d x n in a dense step. Six: encode, decode, the gradients of both matrices, of the latents and
# of x - b_dec, which b_dec needs. The last falls away without b_dec before the encoder, and where the gradient is
# summed over the batch first (`saes/affine.py`); gated decodes twice and sends that gradient back too.
_PRODUCTS = {"relu": 5, "jump_relu": 5, "l1_april": 5, "gated": 7}
# k latents per token, known before the decoder: these have a training step with sparse products.
SPARSE = ("batch_topk", "matryoshka", "topk")


def sae_parameters(architecture: str, d: int, n: int) -> int:
    """Trained parameters."""
    return 2 * n * d + d + _VECTORS.get(architecture, 1) * n


def sae_file_bytes(architecture: str, d: int, n: int) -> int:
    """Bytes of the tensors in `sae.safetensors`: fp32 parameters, the largest value of each latent, a threshold."""
    return 4 * (sae_parameters(architecture, d, n) + n + (architecture in _CALIBRATED))


def dense_flops(architecture: str, d: int, n: int, tokens: float) -> float:
    """Training with whole matrices: 6 products of 2 B d n for most architectures. AuxK is not counted."""
    return _PRODUCTS.get(architecture, 6) * 2 * d * n * tokens


def sparse_flops(d: int, n: int, k: int, tokens: float) -> float:
    """The least that k active latents need: the encoder's 2 B d n, and 2 B k d each to decode and for the gradients
    of the values and of both matrices. The gradient of b_dec is one product of a vector per batch.
    """
    return (2 * d * n + 8 * k * d) * tokens


def adam_memory(parameters: int) -> int:
    """Weights, gradients and both moments in fp32: 16 bytes per parameter."""
    return 16 * parameters


def adam_traffic(parameters: int, steps: float) -> float:
    """Bytes that Adam moves: reads weight, gradient and moments, writes weight and moments, 28 per parameter."""
    return 28.0 * parameters * steps


def selection_traffic(n: int, tokens: float, value_bytes: int) -> float:
    """Bytes to write the pre-activations once and to read them once for the selection."""
    return 2.0 * n * tokens * value_bytes


def gather_traffic(d: int, k: int, tokens: float, value_bytes: int) -> float:
    """Bytes of the four sparse products, which fetch k rows of width d per token each."""
    return 4.0 * k * d * tokens * value_bytes


def batch_memory(n: int, d: int, batch: int, value_bytes: int) -> int:
    """Bytes of a dense step beside the weights: pre-activations, latents and their gradient, B x n each, and four
    B x d (rows, reconstruction, error, gradient).
    """
    return batch * (3 * n + 4 * d) * value_bytes


# ---- time --------------------------------------------------------------------------------------------------------


def seconds(flops: float, traffic: float, peak: float, bandwidth: float) -> float:
    """Products at the peak rate, then traffic at the full bandwidth: nothing else, nothing overlapped."""
    return flops / peak + traffic / bandwidth


def stores_pay_from(stored_rows: float, tokens_per_sae: float) -> int:
    """The number of SAEs, trained one after the other, from which a store saves a tenth of the forward passes.

    With a store every stored row passes the PLM once; without one, every token of every training does.
    """
    return int(-(-11 * stored_rows // (10 * tokens_per_sae)))
