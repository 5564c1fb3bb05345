"""Masked cross-entropy of a language model on held-out clusters, beside what it must beat.

    python -m scripts.small_lm.assess SPLIT.parquet --model FOLDER [--other NAME=FOLDER ...] --output FOLDER

Every contender predicts the same residues: 15 % of the standard ones of each test sequence, all replaced by `<mask>`,
one sequence at a time at full length (sequences longer than the model takes are left out). The count models see the
true neighbours, masked or not, which favours them. Intervals: 95 % percentile bootstrap over sequences, the same
resamples for all contenders, so that differences are paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional
from transformers import EsmForMaskedLM

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.checksums import sha256_file
from plmsae.errors import DataError, PlmsaeError, UserError
from plmsae.progress import Progress
from scripts.small_lm.baselines import fit, triples
from scripts.small_lm.sequences import FIRST_RESIDUE, MASK, NUM_RESIDUES, encode

MASK_RATE = 0.15
RESAMPLES = 2000
LENGTHS = (0, 128, 256, 512, 1022)  # bounds of the table by length

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def load(folder: Path) -> Any:
    """The model of a folder, computing in float32 whatever the file stores."""
    return EsmForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()


def permuted(model: Any, seed: int) -> Any:
    """The model with the elements of every parameter tensor shuffled: same values, nothing learnt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def choose(sequences: Sequence[str], seed: int) -> list[Ints]:
    """Positions to mask in each sequence's tokens (`<cls>` is 0); at least one where there is a standard residue."""
    chosen = []
    for index, sequence in enumerate(sequences):
        ids = encode(sequence)
        standard = np.flatnonzero((ids >= FIRST_RESIDUE) & (ids < FIRST_RESIDUE + NUM_RESIDUES))
        draw = np.random.default_rng([seed, index]).random(len(standard))
        chosen.append(standard[draw < max(MASK_RATE, draw.min(initial=1.0) + 1e-12)])
    return chosen


def model_losses(model: Any, sequences: Sequence[str], chosen: Sequence[Ints], label: str) -> Floats:
    """Summed cross-entropy in nats over the chosen residues of each sequence, float64 [num_sequences]."""
    sums = []
    with torch.inference_mode(), Progress(label, len(sequences), "sequences") as progress:
        for sequence, positions in zip(sequences, chosen, strict=True):
            ids = torch.from_numpy(encode(sequence).astype(np.int64))[None]
            at = torch.from_numpy(positions)
            seen = ids.clone()
            seen[0, at] = MASK
            logits = model(input_ids=seen, attention_mask=torch.ones_like(seen)).logits[0, at]
            sums.append(float(functional.cross_entropy(logits, ids[0, at], reduction="sum")))
            progress.update(1)
    return np.array(sums)


def per_sequence(losses: Floats, owner: Ints, num_sequences: int) -> Floats:
    """Sum of the losses of each sequence's residues, float64 [num_sequences]."""
    return np.bincount(owner, losses, num_sequences).astype(np.float64)


def interval(numerator: Floats, denominator: Floats, weights: Floats) -> list[float]:
    """[estimate, low, high] of a ratio of sums; `weights` are how often each resample holds each sequence, [R, n]."""
    low, high = np.quantile((weights @ numerator) / (weights @ denominator), [0.025, 0.975])
    return [round(float(value), 5) for value in (numerator.sum() / denominator.sum(), low, high)]


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """The Markdown table of the card."""
    lines = [
        "| on test clusters | masked cross-entropy, nats (95 %) | perplexity | this LM is better by (paired) |",
        "|---|---|---|---|",
    ]
    for name, row in results.items():
        value, low, high = row["cross_entropy"]
        gap = "{:.4f} ({:.4f} to {:.4f})".format(*row["difference"]) if "difference" in row else "-"
        perplexity = f"{np.exp(value):.2f} ({np.exp(low):.2f} to {np.exp(high):.2f})"
        lines.append(f"| {name} | {value:.4f} ({low:.4f} to {high:.4f}) | {perplexity} | {gap} |")
    return "\n".join(lines) + "\n"


