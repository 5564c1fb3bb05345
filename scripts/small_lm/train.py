"""Train a small ESM-2-style masked language model from scratch on a split that `split.py` wrote.

    python -m scripts.small_lm.train SPLIT.parquet --output FOLDER --steps 4000 --decay-steps 2000

FOLDER/checkpoint.safetensors is replaced every few minutes; the same command goes on from it, bit by bit as if it had
not stopped. `--steps` and `--decay-steps` may be changed on the way, as long as the rate does not jump. At the end
FOLDER/model.safetensors (float16), config.json and training.json are written.

Method: masked language modelling with ESM-2's recipe (Lin et al., Science 2023); Muon (Jordan et al. 2024) for the
matrices of the blocks and AdamW for everything else; warm-up, constant rate, linear decay to zero
("warmup-stable-decay", Hu et al. 2024); a masking rate that falls during the decay (Ankner et al. 2023).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import EsmConfig, EsmForMaskedLM

from plmsae.errors import DataError, PlmsaeError, UserError
from scripts.small_lm.checkpoint import load_checkpoint, read_state, save_checkpoint
from scripts.small_lm.encoder import PackedEncoder
from scripts.small_lm.export import export
from scripts.small_lm.packing import Batch, assemble, documents, hide, pack
from scripts.small_lm.sequences import ALPHABET, MASK, PAD, encode

CHANGEABLE = {"steps", "decay_steps"}  # settings that a resumed run may change


@dataclass(frozen=True)
class Settings:
    """What decides the result of a training run, beside the data."""

    hidden_size: int = 256
    num_layers: int = 5
    num_heads: int = 8
    intermediate_size: int = 960
    max_residues: int = 1022
    batch_tokens: int = 8192
    steps: int = 4000
    warmup_steps: int = 100
    decay_steps: int = 2000
    muon_rate: float = 0.02
    adamw_rate: float = 3e-3
    mask_rate: float = 0.25
    final_mask_rate: float = 0.15
    dtype: str = "bfloat16"
    seed: int = 0

    def decayed(self, step: int) -> float:
        """How far the decay has gone at `step`: 0 before it, 1 at the end."""
        return max(0.0, 1 - (self.steps - step) / max(1, self.decay_steps))

    def rate(self, step: int) -> float:
        """Factor of both learning rates at `step` (0-based)."""
        return min(1.0, (step + 1) / self.warmup_steps) * (1 - self.decayed(step))

    def masking(self, step: int) -> float:
        """Part of the residues that are predicted at `step`."""
        return self.mask_rate + (self.final_mask_rate - self.mask_rate) * self.decayed(step)


def new_model(settings: Settings) -> Any:
    """A freshly initialised `EsmForMaskedLM`, a function of the settings alone."""
    config = EsmConfig(
        vocab_size=len(ALPHABET), mask_token_id=MASK, pad_token_id=PAD, hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers, num_attention_heads=settings.num_heads,
        intermediate_size=settings.intermediate_size, max_position_embeddings=settings.max_residues + 4,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return EsmForMaskedLM(config)


def new_optimisers(model: Any, settings: Settings) -> dict[str, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embedding, norms, biases and head; the contact head is not trained."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if "contact_head" not in name]
    matrices = [p for name, p in named if p.ndim == 2 and ".layer." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layer." in name)]
    return {
        "muon": torch.optim.Muon(matrices, lr=settings.muon_rate, weight_decay=0.01, momentum=0.95),
        "adamw": torch.optim.AdamW(others, lr=settings.adamw_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    }


class Corpus:
    """The endless, seeded row of training batches."""

    def __init__(self, sequences: Sequence[str], settings: Settings) -> None:
        if not sequences:
            raise DataError("a split has no sequence", fix="give split.py more sequences")
        self.settings = settings
        self.pieces = documents([encode(sequence) for sequence in sequences], settings.max_residues + 2)
        self.lengths = [len(piece) for piece in self.pieces]

    def batches(self, epoch: int, index: int) -> Iterator[tuple[int, int, Batch]]:
        """Batches from number `index` of `epoch` on, each with the epoch and index of the one after it."""
        capacity = self.settings.batch_tokens
        while True:
            plan = pack(self.lengths, capacity, np.random.default_rng([self.settings.seed, 1, epoch]))
            for i in range(index, len(plan)):
                yield epoch, i + 1, assemble(self.pieces, plan[i], capacity)
            epoch, index = epoch + 1, 0


def validate(encoder: PackedEncoder, corpus: Corpus, num_batches: int = 4) -> float:
    """Cross-entropy on the first batches of held-out clusters, 15 % of the residues masked, the same at each call."""
    losses = []
    with torch.inference_mode():
        for epoch, index, batch in itertools.islice(corpus.batches(0, 0), num_batches):
            if epoch > 0:
                break  # fewer batches than that
            losses.append(encoder.losses(batch, hide(batch, 0.15, np.random.default_rng(index), corrupt=False)))
    return float(torch.cat(losses).mean())


def starting_state(path: Path, settings: Settings) -> dict[str, Any]:
    """The state to start from: a checkpoint's, after a check that its settings allow it, or a new one."""
    now = dataclasses.asdict(settings)
    if not path.exists():
        return {"step": 0, "epoch": 0, "index": 0, "tokens": 0, "seconds": 0.0, "history": [], "settings": now}
    state = read_state(path)
    for name, value in state["settings"].items():
        if now[name] != value and name not in CHANGEABLE:
            raise UserError(
                f"{name} is {now[name]}, but {value} in the checkpoint", where=str(path), fix="use another folder"
            )
    before, after = (Settings(**named).rate(state["step"]) for named in (state["settings"], now))
    if abs(before - after) > 0.01:
        fitting = round((settings.steps - state["step"]) / before) if before > 0 else 0
        raise UserError(
            f"the learning rate would jump from {before:.3f} to {after:.3f} of its peak at step {state['step']}",
            where=str(path),
            fix=f"with {settings.steps} steps, the decay that goes on smoothly has {fitting} steps",
        )
    return state | {"settings": now}


