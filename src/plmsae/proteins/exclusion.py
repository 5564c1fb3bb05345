"""Evaluation proteins that a corpus must not hold: by accession, by sequence, and by homology."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from plmsae.proteins.formats import read_proteins
from plmsae.proteins.homology import RelativeSearch
from plmsae.proteins.records import Protein

_UNIREF = re.compile(r"UniRef\d+_")
_ISOFORM = re.compile(r"-\d+$")


def bare_accession(accession: str) -> str:
    """`Q6GZX4` of `UniRef50_Q6GZX4`, `UniRef90_Q6GZX4-2` and `Q6GZX4-2`; other names as they are."""
    return _ISOFORM.sub("", _UNIREF.sub("", accession))


def digest_of(sequence: str) -> bytes:
    """16 bytes that stand for a sequence."""
    return hashlib.blake2b(sequence.encode("ascii"), digest_size=16).digest()


class Exclusion:
    """Knows the proteins of a file, and tells who equals or resembles one of them.

    Memory grows with that file (about 250 bytes per protein), not with what is asked about.

    Args:
        path: The file, of any format that is read.
        folder: Folder for the search.
        relatives: Also leave out relatives.
        identity: See `RelativeSearch`.
        coverage: See `RelativeSearch`.
        sensitivity: See `RelativeSearch`.

    Attributes:
        num_proteins: Number of proteins in the file.
        search: Finds their relatives; None if these are not to be left out.

    Raises:
        DataError: The file is malformed.
        UserError: It does not exist, or MMseqs2 is missing or fails.
    """

    def __init__(
        self, path: Path, folder: Path, *, relatives: bool, identity: float, coverage: float, sensitivity: float
    ) -> None:
        self._accessions: set[str] = set()
        self._digests: dict[bytes, str] = {}
        self.num_proteins = 0
        proteins = self._noted(read_proteins(path))
        self.search: RelativeSearch | None = None
        if relatives:
            targets = ((protein.accession, protein.sequence) for protein in proteins)
            self.search = RelativeSearch(targets, folder, identity=identity, coverage=coverage, sensitivity=sensitivity)
        else:
            for _ in proteins:
                pass

    def _noted(self, proteins: Iterable[Protein]) -> Iterable[Protein]:
        for protein in proteins:
            self.num_proteins += 1
            self._accessions.add(bare_accession(protein.accession))
            if protein.sequence:
                self._digests.setdefault(digest_of(protein.sequence), protein.accession)
            yield protein

    def same(self, accession: str, sequence: str) -> str | None:
        """The evaluation protein that has this accession or sequence, or None."""
        bare = bare_accession(accession)
        return bare if bare in self._accessions else self._digests.get(digest_of(sequence))

    def close(self) -> None:
        """Remove the folder of the search."""
        if self.search:
            self.search.close()