def length_table(by_length: Mapping[str, Mapping[str, float]]) -> str:
    """Cross-entropy by length of the protein, as Markdown."""
    names = list(next(iter(by_length.values())))
    lines = [f"| residues | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {span} | {' | '.join(str(row[name]) for name in names)} |" for span, row in by_length.items()]
    return "\n".join(lines) + "\n"


def named_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` arguments as a dictionary.

    Raises:
        UserError: One is not of that form, or its folder holds no model.
    """
    folders = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not (name and equals and Path(folder, "model.safetensors").is_file()):
            raise UserError(f"not NAME=FOLDER with a model.safetensors in it: {argument!r}", where="--other")
        folders[name] = Path(folder)
    return folders


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("split", type=Path, help="split.parquet")
    parser.add_argument("--model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--other", action="append", default=[], help="NAME=FOLDER of a model to compare with")
    parser.add_argument("--output", type=Path, required=True, help="folder for assessment.json and assessment.md")
    parser.add_argument("--max-residues", type=int, default=1022)
    parser.add_argument("--limit", type=int, help="assess only this many test sequences")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    others = named_folders(options.other)

    data = pd.read_parquet(options.split, columns=["sequence", "split"])
    train, valid, test = (data.loc[data["split"] == name, "sequence"].tolist() for name in ("train", "valid", "test"))
    test = [sequence for sequence in test if len(sequence) <= options.max_residues][: options.limit]
    if not (train and valid and test):
        raise DataError("a split has no sequence", where=str(options.split))
    chosen = choose(test, options.seed)
    counts = np.array([len(positions) for positions in chosen], dtype=np.float64)

    neighbours = fit(triples(train), triples(valid))
    x = triples(test, chosen)
    owner = np.repeat(np.arange(len(test)), counts.astype(np.int64))
    sums = {"this LM": model_losses(load(options.model), test, chosen, "this LM")}
    sums["unigram"] = per_sequence(neighbours.unigram_losses(x), owner, len(test))
    sums["both neighbours' counts, interpolated"] = per_sequence(neighbours.losses(x), owner, len(test))
    shuffled = permuted(load(options.model), options.seed)
    sums["this LM, every parameter tensor permuted"] = model_losses(shuffled, test, chosen, "permuted")
    for name, folder in others.items():
        sums[name] = model_losses(load(folder), test, chosen, name)

    draws = np.random.default_rng(options.seed)
    weights = draws.multinomial(len(test), np.full(len(test), 1 / len(test)), RESAMPLES).astype(np.float64)
    results = {name: {"cross_entropy": interval(total, counts, weights)} for name, total in sums.items()}
    for name, total in sums.items():
        if name != "this LM":
            results[name]["difference"] = interval(total - sums["this LM"], counts, weights)
    lengths = np.array([len(sequence) for sequence in test])
    by_length = {
        f"{low + 1}-{high}": {"sequences": int(part.sum())}
        | {name: round(float(total[part].sum() / counts[part].sum()), 4) for name, total in sums.items()}
        for low, high in itertools.pairwise(LENGTHS)
        if (part := (lengths > low) & (lengths <= high)).any()
    }
    report = {
        "model_sha256": sha256_file(options.model / "model.safetensors"),
        "others_sha256": {name: sha256_file(folder / "model.safetensors") for name, folder in others.items()},
        "split_sha256": sha256_file(options.split),
        "sequences": len(test),
        "masked_residues": int(counts.sum()),
        "mask_rate": MASK_RATE,
        "resamples": RESAMPLES,
        "seed": options.seed,
        "neighbours": {"pseudocount": neighbours.pseudocount, "weights": neighbours.weights.round(4).tolist()},
        "results": results,
        "by_length": by_length,
    }
    write_text(options.output / "assessment.json", json.dumps(report, indent=1) + "\n")
    text = table(results) + "\n" + length_table(by_length)
    write_text(options.output / "assessment.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except PlmsaeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
