"""A part of a corpus on disk, dealt to files by key: each fits into memory, and their order is that of the keys."""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from plmsae.artifacts.atomic import write_text

COMPLETE = "complete"


class Candidate(NamedTuple):
    """A sequence with its key; the text fields hold no tab and no line end."""

    key: int
    accession: str
    name: str
    sequence: str


def deal(
    stream: Callable[[], Iterable[Candidate]],
    folder: Path,
    bin_of: Callable[[int], int],
    first: int,
    cuts: Sequence[int],
) -> list[Path]:
    """Write the candidates of the bins from `first` to the last cut into one file per cut.

    What an earlier, complete call left in `folder` is taken as it is.

    Args:
        stream: Gives all candidates, in any order.
        folder: Folder of the files.
        bin_of: Key -> bin.
        first: The first bin.
        cuts: End of the bins of each file.

    Returns:
        The files in the order of their bins.
    """
    paths = [folder / f"bucket-{number:04d}.tsv" for number in range(len(cuts))]
    if (folder / COMPLETE).is_file():
        return paths
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in paths]
        for candidate in stream():
            at = bin_of(candidate.key)
            if first <= at < cuts[-1]:
                files[bisect_right(cuts, at)].write(
                    f"{candidate.key:016x}\t{candidate.accession}\t{candidate.name}\t{candidate.sequence}\n"
                )
    write_text(folder / COMPLETE, "")
    return paths


def read_bucket(path: Path) -> list[Candidate]:
    """The candidates of a file by key, sequence and accession."""
    found = [Candidate(int(key, 16), accession, name, sequence) for key, accession, name, sequence in rows(path)]
    return sorted(found, key=lambda item: (item.key, item.sequence, item.accession))


def rows(path: Path) -> Iterator[list[str]]:
    """The cells of every line of a file of tab-separated values."""
    with path.open(encoding="utf-8", newline="\n") as handle:
        for line in handle:
            yield line.removesuffix("\n").split("\t")
