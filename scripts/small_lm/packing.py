"""Whole proteins laid end to end in batches of a fixed number of tokens, and their masks.

A batch is one flat row of tokens with the lengths of its documents; attention never crosses from one document into
another (`encoder.py`), rotary positions are relative, so a document in a batch is treated as it would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.small_lm.sequences import FIRST_RESIDUE, MASK, NUM_RESIDUES, PAD

TRAIN_MASK_RATIO = 0.15 * 0.8  # ESM-2's constant of `token_dropout`; transformers hard-codes the same


@dataclass(frozen=True)
class Batch:
    """Documents end to end.

    Attributes:
        ids: Token ids int64 [num_tokens]; `<pad>` after the last document.
        lengths: Tokens of each document; the padding, if any, is the last one, so that they sum to num_tokens.
    """

    ids: npt.NDArray[np.int64]
    lengths: list[int]


@dataclass(frozen=True)
class Masked:
    """A batch with some residues hidden.

    Attributes:
        ids: Token ids as the model sees them, int64 [num_tokens].
        scale: Factor of each token's embedding, float32 [num_tokens]: `token_dropout` zeroes masked tokens and scales
            the rest of their document by (1 - 0.12) / (1 - masked fraction of the document).
        selected: Positions to predict, int64 [num_selected].
        targets: The residues that stood there, int64 [num_selected].
    """

    ids: npt.NDArray[np.int64]
    scale: npt.NDArray[np.float32]
    selected: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def documents(encoded: Sequence[npt.NDArray[np.uint8]], longest: int) -> list[npt.NDArray[np.uint8]]:
    """Cut what is longer than `longest` tokens into equal consecutive pieces; the rest stays whole.

    `<cls>` stays with the first piece and `<eos>` with the last, so both keep their meaning: a true terminus.
    """
    pieces: list[npt.NDArray[np.uint8]] = []
    for tokens in encoded:
        pieces.extend(np.array_split(tokens, -(-len(tokens) // longest)))
    return pieces


def pack(lengths: Sequence[int], capacity: int, rng: np.random.Generator, *, chunk: int = 4096) -> list[list[int]]:
    """Indices of documents for each batch of one epoch.

    The epoch's random order is cut into chunks; within a chunk documents go, longest first, each into the first batch
    with room for it (first-fit decreasing), then the chunk's batches are shuffled. The emptiest batch of a chunk is
    dissolved into the next one, so that fewer than 1 % of all tokens are padding.

    Args:
        lengths: Tokens of each document, none above `capacity`.
        capacity: Tokens of a batch.
        rng: Source of the order.
        chunk: Documents that are packed at a time.
    """
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    carried: list[int] = []
    for start in range(0, len(order), chunk):
        todo = sorted([*carried, *order[start : start + chunk].tolist()], key=lambda i: (-lengths[i], i))
        free = np.empty(len(todo), dtype=np.int64)
        free[:] = capacity
        bins: list[list[int]] = []
        for index in todo:
            first = int(np.argmax(free >= lengths[index]))
            if first == len(bins):
                bins.append([])
            bins[first].append(index)
            free[first] -= lengths[index]
        carried = []
        if start + chunk < len(order):
            carried = bins.pop(int(np.argmax(free[: len(bins)])))
        batches.extend(bins[i] for i in rng.permutation(len(bins)))
    return batches


def assemble(pieces: Sequence[npt.NDArray[np.uint8]], chosen: Sequence[int], capacity: int) -> Batch:
    """The batch of the documents `chosen`."""
    ids = np.full(capacity, PAD, dtype=np.int64)
    lengths = [len(pieces[i]) for i in chosen]
    used = sum(lengths)
    ids[:used] = np.concatenate([pieces[i] for i in chosen])
    return Batch(ids, lengths if used == capacity else [*lengths, capacity - used])


def hide(batch: Batch, rate: float, rng: np.random.Generator, *, corrupt: bool = True) -> Masked:
    """Choose standard residues with probability `rate` and hide them.

    Args:
        batch: What to hide residues of.
        rate: Part of the standard residues to predict.
        rng: Source of the choice.
        corrupt: BERT's recipe, which ESM-2 uses: of the chosen 80 % become `<mask>`, 10 % a random residue, 10 % stay.
            False: all become `<mask>`.
    """
    ids = batch.ids
    standard = (ids >= FIRST_RESIDUE) & (ids < FIRST_RESIDUE + NUM_RESIDUES)
    selected = np.flatnonzero(standard & (rng.random(len(ids)) < rate))
    seen = ids.copy()
    if corrupt:
        draw = rng.random(len(selected))
        seen[selected[draw < 0.8]] = MASK
        random = selected[draw >= 0.9]
        seen[random] = rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_RESIDUES, len(random))
    else:
        seen[selected] = MASK
    masked = seen == MASK
    starts = np.cumsum([0, *batch.lengths[:-1]])
    fraction = np.add.reduceat(masked, starts, dtype=np.int64) / np.array(batch.lengths)
    scale = np.repeat((1 - TRAIN_MASK_RATIO) / (1 - fraction), batch.lengths)
    scale[masked | (ids == PAD)] = 0.0
    return Masked(seen, scale.astype(np.float32), selected, ids[selected])
