"""ESM's alphabet of 33 tokens, and protein letters to token ids without a Python loop over residues.

The order is that of the ESM-1b/ESM-2 dictionary (Rives et al. 2021; `get_default_vocab_list` of transformers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plmsae.errors import DataError

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
LETTERS = AMINO_ACIDS + "XBUZO"
TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *LETTERS, ".", "-", "<null_1>", "<mask>")
VOCABULARY = {token: index for index, token in enumerate(TOKENS)}
CLS, PAD, EOS, MASK = (VOCABULARY[token] for token in ("<cls>", "<pad>", "<eos>", "<mask>"))
SPECIALS_PER_SEQUENCE = 2

_ID_OF_CODE = np.full(128, -1, dtype=np.int64)
_ID_OF_CODE[[ord(letter) for letter in LETTERS]] = [VOCABULARY[letter] for letter in LETTERS]


def encode_packed(
    sequences: Sequence[str], names: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Token ids of all sequences one after another, each as `<cls>` residues `<eos>`.

    Args:
        sequences: Upper-case letters of the 20 amino acids and X B U Z O, at least one per sequence.
        names: Accessions for error messages; by default `sequence 1`, `sequence 2`, ...

    Returns:
        ids [N], tokens per sequence [B] (specials included), and a mask [N] that is true at residues.

    Raises:
        DataError: An empty sequence or another character; the message names the sequence and the 1-based position.
    """
    lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
    if (lengths == 0).any():
        raise DataError(
            "a sequence without residues cannot be encoded",
            where=_name(names, int(np.argmin(lengths))),
            fix="remove it",
        )
    codes = np.frombuffer("".join(sequences).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    residue_ids = np.where(codes < 128, _ID_OF_CODE[np.minimum(codes, 127)], -1)
    if (residue_ids < 0).any():
        first = int(np.argmax(residue_ids < 0))
        ends = np.cumsum(lengths)
        sequence = int(np.searchsorted(ends, first, side="right"))
        position = first - int(ends[sequence] - lengths[sequence]) + 1
        raise DataError(
            f"{sequences[sequence][position - 1]!r} is not a residue letter",
            where=f"{_name(names, sequence)}, position {position}",
            fix=f"use upper-case letters of {''.join(sorted(LETTERS))}",
        )
    tokens = lengths + SPECIALS_PER_SEQUENCE
    ends = np.cumsum(tokens)
    ids = np.empty(int(tokens.sum()), dtype=np.int64)
    residues = np.ones(len(ids), dtype=np.bool_)
    residues[ends - tokens] = False
    residues[ends - 1] = False
    ids[ends - tokens] = CLS
    ids[ends - 1] = EOS
    ids[residues] = residue_ids
    return ids, tokens, residues


def _name(names: Sequence[str] | None, index: int) -> str:
    return names[index] if names is not None else f"sequence {index + 1}"
