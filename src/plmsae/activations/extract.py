"""Hidden states of a protein language model over many sequences -> activation stores.

Proteins are dealt to parts at random; the rows of a part are shuffled across its proteins and written as blocks. A
part is finished on its own, with the checksum of its files: a killed extraction goes on at the first unfinished part
and ends with the same bytes, several workers can make a share of the parts each, and `ActivationReader` mixes them.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pandas as pd
from safetensors.torch import save

from plmsae.activations.block_table import write_table
from plmsae.activations.chunks import Block
from plmsae.activations.embed import Embedded, embed_part
from plmsae.activations.metadata import DTYPES, Normaliser, StoreMetadata, stored_width, write_metadata
from plmsae.activations.non_finite import NonFinite, write_masked
from plmsae.activations.parts import PartStore
from plmsae.activations.places import SHARE, folder_name, store_folders, write_stores
from plmsae.activations.plan import SPLITS, Part, Settings, plan_parts
from plmsae.activations.statistics import RowStatistics
from plmsae.activations.upload import Upload
from plmsae.activations.writer import write_index
from plmsae.artifacts.atomic import write_bytes, write_text
from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.s3 import S3Uri
from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json
from plmsae.plms.base import Place, ProteinLM
from plmsae.progress import Progress

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
    also: Sequence[Place] = (),
    threads: int = 1,
    store: S3Uri | None = None,
    resume_key: str | None = None,
    share: tuple[int, int] | None = None,
    on_part: Callable[[Part], None] | None = None,
) -> list[dict[str, RowStatistics]]:
    """Write a store of the train and valid proteins, or several: one per place, in one pass of the model.

    Args:
        plm: The model.
        sequences: Columns accession, sequence, split; other splits than train and valid are left out. A column offset
            says at which position of the protein a sequence starts (0 without it).
        output: Folder to write into; with several places each store has a folder in it (`places.store_folders`).
        checkpoints: Folder for finished parts; what an interrupted call left there is taken over, and several calls
            may use one at the same time.
        settings: See `Settings`.
        sequences_sha256: sha256 of the table of sequences, for the description of the store.
        also: Further places. The memory for the rows of a part is needed twice per place: one part is computed
            while another is written.
        threads: Batches that go through the model at the same time, one core each; the result does not depend on it.
        store: Prefix in a bucket for the chunks, which then leave this disk as soon as a part is finished; `output`
            keeps the description. A store lies below it under a hash of what it was made from.
        resume_key: Names code and platform; another machine on which it is the same goes on where this one stopped.
        share: (i, n) makes the i-th of n shares of the parts (1-based) and no store: `output` gets `share.json`. A
            call without it takes over what the others made, and what is missing it makes.
        on_part: Called after each part that was computed.

    Returns:
        For each place split -> statistics of its stored rows; nothing for a share.

    Raises:
        UserError: A layer or hook does not exist, a block is too large, the memory does not suffice for a single
            sequence, or no permission to write into the bucket.
        DataError: A split is empty, a sequence cannot be tokenised, or hidden states are not finite in the stored type
            (any of them, or under the policy `mask` all of a split).
        TryAgainError: The bucket cannot be reached.
    """
    everywhere = [settings, *(settings.at(place) for place in also)]
    for one in everywhere:
        plm.check_hook(one.layer, one.hook)
    block_bytes = settings.block_rows * stored_width(plm.d_model, settings.dtype) * DTYPES[settings.dtype].itemsize
    if block_bytes > MAX_BLOCK_BYTES:
        raise UserError(
            f"a block of {settings.block_rows} rows would take {block_bytes / 2**30:.1f} GiB: too much for a chunk",
            where="extract_activations.block_rows",
            fix=f"use at most {settings.block_rows * MAX_BLOCK_BYTES // block_bytes}",
        )
    plans = {split: plan_parts(sequences, split, settings) for split in SPLITS}
    made = []
    for one in everywhere:
        upload = _upload(store, plm, one, sequences_sha256, resume_key) if store else None
        made.append(PartStore(checkpoints / folder_name(one.layer, one.hook), plm, one, upload))
    parts = [part for plan in plans.values() for part in plan]
    if share is not None:
        parts = parts[share[0] - 1 :: share[1]]
    _compute(plm, parts, made, checkpoints, threads, on_part)
    places = [(one.layer, one.hook) for one in everywhere]
    if share is not None:
        record = {
            folder_name(store.settings.layer, store.settings.hook): {p.name: store.record_sha256(p) for p in parts}
            for store in made
        }
        write_text(output / SHARE, json.dumps({"share": share, "parts": record}, indent=1, sort_keys=True) + "\n")
        return []
    write_stores(output, places)
    return [
        _assemble(plm, plans, one, folder, sequences_sha256)
        for one, folder in zip(made, store_folders(output, places), strict=True)
    ]


def _compute(
    plm: ProteinLM,
    parts: Sequence[Part],
    stores: Sequence[PartStore],
    locks: Path,
    threads: int,
    on_part: Callable[[Part], None] | None,
) -> None:
    """Make the parts that are not there yet, each under a lock: what another process makes meanwhile is waited for.

    One part is written and sent while the next one is computed.
    """
    todo = [part for part in parts if not all(store.is_finished(part) for store in stores)]
    for part in parts:
        if part not in todo:
            for store in stores:
                store.send(part)
    total = sum(part.num_rows for part in parts)
    done = total - sum(part.num_rows for part in todo)
    with (
        Progress("extract_activations", total, "residues", done=done) as progress,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
    ):
        before: Future[None] | None = None
        for patient in (False, True):
            for part in list(todo):
                lock = _lock(locks / f".{part.name}.lock", wait=patient)
                if lock is None:
                    continue
                todo.remove(part)
                try:
                    missing = [store for store in stores if not store.is_finished(part)]
                    if missing:
                        settings = [store.settings for store in missing]
                        made = embed_part(plm, part, settings, threads=threads, progress=progress)
                    else:
                        made = []
                        progress.update(part.num_rows)
                    if before is not None:
                        before.result()
                except BaseException:
                    lock.close()
                    raise
                before = writer.submit(_finish, part, stores, list(zip(missing, made, strict=True)), lock, on_part)
        if before is not None:
            before.result()


def _finish(
    part: Part,
    stores: Sequence[PartStore],
    made: Sequence[tuple[PartStore, Embedded]],
    lock: IO[str],
    on_part: Callable[[Part], None] | None,
) -> None:
    with lock:
        for store, embedded in made:
            store.write(part, embedded)
        for store in stores:
            store.send(part)
    if made and on_part is not None:
        on_part(part)


def _lock(path: Path, *, wait: bool) -> IO[str] | None:
    """Lock a file until it is closed, if only by a kill; without `wait` None if another process has it locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        handle.close()
        raise UserError(
            "the file system does not lock files, so that workers would disturb each other",
            where=f"{path}: {error}",
            fix="put extract_activations.shared on another one, or use a bucket: extract_activations.store",
        ) from error
    return handle


def _assemble(
    plm: ProteinLM, plans: Mapping[str, Sequence[Part]], made: PartStore, output: Path, sequences_sha256: str
) -> dict[str, RowStatistics]:
    """Put the store of one place together from its parts."""
    settings, upload = made.settings, made.upload
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
            precision=settings.precision if settings.precision != "float32" else None,
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
