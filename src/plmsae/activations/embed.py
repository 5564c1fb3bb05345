"""The hidden states of a part at one or several places, computed in one pass of the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plmsae.activations.metadata import DTYPES, stored_width
from plmsae.activations.non_finite import NonFinite, find_non_finite, refusal
from plmsae.activations.plan import Part, Settings
from plmsae.activations.rows import decode, encode
from plmsae.activations.statistics import RowStatistics
from plmsae.errors import UserError
from plmsae.plms.base import Place, ProteinLM
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress

logger = logging.getLogger("plmsae")
Batch = npt.NDArray[np.int64]  # indices of sequences of a part


@dataclass
class Embedded:
    """A part at one place.

    Attributes:
        rows: [n, width] in the stored form, the longest proteins first.
        statistics: Their statistics.
        masked: What was left out as not finite.
    """

    rows: Tensor
    statistics: RowStatistics
    masked: list[NonFinite] = field(default_factory=list)


def embed_part(
    plm: ProteinLM, part: Part, settings: Sequence[Settings], *, threads: int, progress: Progress
) -> list[Embedded]:
    """Embed the proteins of a part.

    A batch for which the memory does not suffice is halved until it does. Rows do not depend on what else is in their
    batch but for the last place of a sum, so the result is the same to rounding.

    Args:
        plm: The model.
        part: The part.
        settings: One per place; they differ in nothing else.
        threads: Batches that go through the model at the same time; the result does not depend on it.
        progress: Told the residues that were done.

    Returns:
        One per place.

    Raises:
        UserError: The memory does not suffice for a single sequence.
        DataError: A sequence cannot be tokenised, or hidden states are not finite in the stored type.
    """
    common, places = settings[0], [one.place for one in settings]
    lengths = np.array([len(sequence) for sequence in part.sequences])
    batches = length_sorted_batches(lengths, common.max_tokens_per_batch)
    stops = np.cumsum([lengths[batch].sum() for batch in batches])
    shape = (part.num_rows, stored_width(plm.d_model, common.dtype))
    all_rows = [torch.empty(shape, dtype=DTYPES[common.dtype]) for _ in settings]
    kept = [torch.ones(part.num_rows, dtype=torch.bool) for _ in settings]

    def embed(work: tuple[Batch, int]) -> tuple[int, list[tuple[RowStatistics, list[NonFinite]]]]:
        batch, stop = work
        results = []
        hiddens = _hidden(plm, part, batch, places)
        size = len(hiddens[0])
        for one, hidden, rows, keep in zip(settings, hiddens, all_rows, kept, strict=True):
            rows[stop - size : stop] = encode(hidden, rows.dtype)
            stored = decode(rows[stop - size : stop])
            finite = torch.isfinite(stored).all(dim=1)
            found: list[NonFinite] = []
            if not bool(finite.all()):
                accessions, offsets = [part.accessions[i] for i in batch], [part.offsets[i] for i in batch]
                found = find_non_finite(hidden, finite, accessions, offsets, lengths[batch].tolist())
                if one.non_finite == "refuse":
                    raise refusal(found[0], layer=one.layer, plm=plm.name, dtype=one.dtype)
                keep[stop - size : stop] = finite
                hidden, stored = hidden[finite], stored[finite]
            statistics = RowStatistics.zeros(plm.d_model)
            statistics.add(hidden, stored)
            results.append((statistics, found))
        return size, results

    totals = [Embedded(rows, RowStatistics.zeros(plm.d_model)) for rows in all_rows]
    for size, results in ordered_map(embed, zip(batches, stops.tolist(), strict=True), threads):
        for total, (statistics, found) in zip(totals, results, strict=True):
            total.statistics.merge(statistics)
            total.masked += found
        progress.update(size)
    for total, keep in zip(totals, kept, strict=True):
        if total.masked:
            total.rows = total.rows[keep]
    return totals


def _hidden(plm: ProteinLM, part: Part, batch: Batch, places: Sequence[Place]) -> list[Tensor]:
    """Hidden states of a batch at every place, in two halves where the memory does not suffice for the whole."""
    try:
        tokens = plm.tokenize([part.sequences[i] for i in batch], [part.accessions[i] for i in batch])
        return plm.hidden_at(tokens, places)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler: the exception holds the frames, and those the tensors, of the failed attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    num_residues = sum(len(part.sequences[i]) for i in batch)
    if len(batch) == 1:
        raise UserError(
            f"the memory does not suffice for one sequence of {num_residues:,} residues",
            where=part.accessions[batch[0]],
            fix="lower extract_activations.threads, take a machine with more memory, or crop or window long sequences",
        )
    logger.warning("out of memory on a batch of %s residues: it goes on in halves", f"{num_residues:,}")
    ends = np.cumsum([len(part.sequences[i]) for i in batch])
    middle = min(max(int(np.searchsorted(ends, num_residues / 2)), 1), len(batch) - 1)
    halves = [_hidden(plm, part, half, places) for half in (batch[:middle], batch[middle:])]
    return [torch.cat(pair) for pair in zip(*halves, strict=True)]


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's allocator of CPU memory raises a plain RuntimeError; only its text tells."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
