"""A subset of a corpus of any size: streamed, seeded, without duplicates, evaluation proteins and their relatives.

The file is read twice. The first pass counts keys (`sequence_keys`), the second deals the candidates that the counts
call for to files of about 50,000 sequences, which are sifted one after the other, in the order of the keys. The first
`num_held_out` sequences that pass are the test set, the next as many the validation set, the following ones train. If
so many were sifted out that too few are left, the next stretch of keys is dealt. Memory is that of one file of
candidates and of the evaluation proteins, whatever the corpus holds; what is chosen does not depend on the portions.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plmsae.artifacts.atomic import write_bytes, write_text
from plmsae.errors import DataError
from plmsae.progress import Progress
from plmsae.proteins.corpus_pool import Candidate, deal, read_bucket, rows
from plmsae.proteins.exclusion import Exclusion
from plmsae.proteins.homology import RelativeSearch
from plmsae.proteins.records import Protein
from plmsae.proteins.sequence_keys import NUM_BINS, KeyCounts, bin_of, sequence_key
from plmsae.proteins.split import SPLITS, Split

BUCKET_SEQUENCES = 50_000
MAX_BUCKETS = 256
_DUPLICATE, _EVALUATED, _RELATIVE, _HELD_OUT = REASONS = (
    "duplicate sequence",
    "evaluation protein",
    "relative of an evaluation protein",
    "relative of a held-out sequence",
)
_PROGRESS_EVERY = 10_000


@dataclass(frozen=True)
class CorpusSettings:
    """What to choose.

    Attributes:
        seed: Seed of the order.
        min_residues: Shorter sequences are dropped.
        max_residues: Longer sequences are dropped.
        num_train: Number of training sequences; None takes all that are left.
        num_held_out: Number of sequences in each of test and validation.
        drop_held_out_relatives: Leave training sequences out that resemble a held-out one.
        identity: Least identity of relatives.
        coverage: Least coverage of relatives.
        sensitivity: MMseqs2's `-s`.
    """

    seed: int
    min_residues: int
    max_residues: int
    num_train: int | None
    num_held_out: int
    drop_held_out_relatives: bool
    identity: float
    coverage: float
    sensitivity: float

    @property
    def num_wanted(self) -> int | None:
        """Sequences in all, or None for all that there are."""
        return None if self.num_train is None else self.num_train + 2 * self.num_held_out


class Outcome(NamedTuple):
    """What became of a candidate: its split, or the reason why it was left out."""

    split: Split | None
    reason: str
    accession: str
    name: str
    sequence: str


class CorpusSelection:
    """Chooses from a corpus; what an interrupted call left in `folder` is taken over.

    Args:
        stream: Gives the corpus from its beginning, each time it is called.
        folder: Folder for counts and candidates.
        settings: What to choose.
        exclusion: Evaluation proteins to keep out, or None.
        bucket_sequences: Candidates that are in memory together; the choice does not depend on it.

    Attributes:
        num_records: Records of the corpus.
        num_dropped: Reason -> number of sequences that are too short, too long or empty.
    """

    def __init__(
        self,
        stream: Callable[[], Iterable[Protein]],
        folder: Path,
        settings: CorpusSettings,
        exclusion: Exclusion | None = None,
        *,
        bucket_sequences: int = BUCKET_SEQUENCES,
    ) -> None:
        self._stream, self._folder, self._settings, self._exclusion = stream, folder, settings, exclusion
        self._bucket_sequences = bucket_sequences
        self._held_out: list[tuple[str, str]] = []
        self._held_out_search: RelativeSearch | None = None
        self._num_chosen = 0
        self.num_records = 0
        self.num_dropped: Counter[str] = Counter()

    def outcomes(self) -> Iterator[Outcome]:
        """What became of every candidate that was looked at, in the order of the keys; ends when enough are chosen.

        Raises:
            DataError: The corpus is malformed, or has too few sequences.
            UserError: MMseqs2 is missing or fails.
        """
        counts = self._counts()
        wanted, first, num_seen = self._settings.num_wanted, 0, 0
        while first < NUM_BINS and (wanted is None or self._num_chosen < wanted):
            end = NUM_BINS
            if wanted is not None:
                share = self._num_chosen / num_seen if num_seen else 1.0
                end = counts.end_of(first, int((wanted - self._num_chosen) / max(share, 0.05) * 1.02) + 1)
            cuts = counts.cuts(first, end, self._bucket_sequences, MAX_BUCKETS)
            pool = deal(lambda: self._candidates("deal"), self._folder / f"pool-{first}-{end}", bin_of, first, cuts)
            for bucket in pool:
                yield from self._of_bucket(bucket)
                if self._num_chosen == wanted:
                    break
            num_seen += counts.num_keys(first, end)
            first = end
        self._check_enough(wanted)

    def _of_bucket(self, bucket: Path) -> Iterator[Outcome]:
        done = bucket.with_suffix(".sifted")
        if not done.is_file():
            text = "".join("\t".join([item.split or "", *item[1:]]) + "\n" for item in self._sifted(bucket))
            write_bytes(done, text.encode("utf-8"))
            bucket.unlink()
        for split, reason, accession, name, sequence in rows(done):
            outcome = Outcome(_split(split), reason, accession, name, sequence)
            if outcome.split is not None:
                self._num_chosen += 1
                if outcome.split != "train":
                    self._held_out.append((accession, sequence))
            yield outcome

    def _sifted(self, bucket: Path) -> list[Outcome]:
        """The outcomes of a file of candidates; those beyond the wanted number are left away."""
        candidates = read_bucket(bucket)
        outcomes: dict[int, Outcome] = {}
        passed: list[int] = []
        for index, item in enumerate(candidates):
            before = candidates[passed[-1]] if passed else None
            if before is not None and before.sequence == item.sequence:
                outcomes[index] = _dropped(item, f"{_DUPLICATE}: the same as {before.accession}")
            else:
                passed.append(index)
        if self._exclusion:
            same = {i: self._exclusion.same(candidates[i].accession, candidates[i].sequence) for i in passed}
            outcomes.update((i, _dropped(candidates[i], f"{_EVALUATED}: {name}")) for i, name in same.items() if name)
            passed = [index for index in passed if same[index] is None]
            passed = self._without_relatives(self._exclusion.search, passed, candidates, outcomes, _RELATIVE)
        settings, split = self._settings, dict[int, Split]()
        num_held_out = max(2 * settings.num_held_out - self._num_chosen, 0)
        held_out, rest = passed[:num_held_out], passed[num_held_out:]
        for number, index in enumerate(held_out, start=self._num_chosen):
            split[index] = "test" if number < settings.num_held_out else "valid"
        if rest and settings.drop_held_out_relatives and settings.num_held_out:
            search = self._search_of_held_out([(candidates[i].accession, candidates[i].sequence) for i in held_out])
            rest = self._without_relatives(search, rest, candidates, outcomes, _HELD_OUT)
        if settings.num_wanted is not None:
            rest = rest[: max(settings.num_wanted - self._num_chosen - len(held_out), 0)]
        split.update(dict.fromkeys(rest, "train"))
        outcomes.update((index, Outcome(split[index], "", *candidates[index][1:])) for index in split)
        return [outcomes[index] for index in sorted(outcomes)]

    @staticmethod
    def _without_relatives(
        search: RelativeSearch | None,
        indices: list[int],
        candidates: list[Candidate],
        outcomes: dict[int, Outcome],
        reason: str,
    ) -> list[int]:
        """The candidates without a relative among the targets of a search; the others get their outcome."""
        if search is None:
            return indices
        found = search.relatives({str(index): candidates[index].sequence for index in indices})
        outcomes.update(
            (int(text), _dropped(candidates[int(text)], f"{reason}: {name}")) for text, name in found.items()
        )
        return [index for index in indices if str(index) not in found]

    def _search_of_held_out(self, more: list[tuple[str, str]]) -> RelativeSearch:
        if self._held_out_search is None:
            self._held_out_search = RelativeSearch(
                [*self._held_out, *more],
                self._folder / "held-out",
                identity=self._settings.identity,
                coverage=self._settings.coverage,
                sensitivity=self._settings.sensitivity,
            )
        return self._held_out_search

    def _candidates(self, label: str) -> Iterator[Candidate]:
        """The sequences of fitting length with their keys."""
        settings = self._settings
        self.num_records, self.num_dropped = 0, Counter()
        with Progress(f"ingest: {label}", None, "records") as progress:
            for protein in self._stream():
                self.num_records += 1
                if self.num_records % _PROGRESS_EVERY == 0:
                    progress.update(_PROGRESS_EVERY)
                length = len(protein.sequence)
                if not settings.min_residues <= length <= settings.max_residues:
                    self.num_dropped[
                        "empty sequence"
                        if not length
                        else "too short"
                        if length < settings.min_residues
                        else "too long"
                    ] += 1
                    continue
                key = sequence_key(settings.seed, protein.sequence)
                yield Candidate(key, protein.accession, protein.name.replace("\t", " "), protein.sequence)

    def _counts(self) -> KeyCounts:
        """Number of candidates by key: the first pass over the corpus."""
        table, facts = self._folder / "counts.npy", self._folder / "counts.json"
        if facts.is_file():
            said = json.loads(facts.read_text(encoding="utf-8"))
            self.num_records, self.num_dropped = int(said["num_records"]), Counter(said["num_dropped"])
            return KeyCounts(np.load(table, allow_pickle=False))
        counts = KeyCounts()
        for candidate in self._candidates("count"):
            counts.add(candidate.key)
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = table.with_suffix(".tmp.npy")
        np.save(temporary, counts.counts, allow_pickle=False)
        os.replace(temporary, table)
        write_text(facts, json.dumps({"num_records": self.num_records, "num_dropped": self.num_dropped}) + "\n")
        return counts

    def _check_enough(self, wanted: int | None) -> None:
        held_out = self._settings.num_held_out
        least = 2 * held_out + 1 if wanted is None else wanted
        if self._num_chosen < least:
            raise DataError(
                f"{self._num_chosen:,} sequences of {self.num_records:,} are left, fewer than the {least:,} wanted "
                f"({held_out:,} each for test and validation)",
                fix="lower ingest.max_proteins (null takes all) or ingest.held_out_size, or relax the filters",
            )


def _dropped(item: Candidate, reason: str) -> Outcome:
    return Outcome(None, reason, item.accession, "", "")


def _split(text: str) -> Split | None:
    return next((split for split in SPLITS if split == text), None)
