"""Sequences from FASTA or JSON files, and their tokens in ESM-2's alphabet."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import numpy.typing as npt

from plmsae.errors import DataError

# ESM-2's alphabet (Lin et al., Science 2023; the order of `vocab.txt` in every facebook/esm2_* repository).
ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
CLS, PAD, EOS, UNKNOWN, MASK = 0, 1, 2, 3, 32
FIRST_RESIDUE, NUM_RESIDUES = 4, 20  # the twenty standard residues are ids 4..23

_ID_OF_BYTE = np.full(256, UNKNOWN, dtype=np.uint8)
for _id, _token in enumerate(ALPHABET):
    if len(_token) == 1:
        _ID_OF_BYTE[ord(_token)] = _id


def encode(sequence: str) -> npt.NDArray[np.uint8]:
    """Token ids of a sequence with `<cls>` before and `<eos>` after it; letters outside the alphabet are `<unk>`."""
    residues = _ID_OF_BYTE[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]
    return np.concatenate([np.array([CLS], np.uint8), residues, np.array([EOS], np.uint8)])


def _open(path: Path) -> TextIO:
    if path.name.endswith(".gz"):
        return cast(TextIO, gzip.open(path, "rt", encoding="ascii"))
    if path.name.endswith(".xz"):
        return cast(TextIO, lzma.open(path, "rt", encoding="ascii"))
    return path.open(encoding="ascii")


def read_sequences(path: Path) -> list[tuple[str, str]]:
    """Names and upper-case sequences of a FASTA file or of a JSON object {name: sequence}, plain, gzip or xz.

    Raises:
        DataError: The file cannot be read as what it is named, or holds no sequence.
    """
    try:
        with _open(path) as handle:
            text = handle.read()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the sequences: {error}", where=str(path)) from error
    if ".json" in path.suffixes:
        records = [(str(name), str(sequence)) for name, sequence in json.loads(text).items()]
    else:
        blocks = (block.partition("\n") for block in text.split(">")[1:])
        records = [(header.split()[0], "".join(body.split())) for header, _, body in blocks]
    records = [(name, sequence.upper()) for name, sequence in records]
    if not records or not all(sequence for _, sequence in records):
        raise DataError(
            "no sequence, or an empty one", where=str(path), fix="give FASTA or a JSON object {name: sequence}"
        )
    return records
