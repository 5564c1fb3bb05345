"""What goes through the model and which residues are scored, in four protocols.

| protocol | goes through the model | scored |
|---|---|---|
| `masked` | the sequence with a share of its residues masked together | the masked ones |
| `single` | for each chosen residue a copy in which it alone is masked (Salazar et al. 2020) | that one |
| `unmasked` | the sequence as it is | all, each by the scores at its own row |
| `causal` | the sequence as it is | all but the first, each by the scores at the row before it |

A causal model has `causal` alone and a masked one the others. The scores of a causal model's first residue are read
at the begin token, which is never edited: no intervention can change them, so they are left out.

Only the 20 amino acids are scored. What is drawn depends on the seed and on the name of the sequence, on nothing else
in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import DataError
from plmsae.plms.base import ProteinLM, Tokens
from plmsae.plms.batching import length_sorted_batches

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
MASKED, SINGLE, UNMASKED, CAUSAL = "masked", "single", "unmasked", "causal"
PROTOCOLS = (MASKED, SINGLE, UNMASKED, CAUSAL)
# Streams of random numbers of one sequence; masking together is the one without a number.
_SINGLE_STREAM, DIRECTION_STREAM = 1, 2


def protocols_of(plm: ProteinLM, single_mask_residues: int) -> tuple[str, ...]:
    """The protocols by which a model is measured; the first is the task that it was trained on.

    Args:
        plm: The model.
        single_mask_residues: Residues of each sequence that are masked one at a time; 0: without `single`.
    """
    if plm.objective == "causal":
        return (CAUSAL,)
    return (MASKED, *((SINGLE,) if single_mask_residues else ()), UNMASKED)


@dataclass(frozen=True)
class Batch:
    """Tokenised sequences, B of them with R residues, and which residues can be scored.

    Attributes:
        sequences: The sequences.
        keys: Their names, which seed what is drawn.
        tokens: The sequences as they are.
        targets: int64 [R] token ids of the true residues.
        letters: int64 [R] places in `AMINO_ACIDS`, -1 for other letters.
        scored: bool [R], true where a residue can be scored.
        starts: int64 [B + 1], residue rows before each sequence.
        owners: int64 [R], the sequence of each residue.
    """

    sequences: tuple[str, ...]
    keys: tuple[str, ...]
    tokens: Tokens
    targets: Tensor
    letters: NDArray[np.int64]
    scored: NDArray[np.bool_]
    starts: NDArray[np.int64]
    owners: NDArray[np.int64]

    @classmethod
    def of(cls, plm: ProteinLM, sequences: Sequence[str], keys: Sequence[str]) -> Batch:
        """Tokenise.

        Raises:
            DataError: A sequence of which no residue can be scored.
        """
        tokens = plm.tokenize(sequences, keys)
        targets = plm.residue_ids(tokens)
        lengths = np.array([len(sequence) for sequence in sequences])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        owners = np.repeat(np.arange(len(sequences)), lengths)
        letters = np.full(len(owners), -1)
        for place, letter in enumerate(AMINO_ACIDS):
            letters[(targets == plm.vocabulary[letter]).numpy()] = place
        scored = letters >= 0
        causal = plm.objective == "causal"
        if causal:
            scored[starts[:-1]] = False
        empty = np.flatnonzero(np.bincount(owners[scored], minlength=len(keys)) == 0)
        if len(empty):
            where = " after its first residue" if causal else ""
            raise DataError(
                f"a sequence with none of the 20 amino acids{where} cannot be scored",
                where=keys[int(empty[0])],
                fix="remove it",
            )
        return cls(tuple(sequences), tuple(keys), tokens, targets, letters, scored, starts, owners)


@dataclass(frozen=True)
class Case:
    """One forward pass and what is scored of it.

    Attributes:
        tokens: What goes through the model, R' residues.
        rows: int64 [n], rows of these whose scores are read.
        scored: int64 [n], residues of the batch that these scores are of.
        sources: int64 [R'], residue of the batch at each row.
    """

    tokens: Tokens
    rows: Tensor
    scored: NDArray[np.int64]
    sources: NDArray[np.int64]


def together(plm: ProteinLM, batch: Batch, protocol: str, *, masked_share: float, seed: int) -> Case:
    """The one forward pass of `masked`, `unmasked` or `causal`.

    Args:
        plm: The model.
        batch: The sequences.
        protocol: The protocol.
        masked_share: For `masked`: share of the residues of each sequence.
        seed: Seed of what is masked.

    Raises:
        UserError: The protocol is `masked`, and the model has no mask token.
    """
    every = np.arange(len(batch.owners))
    if protocol == MASKED:
        scored = masked_rows(batch.keys, batch.scored, batch.starts, masked_share, seed)
        rows = torch.from_numpy(scored)
        return Case(plm.with_masked(batch.tokens, rows), rows, scored, every)
    scored = np.flatnonzero(batch.scored)
    return Case(batch.tokens, torch.from_numpy(scored - int(protocol == CAUSAL)), scored, every)


def one_at_a_time(plm: ProteinLM, batch: Batch, *, count: int, max_tokens: int, seed: int) -> Iterator[Case]:
    """The forward passes of `single`: a copy of the sequence per chosen residue, as many at once as memory allows.

    Args:
        plm: The model.
        batch: The sequences.
        count: Residues of each sequence, all of a sequence that has no more.
        max_tokens: Tokens that go through the model at once.
        seed: Seed of the choice.

    Raises:
        UserError: The model has no mask token.
    """
    chosen = single_rows(batch.keys, batch.scored, batch.starts, count, seed)
    lengths = np.diff(batch.starts)
    for part in length_sorted_batches(lengths[batch.owners[chosen]], max_tokens):
        scored = chosen[part]
        owners = batch.owners[scored]
        tokens = plm.tokenize([batch.sequences[owner] for owner in owners], [batch.keys[owner] for owner in owners])
        before = np.concatenate([[0], np.cumsum(lengths[owners])[:-1]])
        rows = torch.from_numpy(before + scored - batch.starts[owners])
        sources = np.concatenate([np.arange(batch.starts[owner], batch.starts[owner + 1]) for owner in owners])
        yield Case(plm.with_masked(tokens, rows), rows, scored, sources)


def masked_rows(
    keys: Sequence[str], scored: NDArray[np.bool_], starts: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    """The residue rows to mask together: a share of the scored residues of every sequence, at least one.

    Args:
        keys: Name of each sequence; with the seed it alone decides which of its residues are masked.
        scored: [R] true at the residues that can be scored.
        starts: [num_sequences + 1] residue rows before each sequence.
        share: Share in (0, 1].
        seed: Seed.

    Returns:
        Rows, ascending.
    """
    chosen = []
    for key, low, high in zip(keys, starts[:-1], starts[1:], strict=True):
        candidates = low + np.flatnonzero(scored[low:high])
        count = max(1, int(share * len(candidates) + 0.5))
        chosen.append(np.sort(sequence_rng(key, seed).choice(candidates, size=count, replace=False)))
    return np.concatenate(chosen)


def single_rows(
    keys: Sequence[str], scored: NDArray[np.bool_], starts: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """The residue rows to mask one at a time: `count` of every sequence, or all of one that has no more.

    Args:
        keys: As in `masked_rows`; the choice is another one than the choice there.
        scored: [R] true at the residues that can be scored.
        starts: [num_sequences + 1] residue rows before each sequence.
        count: Residues, at least 1. A smaller count takes a subset of a larger one's.
        seed: Seed.

    Returns:
        Rows, ascending.
    """
    chosen = []
    for key, low, high in zip(keys, starts[:-1], starts[1:], strict=True):
        candidates = low + np.flatnonzero(scored[low:high])
        chosen.append(np.sort(sequence_rng(key, seed, _SINGLE_STREAM).permutation(candidates)[:count]))
    return np.concatenate(chosen)


def sequence_rng(key: str, seed: int, *stream: int) -> np.random.Generator:
    """Random numbers of one sequence, whatever else is in its batch.

    Args:
        key: Name of the sequence.
        seed: Seed.
        stream: Number above 0 of what the numbers are for, so that two uses share none.
    """
    return np.random.default_rng([seed, int(sha256_bytes(key.encode())[:16], 16), *stream])
