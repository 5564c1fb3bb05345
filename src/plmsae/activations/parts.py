"""One part of an extraction: a random share of the proteins, embedded, shuffled, written and recorded.

A part's folder appears under its name only when it is complete, and its record holds the sha256 of every file in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from plmsae.activations.block_table import hash_blocks
from plmsae.activations.chunks import Block, read_block_table
from plmsae.activations.embed import Embedded
from plmsae.activations.metadata import DTYPES, stored_width
from plmsae.activations.non_finite import NonFinite
from plmsae.activations.plan import Part, Settings
from plmsae.activations.statistics import RowStatistics
from plmsae.activations.upload import Upload
from plmsae.activations.writer import write_chunks
from plmsae.artifacts.atomic import write_bytes, write_text
from plmsae.artifacts.checksums import sha256_bytes, sha256_file
from plmsae.params import canonical_json
from plmsae.plms.base import ProteinLM

RECORD = "part.json"
STATISTICS = "statistics.safetensors"
_SMALL_FILES = (STATISTICS, RECORD)


class PartStore:
    """Finished parts in a folder.

    Args:
        folder: Where parts live until the store is put together.
        plm: The model.
        settings: Settings of the extraction; a part that was written under others is not taken over.
        upload: Where chunks go as soon as a part is finished; they do not stay on this disk then.
    """

    def __init__(self, folder: Path, plm: ProteinLM, settings: Settings, upload: Upload | None = None) -> None:
        self.folder, self.plm, self.settings, self.upload = folder, plm, settings, upload
        place = str(upload.place) if upload else None
        self._identity = canonical_json({**settings.described(), "plm_revision": plm.revision, "place": place})

    def is_finished(self, part: Part) -> bool:
        """Whether the part is there, was made from the same things and has intact files, uploaded ones included.

        A part that another machine finished is taken over from its record in the bucket.
        """
        if self.upload is not None and not (self.folder / part.name / RECORD).is_file():
            self.upload.restore(part.name, self.folder / part.name, _SMALL_FILES)
        try:
            record = self._record(part)
            if record["identity"] != self._identity_of(part) or any(
                Path(name).name != name for name in record["files"]
            ):
                return False
            self.masked(part)
            if self.upload is not None:
                self.refer(part)  # a record from a bucket may be damaged
            return all(self._is_intact(part, name, sha256, record) for name, sha256 in record["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _is_intact(self, part: Part, name: str, sha256: str, record: Mapping[str, Any]) -> bool:
        file = self.folder / part.name / name
        if file.is_file() or self.upload is None:
            return sha256_file(file) == sha256
        sizes = {chunk["filename"]: int(chunk["chunk_bytes"]) for chunk in record["index"]["chunks"]}
        return name in sizes and self.upload.is_there(part.split, _object_name(part, name, sha256), sizes[name], sha256)

    def write(self, part: Part, embedded: Embedded) -> None:
        """Shuffle the rows of a part and write it; its folder appears whole."""
        final = self.folder / part.name
        temporary = self.folder / f".{part.name}"
        for folder in (final, temporary):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            rows = embedded.rows
            order = torch.from_numpy(np.random.default_rng(part.shuffle_seed).permutation(len(rows)))
            index = write_chunks(temporary, rows, order, self.settings.block_rows)
            write_bytes(temporary / STATISTICS, save(embedded.statistics.tensors()))
            files = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
            record: dict[str, Any] = {"identity": self._identity_of(part), "files": files, "index": index}
            if embedded.masked:
                record["masked"] = [asdict(one) for one in embedded.masked]
            if self.upload is not None:
                record["blocks"] = self._hash_blocks(temporary, index)
            write_text(temporary / RECORD, json.dumps(record, sort_keys=True))
        except BaseException:  # a full disk, say: what is half-written would keep it full
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        os.rename(temporary, final)

    def send(self, part: Part) -> None:
        """Upload what a newly finished part still has of its chunks on this disk, and remove it here.

        Raises:
            UserError: No such bucket, or no permission to write.
            TryAgainError: The bucket cannot be reached.
        """
        if self.upload is None:
            return
        files = self._record(part)["files"]
        here = [name for name in sorted(files) if name != STATISTICS and (self.folder / part.name / name).is_file()]
        for name in here:
            file = self.folder / part.name / name
            self.upload.send(file, part.split, _object_name(part, name, files[name]), files[name])
            file.unlink()
        if here or not self.upload.is_recorded(part.name, _SMALL_FILES):
            self.upload.record(part.name, [self.folder / part.name / name for name in _SMALL_FILES])

    def record_sha256(self, part: Part) -> str:
        """sha256 of the record of a finished part, which holds those of its files."""
        return sha256_file(self.folder / part.name / RECORD)

    def statistics(self, part: Part) -> RowStatistics:
        """Statistics of a finished part."""
        return RowStatistics.from_tensors(load_file(self.folder / part.name / STATISTICS))

    def masked(self, part: Part) -> list[NonFinite]:
        """What was left out of a finished part."""
        return [NonFinite(**one) for one in self._record(part).get("masked", ())]

    def refer(self, part: Part) -> tuple[dict[str, Any], list[Block]]:
        """LitData's index of the uploaded chunks of a part, under their names in the bucket, and their blocks."""
        record = self._record(part)
        names = {
            chunk["filename"]: _object_name(part, chunk["filename"], record["files"][chunk["filename"]])
            for chunk in record["index"]["chunks"]
        }
        chunks = [{**chunk, "filename": names[chunk["filename"]]} for chunk in record["index"]["chunks"]]
        blocks = [Block(names[name], *rest) for name, *rest in record["blocks"]]
        return {**record["index"], "chunks": chunks}, blocks

    def deliver(self, part: Part, target: Path) -> dict[str, Any]:
        """Put the chunks of a finished part into `target`, linked where the file system allows it.

        Returns:
            LitData's index of them, under their new names `chunk-<part>-<number>.bin`.
        """
        index: dict[str, Any] = self._record(part)["index"]
        chunks = []
        for number, chunk in enumerate(index["chunks"]):
            name = f"chunk-{part.number}-{number}.bin"
            source = self.folder / part.name / chunk["filename"]
            try:
                os.link(source, target / name)
            except OSError:
                shutil.copyfile(source, target / name)
            chunks.append({**chunk, "filename": name})
        return {**index, "chunks": chunks}

    def _hash_blocks(self, folder: Path, index: Mapping[str, Any]) -> list[tuple[str, int, int, str]]:
        """Chunk, offset, rows and sha256 of every block of the part."""
        dtype, width = DTYPES[self.settings.dtype], stored_width(self.plm.d_model, self.settings.dtype)
        hashed = []
        for chunk in index["chunks"]:
            file = folder / chunk["filename"]
            blocks = read_block_table(file, chunk["chunk_bytes"], chunk["chunk_size"], dtype, width)
            hashed += hash_blocks(file, blocks, width * dtype.itemsize)
        return [(block.chunk, block.offset, block.num_rows, block.sha256) for block in hashed]

    def _record(self, part: Part) -> Mapping[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / part.name / RECORD).read_text(encoding="utf-8"))
        return record

    def _identity_of(self, part: Part) -> str:
        content = canonical_json({"accessions": part.accessions, "sequences": part.sequences})
        return sha256_bytes(f"{self._identity}\n{content}\n{part.shuffle_seed}".encode())


def _object_name(part: Part, file: str, sha256: str) -> str:
    """Name of a chunk in a bucket: it says the content, so that no upload ever replaces other values."""
    return f"chunk-{part.number}-{file.removesuffix('.bin').rpartition('-')[2]}-{sha256[:16]}.bin"
