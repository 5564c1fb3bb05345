"""Protein letters to token ids without a Python loop over residues, and ESM's alphabet of 33 tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from plmsae.errors import DataError

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"


@dataclass(frozen=True)
class Alphabet:
    """The residue letters of a family and the special tokens around a sequence.

    Attributes:
        ids: Residue letter -> token id; a letter that is not in it is refused.
        before: Ids before each sequence.
        after: Ids after it.
    """

    ids: Mapping[str, int]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @cached_property
    def _id_of_code(self) -> npt.NDArray[np.int64]:
        table = np.full(128, -1, dtype=np.int64)
        table[[ord(letter) for letter in self.ids]] = list(self.ids.values())
        return table

    def encode(
        self, sequences: Sequence[str], names: Sequence[str] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Token ids of all sequences one after another, each between its special tokens.

        Args:
            sequences: Letters of the alphabet, at least one per sequence.
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
                where=sequence_name(names, int(np.argmin(lengths))),
                fix="remove it",
            )
        codes = np.frombuffer("".join(sequences).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        residue_ids = np.where(codes < 128, self._id_of_code[np.minimum(codes, 127)], -1)
        if (residue_ids < 0).any():
            first = int(np.argmax(residue_ids < 0))
            ends = np.cumsum(lengths)
            sequence = int(np.searchsorted(ends, first, side="right"))
            position = first - int(ends[sequence] - lengths[sequence]) + 1
            raise DataError(
                f"{sequences[sequence][position - 1]!r} is not a residue letter",
                where=f"{sequence_name(names, sequence)}, position {position}",
                fix=f"use upper-case letters of {''.join(sorted(self.ids))}",
            )
        tokens = lengths + len(self.before) + len(self.after)
        ends = np.cumsum(tokens)
        ids = np.empty(int(tokens.sum()), dtype=np.int64)
        residues = np.ones(len(ids), dtype=np.bool_)
        for offset, special in enumerate(self.before):
            ids[ends - tokens + offset] = special
            residues[ends - tokens + offset] = False
        for offset, special in enumerate(reversed(self.after), start=1):
            ids[ends - offset] = special
            residues[ends - offset] = False
        ids[residues] = residue_ids
        return ids, tokens, residues


def sequence_name(names: Sequence[str] | None, index: int) -> str:
    """What an error message calls a sequence."""
    return names[index] if names is not None else f"sequence {index + 1}"


# The order of the ESM-1b/ESM-2 dictionary (Rives et al. 2021; `get_default_vocab_list` of transformers).
ESM_LETTERS = AMINO_ACIDS + "XBUZO"
ESM_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *ESM_LETTERS, ".", "-", "<null_1>", "<mask>")
ESM_VOCABULARY = {token: index for index, token in enumerate(ESM_TOKENS)}
ESM_PAD, ESM_MASK = ESM_VOCABULARY["<pad>"], ESM_VOCABULARY["<mask>"]
ESM = Alphabet(
    {letter: ESM_VOCABULARY[letter] for letter in ESM_LETTERS},
    before=(ESM_VOCABULARY["<cls>"],),
    after=(ESM_VOCABULARY["<eos>"],),
)
