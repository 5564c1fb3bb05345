"""Which proteins of a stream are kept: filters, duplicates, and a seeded subset rich in annotations.

The result depends on the set of proteins, the settings and the seed, not on the order of the stream. Memory grows with
the proteins that are kept, plus about 100 bytes for every protein met (its accession, line and, if duplicates are
dropped, a digest of its sequence).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from pathlib import Path
from typing import Literal

from plmsae.errors import DataError
from plmsae.proteins.feature_types import BOOKKEEPING_TYPES
from plmsae.proteins.hashing import unit_hash
from plmsae.proteins.records import Protein

Duplicates = Literal["keep", "drop"]
Priority = tuple[int, float, str]


def num_kinds(protein: Protein) -> int:
    """How many different things its annotations say: distinct types, plus distinct notes and ligands of each type."""
    types = {feature.type for feature in protein.features} - BOOKKEEPING_TYPES
    texts = {(f.type, f.ligand or f.note) for f in protein.features if f.type in types and (f.ligand or f.note)}
    return len(types) + len(texts)


def priority(protein: Protein, seed: int) -> Priority:
    """Rank of a protein in the subset; the smallest are taken.

    Annotated proteins come before all others. Among them it is a weighted draw without replacement: the protein with
    hash u in (0, 1) and weight w gets the key -ln(u) / w (Efraimidis and Spirakis, Inf. Process. Lett. 97, 2006), where
    w = num_kinds squared per residue. So a protein is the likelier the more concepts it shows on the fewer residues.
    """
    kinds = num_kinds(protein)
    weight = kinds**2 / len(protein.sequence) if kinds else 1.0
    return 0 if kinds else 1, -math.log(unit_hash(seed, "subset", protein.accession)) / weight, protein.accession


class Selection:
    """Takes a stream of proteins and keeps some.

    Args:
        path: The file they come from, for messages.
        seed: Seed of the subset.
        min_residues: Shorter sequences are dropped.
        max_residues: Longer ones are dropped; None for no bound.
        require_annotations: Drop proteins without any feature outside `BOOKKEEPING_TYPES`.
        duplicate_sequences: With `drop`, of proteins with equal sequences the one that ranks first is kept.
        max_proteins: Size of the subset; None keeps all.

    Attributes:
        num_seen: Number of proteins offered.
    """

    def __init__(
        self,
        path: Path,
        *,
        seed: int = 0,
        min_residues: int = 1,
        max_residues: int | None = None,
        require_annotations: bool = False,
        duplicate_sequences: Duplicates = "keep",
        max_proteins: int | None = None,
    ) -> None:
        self._path, self._seed = path, seed
        self._min, self._max = min_residues, max_residues
        self._require_annotations = require_annotations
        self._drop_duplicates = duplicate_sequences == "drop"
        self._size = math.inf if max_proteins is None else max_proteins
        self._lines: dict[str, int] = {}
        self._best: dict[bytes, Priority] = {}
        self._kept: dict[str, Protein] = {}
        self._queue: list[tuple[int, float, str]] = []
        self._num_passed = 0
        self._dropped: list[tuple[str, str]] = []
        self._losers: list[tuple[str, bytes]] = []
        self.num_seen = 0

    def offer(self, protein: Protein) -> None:
        """Take or leave one protein.

        Raises:
            DataError: Its accession was there before.
        """
        self.num_seen += 1
        first = self._lines.setdefault(protein.accession, protein.line)
        if first != protein.line:
            raise DataError(
                f"accession '{protein.accession}' stands twice",
                where=f"{self._path}, lines {first} and {protein.line}",
                fix="remove or rename one of them",
            )
        reason = self._reason(protein)
        if reason is not None:
            self._dropped.append((protein.accession, reason))
            return
        rank = priority(protein, self._seed)
        if self._drop_duplicates and not self._ranks_first(protein, rank):
            return
        self._num_passed += 1
        self._kept[protein.accession] = protein
        if self._size < math.inf:
            heapq.heappush(self._queue, (-rank[0], -rank[1], protein.accession))
            while len(self._kept) > self._size:
                self._kept.pop(heapq.heappop(self._queue)[-1], None)  # None: lost to a duplicate meanwhile

    @property
    def num_not_selected(self) -> int:
        """Number of proteins that passed every filter and are outside the subset."""
        return self._num_passed - len(self._kept)

    def dropped(self) -> list[tuple[str, str]]:
        """(accession, reason) of every protein that did not pass a filter, sorted; the kind of reason ends at `:`."""
        losers = [(name, f"duplicate sequence: the same as {self._best[key][2]}") for name, key in self._losers]
        return sorted(self._dropped + losers)

    def num_dropped(self) -> dict[str, int]:
        """Kind of reason -> number of proteins."""
        counts = Counter(reason.partition(":")[0] for _, reason in self._dropped)
        if self._losers:
            counts["duplicate sequence"] = len(self._losers)
        return dict(sorted(counts.items()))

    def proteins(self) -> list[Protein]:
        """The kept proteins by accession.

        Raises:
            DataError: Nothing is left.
        """
        if not self._kept:
            why = ", ".join(f"{count} {label}" for label, count in self.num_dropped().items())
            raise DataError(
                f"no protein is left of {self.num_seen} ({why})",
                where=str(self._path),
                fix="relax ingest.min_residues, max_residues, long_sequences or require_annotations",
            )
        return [self._kept[accession] for accession in sorted(self._kept)]

    def _reason(self, protein: Protein) -> str | None:
        length = len(protein.sequence)
        if length == 0:
            return "empty sequence"
        if length < self._min:
            return f"too short: {length} residues, min_residues is {self._min}"
        if self._max is not None and length > self._max:
            return f"too long: {length} residues, max_residues is {self._max}"
        if self._require_annotations and num_kinds(protein) == 0:
            return "not annotated"
        return None

    def _ranks_first(self, protein: Protein, rank: Priority) -> bool:
        digest = hashlib.blake2b(protein.sequence.encode(), digest_size=16).digest()
        other = self._best.get(digest)
        if other is not None:
            loser = max(rank, other)[2]
            self._losers.append((loser, digest))
            if loser == protein.accession:
                return False
            self._kept.pop(loser, None)
            self._num_passed -= 1
        self._best[digest] = rank
        return True