def train(
    table: pd.DataFrame,
    folder: Path,
    settings: Settings,
    *,
    compiled: bool,
    checkpoint_every: int,
    stop_at: int | None = None,
) -> None:
    """Train to the end (or, without writing anything more, to `stop_at`: what a kill leaves behind).

    Args:
        table: Columns `sequence` and `split` of split.py.
        folder: Holds the checkpoint and, at the end, the model.
        settings: Everything that decides the result.
        compiled: Use torch.compile.
        checkpoint_every: Steps between checkpoints.
        stop_at: Step to stop before.
    """
    checkpoint = folder / "checkpoint.safetensors"
    state = starting_state(checkpoint, settings)
    model, history = new_model(settings), state["history"]
    optimisers = new_optimisers(model, settings)
    if checkpoint.exists():
        load_checkpoint(checkpoint, model, optimisers)
    encoder = PackedEncoder(model, dtype=getattr(torch, settings.dtype), compiled=compiled)
    corpus, held_out = (
        Corpus(table.loc[table["split"] == split, "sequence"].tolist(), settings) for split in ("train", "valid")
    )
    base = {label: optimiser.param_groups[0]["lr"] for label, optimiser in optimisers.items()}
    base |= {"muon": settings.muon_rate, "adamw": settings.adamw_rate}
    recent: list[float] = []
    clock = time.monotonic()
    stream = corpus.batches(state["epoch"], state["index"])
    for step in range(state["step"], settings.steps if stop_at is None else stop_at):
        epoch, index, batch = next(stream)
        masked = hide(batch, settings.masking(step), np.random.default_rng([settings.seed, 2, step]))
        loss = encoder.losses(batch, masked).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for label, optimiser in optimisers.items():
            optimiser.param_groups[0]["lr"] = base[label] * settings.rate(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        recent.append(loss.item())
        state |= {
            "step": step + 1,
            "epoch": epoch,
            "index": index,
            "tokens": state["tokens"] + int((batch.ids != PAD).sum()),
        }
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            seconds = time.monotonic() - clock
            clock += seconds
            state["seconds"] += seconds
            row = {
                "step": step + 1,
                "tokens": state["tokens"],
                "seconds": round(state["seconds"], 1),
                "train": round(float(np.mean(recent)), 4),
                "valid": round(validate(encoder, held_out), 4),
            }
            history.append(row)
            recent.clear()
            save_checkpoint(checkpoint, model, optimisers, state)
            print(
                json.dumps(row | {"tokens_per_second": round(checkpoint_every * settings.batch_tokens / seconds)}),
                flush=True,
            )
    if stop_at is None:
        export(model, folder)
        (folder / "training.json").write_text(json.dumps(state, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("split", type=Path, help="split.parquet")
    parser.add_argument("--output", type=Path, required=True)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    table = pd.read_parquet(options.split, columns=["sequence", "split"])
    train(table, options.output, settings, compiled=not options.no_compile, checkpoint_every=options.checkpoint_every)


if __name__ == "__main__":
    try:
        main()
    except PlmsaeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
