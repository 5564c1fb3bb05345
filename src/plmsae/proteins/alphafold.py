"""Models of AlphaFold DB by accession, through its API, with the version on record.

`GET <base>/prediction/<accession>` gives a list of entries; the one whose `uniprotAccession` is the accession counts
(isoforms have entries of their own). The fields were renamed in 2025 (`entryId` to `modelEntityId`, `uniprotSequence`
to `sequence`, `uniprotStart` to `sequenceStart`); both names are read. Varadi et al., Nucleic Acids Res. 52, 2024.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plmsae.artifacts.http import Limits, get
from plmsae.artifacts.http_download import download
from plmsae.artifacts.http_errors import NoSuchFileError
from plmsae.errors import DataError
from plmsae.progress import Progress
from plmsae.proteins.exclusion import bare_accession
from plmsae.proteins.structure_mapping import Mapping as ChainMapping
from plmsae.proteins.structure_tables import Placed
from plmsae.proteins.structures import read_chains

API = "https://alphafold.ebi.ac.uk/api"
CONNECTIONS = 4
_FILE = re.compile(r"model_v(\d+)\.cif$")


@dataclass(frozen=True)
class Entry:
    """An entry of AlphaFold DB.

    Attributes:
        name: E.g. `AF-P12345-F1`.
        version: Version of the model.
        url: Address of its mmCIF file.
        sequence: Residues that were modelled.
        first: 1-based UniProt position of the first of them.
    """

    name: str
    version: int
    url: str
    sequence: str
    first: int


class AlphaFold:
    """A client that keeps what it was given in a folder, by accession and version.

    Args:
        folder: Folder of model files.
        base_url: Address of the API.
        version: Version of the models to take; None takes the latest.
        limits: How patient to be.
    """

    def __init__(
        self, folder: Path, *, base_url: str = API, version: int | None = None, limits: Limits | None = None
    ) -> None:
        self._folder, self._base, self._version, self._limits = folder, base_url.rstrip("/"), version, limits

    def entry(self, accession: str) -> Entry | None:
        """The entry of a protein, or None if AlphaFold DB has none.

        Raises:
            DataError: The answer cannot be understood, or the entry does not come in the wanted version.
            TryAgainError: The server cannot be reached, or stays busy.
        """
        url = f"{self._base}/prediction/{quote(accession, safe='')}"
        try:
            answer = json.loads(get(url, limits=self._limits))
        except NoSuchFileError:
            return None
        except ValueError as error:
            raise DataError("the answer of AlphaFold DB is not JSON", where=url, fix="run again later") from error
        items = answer if isinstance(answer, list) else [answer]
        found = [item for item in items if isinstance(item, dict) and item.get("uniprotAccession") == accession]
        return self._parsed(found[0], url) if found else None

    def model(self, entry: Entry) -> Path:
        """The mmCIF file of an entry.

        Raises:
            DataError: It is not there in that version.
            TryAgainError: The server cannot be reached, or stays busy.
        """
        path = self._folder / f"{entry.name}-model_v{entry.version}.cif"
        if not path.is_file():
            try:
                download(entry.url, path, verified_later=True, label=None, limits=self._limits)
            except NoSuchFileError as error:
                raise DataError(
                    f"AlphaFold DB names version {entry.version} of '{entry.name}' but does not have it",
                    where=entry.url,
                    fix="set ingest.alphafold_version to one that it has",
                ) from error
        return path

    def placed(self, accession: str, sequence: str) -> Placed:
        """The model of a protein on its sequence; with a `problem` if there is none, or it is of another sequence.

        Raises:
            DataError: The model is not that of its entry.
            TryAgainError: The server cannot be reached, or stays busy.
        """
        entry = self.entry(bare_accession(accession))
        if entry is None:
            return Placed(accession, "", "alphafold", problem="AlphaFold DB has no model of it")
        version = str(entry.version)
        start = entry.first - 1
        if sequence[start : start + len(entry.sequence)] != entry.sequence or start < 0:
            problem = "AlphaFold DB modelled another sequence: " + _difference(sequence, entry.sequence, start)
            return Placed(accession, entry.name, "alphafold", version, problem=problem)
        path = self.model(entry)
        chains = read_chains(path)
        if len(chains) != 1 or chains[0].sequence != entry.sequence:
            path.unlink()
            raise DataError(
                f"the model of '{accession}' is not of the sequence that AlphaFold DB says",
                where=entry.url,
                fix="run again; the file was removed",
            )
        chain = chains[0]
        positions = tuple(range(start, start + len(chain.residues)))
        mapping = ChainMapping("reference", positions, (), 1.0, len(positions) / len(sequence))
        return Placed(accession, entry.name, "alphafold", version, chain, mapping)

    def all_placed(self, sequences: Mapping[str, str]) -> Iterator[Placed]:
        """`placed` for many proteins, by accession, over a few connections at a time."""
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            with Progress("ingest: AlphaFold DB", len(sequences), "proteins") as progress:
                for placed in pool.map(lambda item: self.placed(*item), sorted(sequences.items())):
                    yield placed
                    progress.update(1)
        finally:
            pool.shutdown(cancel_futures=True)

    def _parsed(self, item: dict[str, Any], where: str) -> Entry:
        name = item.get("modelEntityId") or item.get("entryId")
        sequence = item.get("sequence") or item.get("uniprotSequence")
        first = item.get("sequenceStart") or item.get("uniprotStart")
        version, url = item.get("latestVersion"), item.get("cifUrl")
        if not (
            isinstance(name, str)
            and re.fullmatch(r"[A-Za-z0-9-]{1,60}", name)
            and isinstance(sequence, str)
            and isinstance(first, int)
            and isinstance(version, int)
            and isinstance(url, str)
        ):
            raise DataError(
                f"the answer of AlphaFold DB has no usable name, sequence, version and file (of {sorted(item)[:8]})",
                where=where,
                fix="the API may have changed: report this",
            )
        found = _FILE.search(url)
        if self._version is not None and self._version != version:
            versions = item.get("allVersions")
            if not found or not isinstance(versions, list) or self._version not in versions:
                raise DataError(
                    f"'{name}' does not come in version {self._version}; the latest is {version}",
                    where=where,
                    fix=f"set ingest.alphafold_version to {version}, or null for the latest",
                )
            url, version = f"{url[: found.start()]}model_v{self._version}.cif", self._version
        return Entry(name, version, url, sequence.upper(), first)


def _difference(sequence: str, modelled: str, start: int) -> str:
    pairs = enumerate(zip(sequence[max(start, 0) :], modelled, strict=False), start=start + 1)
    place = next((f"{ours}{position}{theirs}" for position, (ours, theirs) in pairs if ours != theirs), None)
    return f"{len(modelled)} residues for {len(sequence)}" + (f", the first difference is {place}" if place else "")
