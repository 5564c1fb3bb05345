"""Hidden states of ESM-2: our packed forward against transformers' padded one, interleaved in one process.

    python benchmarks/extract.py [--width 320 --layers 6] [--layer L] [--threads 1] [--device cuda] [--rounds 3]

Random weights. Width 320 with 6 layers is the size of esm2_t6_8M, 1280 that of esm2_t33_650M (2 of its 33 layers say
what all of them cost); without `--width` both are measured. Lengths are log-normal (median 250, sigma 0.6, 30 to
1,022). All variants return the residue rows of one layer in fp32 and are first checked against the first: fp32 to
2e-5 of the largest value (2e-3 on a GPU, whose fp32 products may be TF32), bf16 to 5 % of the root mean square. The
peers are transformers' `EsmModel` in batches of 8: in file order with all hidden states kept, which is InterPLM's loop,
and with sequences sorted by length. `--layer` stops ours early; the peers compute all.

A ratio is the time of a peer over ours in the same round; CPU time hardly feels the neighbours, wall time does. The
utilisation is the rate of ours (24 d^2 + 4 d L operations per token and layer) over that of one large product of the
same type on the same device.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import EsmConfig, EsmForMaskedLM
from transformers.utils import logging

from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.linear import has_fast_bfloat16, kernel, linear
from plmsae.plms.parallel import ordered_map

BATCH = 8
TOKENS = 4096
HEADS = 20


SIZES = ((320, 6, 60), (1280, 2, 24))  # width, layers, sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", None), ("layers", 6), ("threads", 1), ("sequences", 60), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--layer", type=int, help="layer to read (the last)")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    print("# Activation extraction")
    given = (arguments.width, arguments.layers, arguments.sequences)
    for size in SIZES if arguments.width is None else (given,):
        measure(*size, arguments)


def measure(width: int, layers: int, num_sequences: int, arguments: argparse.Namespace) -> None:
    """Print the table of one size."""
    device = torch.device(arguments.device)
    layer = layers if arguments.layer is None else min(arguments.layer, layers)
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(250), 0.6, num_sequences)), 30, 1022).astype(int)
    sequences = ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths]
    peer = _peer(width, layers)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        plm, reduced = (load_plm(folder, precision=one, device=str(device)) for one in ("float32", "bfloat16"))
    peer = peer.to(device)

    def packed(model: ProteinLM) -> list[Tensor]:
        def embed(batch: npt.NDArray[np.int64]) -> Tensor:
            return model.hidden(model.tokenize([sequences[i] for i in batch]), layer)

        batches = length_sorted_batches(lengths, TOKENS)
        parts = zip(batches, ordered_map(embed, batches, arguments.threads), strict=True)
        rows = {i: r for batch, out in parts for i, r in zip(batch, out.split(lengths[batch].tolist()), strict=True)}
        return [rows[i] for i in range(len(lengths))]

    @torch.no_grad()
    def padded(order: npt.NDArray[np.int64]) -> list[Tensor]:
        rows = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            tokens = plm.tokenize([sequences[i] for i in batch])
            ids = pad_sequence(tokens.ids.split(tokens.lengths.tolist()), batch_first=True, padding_value=1)
            ids = ids.to(device)
            out = peer.esm(input_ids=ids, attention_mask=(ids != 1).long(), output_hidden_states=True)
            for row, i in zip(out.hidden_states[layer], batch, strict=True):
                rows[i] = row[1 : 1 + lengths[i]].cpu().clone()
        return [rows[i] for i in range(len(lengths))]

    variants: dict[str, Callable[[], list[Tensor]]] = {
        "InterPLM's loop (transformers, file order)": lambda: padded(np.arange(len(lengths))),
        "transformers, sorted by length": lambda: padded(np.argsort(-lengths, kind="stable")),
        "plmsae fp32": lambda: packed(plm),
        "plmsae bf16": lambda: packed(reduced),
    }
    names = list(variants)
    found = {name: torch.cat(function()) for name, function in variants.items()}
    expected = found[names[0]]
    for name in names[1:3]:
        error = float((found[name] - expected).abs().max() / expected.abs().max())
        assert error < (2e-5 if device.type == "cpu" else 2e-3), (name, error)
    bf16_error = float((found["plmsae bf16"] - expected).norm() / expected.norm())
    assert bf16_error < 0.05, bf16_error
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, function in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    fast = "in hardware" if device.type != "cpu" or has_fast_bfloat16() else "not in hardware"
    print(
        f"\n{layers} layers of width {width}, layer {layer}, {arguments.threads} threads, {device.type}, "
        f"{lengths.sum():,} residues, {arguments.rounds} interleaved rounds; fp32 by {kernel()}, bf16 {fast}, its "
        f"relative error {bf16_error:.1e}. Slower is the ratio to plmsae in the same round, min / median / max of CPU "
        "time (median of wall time).\n"
    )
    print("| path | residues per CPU second | residues/s (wall) | slower than fp32 | slower than bf16 | utilisation |")
    print("|---|---|---|---|---|---|")
    tokens = lengths + 2
    work = layer * float((24 * width**2 * tokens + 4 * width * tokens.astype(float) ** 2).sum())
    for name, measured in times.items():
        wall, cpu = (float(np.median([one[kind] for one in measured])) for kind in (0, 1))
        cells = [_ratios(measured, times[ours]) for ours in ("plmsae fp32", "plmsae bf16")]
        used = ""
        if name.startswith("plmsae"):
            dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
            seconds = cpu if device.type == "cpu" and arguments.threads == 1 else wall
            used = f"{work / seconds / _peak(dtype, device, arguments.threads):.0%}"
        print(
            f"| {name} | {lengths.sum() / cpu:,.0f} | {lengths.sum() / wall:,.0f} | {cells[0]} | {cells[1]} | {used} |"
        )


def _peak(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Operations per second of the best of ten large products, in the layout of a linear layer."""
    n = 2048 if device.type == "cpu" else 8192
    x, weight, bias = torch.randn(n, n, device=device), torch.randn(n, n, device=device), torch.zeros(n, device=device)
    x, weight = x.to(dtype), weight.to(dtype)
    best = float("inf")
    for _ in range(10):
        wall, cpu = time.perf_counter(), time.process_time()
        linear(x, weight, bias)
        if device.type != "cpu":
            torch.cuda.synchronize()
        alone = device.type == "cpu" and threads == 1
        best = min(best, time.process_time() - cpu if alone else time.perf_counter() - wall)
    return 2 * n**3 / best


def _ratios(theirs: list[tuple[float, float]], ours: list[tuple[float, float]]) -> str:
    wall, cpu = (sorted(a[kind] / b[kind] for a, b in zip(theirs, ours, strict=True)) for kind in (0, 1))
    return f"{cpu[0]:.1f} / {float(np.median(cpu)):.1f} / {cpu[-1]:.1f} ({float(np.median(wall)):.1f})"


def _peer(width: int, layers: int) -> EsmForMaskedLM:
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        mask_token_id=32,
        pad_token_id=1,
    )
    return EsmForMaskedLM(config).eval()


if __name__ == "__main__":
    main()
