"""Hidden states of a protein language model over many sequences -> an activation store.

Proteins are dealt to parts at random; the rows of a part are shuffled across its proteins and written as blocks. A
part is finished on its own, in the checkpoint folder, with the checksum of its files: a killed extraction goes on at
the first unfinished part and ends with the same bytes, and `ActivationReader` mixes the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import save

from plmsae.activations.block_table import write_table
from plmsae.activations.chunks import Block
from plmsae.activations.metadata import DTYPES, Normaliser, StoreMetadata, write_metadata
from plmsae.activations.non_finite import NonFinite, write_masked
from plmsae.activations.parts import Part, PartStore, Settings
from plmsae.activations.statistics import RowStatistics
from plmsae.activations.upload import Upload
from plmsae.activations.writer import write_index
from plmsae.artifacts.atomic import write_bytes
from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.s3 import S3Uri
from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json
from plmsae.plms.base import ProteinLM
from plmsae.progress import Progress

SPLITS = ("train", "valid")  # test proteins are embedded when they are evaluated, never stored
STATISTICS = "statistics.safetensors"
MAX_BLOCK_BYTES = 2**31  # LitData's chunks have 32-bit offsets


def extract(
    plm: ProteinLM,
    sequences: pd.DataFrame,
    output: Path,
    checkpoints: Path,
    settings: Settings,
    *,
    sequences_sha256: str,
    threads: int = 1,
    store: S3Uri | None = None,
    resume_key: str | None = None,
    on_part: Callable[[Part], None] | None = None,
) -> dict[str, RowStatistics]:
    """Write a store of the train and valid proteins.

    Args:
        plm: The model.
        sequences: Columns accession, sequence, split; other splits than train and valid are left out. A column offset
            says at which position of the protein a sequence starts (0 without it).
        output: Folder to write into.
        checkpoints: Folder for finished parts; what an interrupted call left there is taken over.
        settings: See `Settings`.
        sequences_sha256: sha256 of the table of sequences, for the description of the store.
        threads: Batches that go through the model at the same time, one core each; the result does not depend on it.
        store: Prefix in a bucket for the chunks, which then leave this disk as soon as a part is finished; `output`
            keeps the description. A store lies below it under a hash of what it was made from.
        resume_key: Names code and platform; another machine on which it is the same goes on where this one stopped.
        on_part: Called after each part that was computed.

    Returns:
        Split -> statistics of its stored rows.

    Raises:
        UserError: The layer or hook does not exist, a block is too large, or no permission to write into the bucket.
        DataError: A split is empty, a sequence cannot be tokenised, or hidden states are not finite in the stored type
            (any of them, or under the policy `mask` all of a split).
        TryAgainError: The bucket cannot be reached.
    """
    plm.check_hook(settings.layer, settings.hook)
    block_bytes = settings.block_rows * plm.d_model * DTYPES[settings.dtype].itemsize
    if block_bytes > MAX_BLOCK_BYTES:
        raise UserError(
            f"a block of {settings.block_rows} rows would take {block_bytes / 2**30:.1f} GiB: too much for a chunk",
            where="extract_activations.block_rows",
            fix=f"use at most {settings.block_rows * MAX_BLOCK_BYTES // block_bytes}",
        )
    plans = {split: plan_parts(sequences, split, settings) for split in SPLITS}
    parts = [part for plan in plans.values() for part in plan]
    upload = _upload(store, plm, settings, sequences_sha256, resume_key) if store else None
    made = PartStore(checkpoints / "parts", plm, settings, threads, upload)
    finished = {part.name for part in parts if made.is_finished(part)}
    total = sum(part.num_rows for part in parts)
    done = sum(part.num_rows for part in parts if part.name in finished)
    with Progress("extract_activations", total, "residues", done=done) as progress:
        for part in parts:
            if part.name not in finished:
                made.compute(part, progress)
            made.send(part)
            if part.name not in finished and on_part is not None:
                on_part(part)

    statistics: dict[str, RowStatistics] = {}
    blocks: dict[str, list[Block]] = {}
    masked: dict[str, list[NonFinite]] = {}
    for split, plan in plans.items():
        statistics[split] = RowStatistics.zeros(plm.d_model)
        for part in plan:
            statistics[split].merge(made.statistics(part))
        masked[split] = [one for part in plan for one in made.masked(part)]
        if not statistics[split].count:
            raise DataError(
                f"no residue of split '{split}' has hidden states that are finite in {settings.dtype}",
                where=f"layer {settings.layer} of '{plm.name}'",
                fix="store as bfloat16 or float32, or check the model's weights",
            )
        folder = output / split
        folder.mkdir(parents=True)
        if upload is None:
            write_index(folder, [made.deliver(part, folder) for part in plan])
        else:
            referred = [made.refer(part) for part in plan]
            write_index(folder, [index for index, _ in referred])
            blocks[split] = [block for _, members in referred for block in members]
    write_masked(output, masked)
    if blocks:
        write_table(output, blocks)
    train = statistics["train"]
    if not train.scale > 0:
        raise DataError(
            f"all hidden states at layer {settings.layer} of '{plm.name}' are zero", fix="use another layer"
        )
    tensors = {"mean": train.mean, "second_moment": train.second_moment, "norm_histogram": train.norms}
    write_bytes(output / STATISTICS, save(tensors))
    write_metadata(
        output,
        StoreMetadata(
            plm=plm.name,
            plm_revision=plm.revision,
            layer=settings.layer,
            hook=settings.hook,
            dtype=settings.dtype,
            d_model=plm.d_model,
            block_rows=settings.block_rows,
            num_tokens={split: int(counted.count) for split, counted in statistics.items()},
            num_masked=_counts(masked) if any(masked.values()) else None,
            normaliser=Normaliser(scale=train.scale),
            sequences_sha256=sequences_sha256,
            location=str(upload.place) if upload else None,
        ),
    )
    return statistics


def _counts(masked: Mapping[str, Sequence[NonFinite]]) -> dict[str, int]:
    return {split: sum(one.count for one in found) for split, found in masked.items()}


def _upload(store: S3Uri, plm: ProteinLM, settings: Settings, sequences_sha256: str, resume_key: str | None) -> Upload:
    """The place of a store in a bucket: another model, setting or input is another place."""
    model = {"plm": plm.name, "plm_revision": plm.revision}
    made_from = {**settings.described(), **model, "sequences_sha256": sequences_sha256}
    text = canonical_json(made_from)
    return Upload(store / sha256_bytes(text.encode())[:32], text, resume_key)


def plan_parts(sequences: pd.DataFrame, split: str, settings: Settings) -> list[Part]:
    """Deal the proteins of a split to parts of about equal numbers of residues, at random but reproducibly.

    Args:
        sequences: Columns accession, sequence, split, and offset if it is not 0.
        split: The split.
        settings: `shuffle_pool_rows` bounds a part (but for the last protein in it); `seed` draws.

    Raises:
        DataError: The split has no proteins.
    """
    table = sequences[sequences["split"] == split]
    if table.empty:
        raise DataError(
            f"no sequences in split '{split}'",
            where="sequences.parquet",
            fix="ingest more sequences, or give the split a larger share in the ingest parameters",
        )
    seed = (settings.seed, SPLITS.index(split))
    table = table.iloc[np.random.default_rng([*seed, 0]).permutation(len(table))]
    if "offset" not in table:
        table = table.assign(offset=0)
    ends = table["sequence"].str.len().to_numpy().cumsum()
    num_parts = -(-int(ends[-1]) // settings.shuffle_pool_rows)
    # The part in which the last residue of each protein falls, when residues are cut into equal shares.
    number = (ends - 1) * num_parts // ends[-1]
    return [
        Part(
            split=split,
            number=i,
            accessions=tuple(group["accession"]),
            sequences=tuple(group["sequence"]),
            offsets=tuple(group["offset"].tolist()),
            shuffle_seed=(*seed, i + 1),
        )
        for i, (_, group) in enumerate(table.groupby(number, sort=True))
    ]
