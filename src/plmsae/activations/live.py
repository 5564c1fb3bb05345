"""Training batches from the protein language model itself: nothing is stored, a pool of rows at a time is computed.

The order is the reader's with proteins in place of blocks: each epoch permutes the proteins, deals them to groups,
and permutes the rows of each group. A resume computes the group again in which it stopped, and nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from plmsae.activations.metadata import StoreMetadata
from plmsae.activations.pools import Key
from plmsae.activations.reader import DEFAULT_POOL_ROWS
from plmsae.activations.shuffle import ShuffledRows
from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.checkpoint import Precision
from plmsae.plms.parallel import ordered_map

TOKENS_PER_BATCH = 4096
_COLUMNS = ["accession", "sequence", "split"]


class LiveReader(ShuffledRows):
    """Batches of the hidden states of one split of a table of sequences, in the type that the rows of a store
    have in memory; leaving its `with` block stops what is computed ahead.

    Args:
        plm: The model.
        sequences: Columns accession, sequence, split.
        split: `train` or `valid`.
        like: Description of a store: layer, hook and type of the rows. The model must be the one it names.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        pool_rows: Rows that are mixed at once, to a protein; bounds the memory as with `ActivationReader`.
        threads: Batches that go through the model at the same time; the result does not depend on it.
        ahead: See `ShuffledRows`: the model computes the next pool while this one is used.

    Raises:
        UserError: The model is not that of the store.
        DataError: The split has no sequences.
    """

    def __init__(
        self,
        plm: ProteinLM,
        sequences: pd.DataFrame,
        split: str,
        like: StoreMetadata,
        batch_size: int,
        seed: int,
        pool_rows: int = DEFAULT_POOL_ROWS,
        *,
        threads: int = 1,
        ahead: bool = False,
    ) -> None:
        if (plm.name, plm.revision) != (like.plm, like.plm_revision):
            raise UserError(
                f"the model is {plm.name} of revision {plm.revision}; the store is of {like.plm} of revision "
                f"{like.plm_revision}",
                fix="load the model of the store, or extract a store with this one",
            )
        plm.check_hook(like.layer, like.hook)
        self.plm, self.like, self.threads = plm, like, threads
        table = sequences[sequences["split"] == split]
        if table.empty:
            raise DataError(f"no sequences in split '{split}'", fix="ingest more sequences")
        self._names, self._sequences = table["accession"].tolist(), table["sequence"].tolist()
        self._sha256 = sha256_bytes("\n".join(self._sequences).encode())
        self._lengths = table["sequence"].str.len().to_numpy().astype(np.int64)
        self._num_groups = -(-self.num_rows // pool_rows)
        self._order_of = lru_cache(maxsize=2)(self._order)
        buffer = (min(self.num_rows, pool_rows + int(self._lengths.max())), plm.d_model)
        self._closed = False
        super().__init__(batch_size, seed, buffer, like.torch_dtype, ahead=ahead)

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True  # a pool that is on its way would keep the process busy for minutes

    @property
    def num_rows(self) -> int:
        """Residues of the split."""
        return int(self._lengths.sum())

    def state(self) -> dict[str, int]:
        """See `ShuffledRows`; the table is a file that may change between two runs."""
        return {**super().state(), "sequences": int(self._sha256[:12], 16)}

    def _order(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The proteins in the order of an epoch, and for each the group it is dealt to."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._lengths))
        ends = self._lengths[order].cumsum()
        return order, (ends - 1) * self._num_groups // ends[-1]

    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        order, group = self._order_of(epoch)
        ends = self._lengths[order].cumsum()
        return np.concatenate([[0], ends[:-1][group[1:] != group[:-1]]])

    def _fill(self, key: Key, rows: Tensor) -> int:
        epoch, number = key
        order, group = self._order_of(epoch)
        members = order[group == np.unique(group)[number]]
        lengths = self._lengths[members]

        def embed(batch: npt.NDArray[np.int64]) -> Tensor:
            chosen = members[batch]
            tokens = self.plm.tokenize([self._sequences[i] for i in chosen], [self._names[i] for i in chosen])
            return self.plm.hidden(tokens, self.like.layer, self.like.hook).to(rows.dtype)

        stop = 0
        with torch.no_grad():
            for hidden in ordered_map(embed, length_sorted_batches(lengths, TOKENS_PER_BATCH), self.threads):
                if self._closed:
                    raise UserError("the reader is closed")
                rows[stop : stop + len(hidden)] = hidden
                stop += len(hidden)
        return stop


def load(file: Path, like: StoreMetadata, root: Path, device: str) -> tuple[ProteinLM, pd.DataFrame]:
    """What `LiveReader` takes: the model of a store, and a table of sequences.

    Args:
        file: A `sequences.parquet` of `ingest`.
        like: The store.
        root: Folder that the name of a model starts from, if it is a relative path.
        device: Where the model runs.

    Raises:
        UserError: The model is not to be had or of another revision.
        DataError: It is not such a table.
        TryAgainError: A server cannot be reached.
    """
    try:
        sequences = pd.read_parquet(file, columns=_COLUMNS)
    except (OSError, ValueError, KeyError) as error:
        columns = ", ".join(_COLUMNS)
        raise DataError(
            f"'{file}' is not a table of proteins with the columns {columns}",
            where="train_sae.sequences",
            fix="name the sequences.parquet of `ingest`",
        ) from error
    precision: Precision = "bfloat16" if like.precision == "bfloat16" else "float32"
    return load_plm(like.plm, like.plm_revision, root=root, precision=precision, device=device), sequences
