"""Hidden states of the bundled LM: our packed forward against transformers' padded one, interleaved in one process.

    python benchmarks/extract.py [--threads 2] [--sequences 200] [--layer 4] [--rounds 5]

Lengths are log-normal (median 250, sigma 0.6, 30 to 1,022). All variants return the residue rows of one layer, in
fp32, and are first checked to agree. The peers are transformers' `EsmForMaskedLM` in batches of 8: in file order with
all hidden states kept, which is the loop that extraction scripts commonly use, and with sequences sorted by length.
A ratio is the time of a peer over ours in the same round; CPU time hardly feels the neighbours, wall time does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import EsmForMaskedLM
from transformers.utils import logging

from plmsae.plms import load_plm
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map

BATCH = 8
TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("sequences", 60), ("layer", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(250), 0.6, arguments.sequences)), 30, 1022).astype(int)
    sequences = ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths]
    plm = load_plm("esm_small")
    peer = EsmForMaskedLM.from_pretrained(_folder(), dtype=torch.float32).eval()

    def embed(batch: npt.NDArray[np.int64]) -> Tensor:
        return plm.hidden(plm.tokenize([sequences[i] for i in batch]), arguments.layer)

    def ours() -> list[Tensor]:
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
            out = peer.esm(input_ids=ids, attention_mask=(ids != 1).long(), output_hidden_states=True)
            for row, i in zip(out.hidden_states[arguments.layer], batch, strict=True):
                rows[i] = row[1 : 1 + lengths[i]].clone()
        return [rows[i] for i in range(len(lengths))]

    variants: dict[str, Callable[[], list[Tensor]]] = {
        "plmsae": ours,
        "transformers, file order": lambda: padded(np.arange(len(lengths))),
        "transformers, by length": lambda: padded(np.argsort(-lengths, kind="stable")),
    }
    expected = torch.cat(padded(np.arange(len(lengths))))
    for name, function in variants.items():
        error = (torch.cat(function()) - expected).abs().max() / expected.abs().max()
        assert error < 2e-5, (name, error)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, function in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print("# Activation extraction\n")
    print(
        f"`esm_small`, {arguments.threads} threads, {lengths.sum():,} residues, layer {arguments.layer}, "
        f"{arguments.rounds} interleaved rounds; slower is the ratio to plmsae in the same round, min / median / max.\n"
    )
    print("| path | residues/s (wall) | slower (wall) | slower (CPU) |\n|---|---|---|---|")
    for name, measured in times.items():
        cells = []
        for kind in range(2):
            ratios = sorted(theirs[kind] / our[kind] for theirs, our in zip(measured, times["plmsae"], strict=True))
            cells.append(f"{ratios[0]:.1f} / {float(np.median(ratios)):.1f} / {ratios[-1]:.1f}")
        speed = lengths.sum() / np.median([item[0] for item in measured])
        print(f"| {name} | {speed:,.0f} | {cells[0]} | {cells[1]} |")


def _folder() -> str:
    import plmsae.plms

    return str(next(iter(plmsae.plms.__path__)) + "/small")


if __name__ == "__main__":
    main()
