"""How long the sequences of a corpus are: read from a file, or a stated distribution.

Attention costs the square of a sequence's length, so a mean is not enough.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.errors import DataError, UserError
from plmsae.proteins.lengths import LongSequences, stretches

# Standard deviation of ln(length), 30 to 1,022 residues: 0.73 over the Swiss-Prot file of this repository, 0.69 over
# 56,000 sequences of mixed public benchmarks.
SIGMA = 0.7


@dataclass(frozen=True)
class Lengths:
    """Number of sequences of each length; whole for a file, an expectation otherwise.

    Attributes:
        counts: Residues -> sequences.
    """

    counts: Mapping[int, float]

    @property
    def sequences(self) -> float:
        """Number of sequences."""
        return sum(self.counts.values())

    @property
    def residues(self) -> float:
        """Number of residues."""
        return sum(length * count for length, count in self.counts.items())

    @property
    def mean(self) -> float:
        """Mean length in residues."""
        return self.residues / self.sequences

    @property
    def longest(self) -> int:
        """Residues of the longest sequence."""
        return max(self.counts)

    def tokens(self, specials: int) -> float:
        """Tokens, with so many special ones per sequence: the sum of T."""
        return sum((length + specials) * count for length, count in self.counts.items())

    def squared_tokens(self, specials: int) -> float:
        """The sum of T^2 over the sequences, on which attention depends."""
        return sum((length + specials) ** 2 * count for length, count in self.counts.items())

    def scaled(self, factor: float) -> Lengths:
        """The same distribution over `factor` times as many sequences."""
        return Lengths({length: count * factor for length, count in self.counts.items()})

    def kept(
        self, *, min_residues: int, max_residues: int, policy: LongSequences, overlap: int
    ) -> tuple[Lengths, dict[str, float]]:
        """What `ingest` makes of them.

        Args:
            min_residues: Shorter sequences are dropped.
            max_residues: Longer sequences are dropped, cropped or cut into windows.
            policy: Which of these.
            overlap: Residues that neighbouring windows share.

        Returns:
            The rows, and how many sequences are `too_short` and `too_long` (dropped), `cropped` or `windowed`.

        Raises:
            DataError: Nothing is left.
        """
        rows: Counter[int] = Counter()
        left_out = {"too_short": 0.0, "too_long": 0.0, "cropped": 0.0, "windowed": 0.0}
        long_ones = {"drop": "too_long", "crop": "cropped", "window": "windowed"}[policy]
        for length, count in self.counts.items():
            if length < min_residues:
                left_out["too_short"] += count
                continue
            if length > max_residues:
                left_out[long_ones] += count
            for start, end in stretches(length, policy=policy, max_residues=max_residues, overlap=overlap):
                rows[end - start] += count  # type: ignore[assignment]
        if not rows:
            raise DataError(
                f"no sequence of the corpus has {min_residues} to {max_residues} residues",
                where="ingest.min_residues, ingest.max_residues",
                fix="widen the range, or name another corpus",
            )
        return Lengths(rows), left_out


def log_normal(num_sequences: float, mean: float, *, shortest: int, longest: int, sigma: float = SIGMA) -> Lengths:
    """A log-normal distribution over whole lengths `shortest`..`longest` with the given mean.

    Args:
        num_sequences: Sequences in all.
        mean: Their mean length in residues.
        shortest: Least length.
        longest: Largest length.
        sigma: Standard deviation of ln(length) before the range cuts it.

    Raises:
        UserError: No such distribution has this mean.
    """
    # A mean near the middle of the range would need a mode outside of it; the limits of mu bound what can be reached.
    low, high = math.log(shortest) - 2, math.log(longest) + 2

    def at(mu: float) -> dict[int, float]:
        weights = {
            length: math.exp(-(((math.log(length) - mu) / sigma) ** 2) / 2) / length
            for length in range(shortest, longest + 1)
        }
        total = sum(weights.values())
        return {length: weight / total for length, weight in weights.items()}

    def mean_at(mu: float) -> float:
        return sum(length * share for length, share in at(mu).items())

    if not mean_at(low) <= mean <= mean_at(high):
        raise UserError(
            f"sequences of {shortest} to {longest} residues cannot have a mean length of {mean:g}",
            where="--mean-length",
            fix=f"give {mean_at(low):.0f} to {mean_at(high):.0f}",
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < mean else (low, middle)
    return Lengths({length: share * num_sequences for length, share in at((low + high) / 2).items()})


def read_lengths(path: Path) -> dict[str, Lengths]:
    """Lengths in a `sequences.parquet` by split, or in a protein file under the split `all`.

    Raises:
        UserError: The file does not exist.
        DataError: It is malformed or of no known format.
    """
    if not path.is_file():
        raise UserError(f"the file '{path}' does not exist", where="--sequences", fix="correct the path")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    from plmsae.proteins.formats import read_proteins

    found = Counter(len(protein.sequence) for protein in read_proteins(path))
    found.pop(0, None)
    return {"all": Lengths(found)}


def _read_parquet(path: Path) -> dict[str, Lengths]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: Any = pq.read_table(path, columns=["split", "length"])
        rows = Counter(zip(table["split"].to_pylist(), table["length"].to_pylist(), strict=True))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(
            "the table has no columns 'split' and 'length', or is damaged",
            where=str(path),
            fix="name the sequences.parquet of `ingest`",
        ) from error
    if not rows or any(length is None or length < 1 or split is None for split, length in rows):
        raise DataError("the table has no sequences, or rows without length or split", where=str(path))
    splits: dict[str, Counter[int]] = {}
    for (split, length), count in rows.items():
        splits.setdefault(split, Counter())[length] += count
    return {split: Lengths(counts) for split, counts in splits.items()}
