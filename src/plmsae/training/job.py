"""A training as a file, which every process of it reads: `python -m plmsae.training.worker JOB.json`.

    {"schema_version": 1,
     "plans": [{"name": ..., "kernel": ..., "config": SaeConfig, "settings": TrainingSettings}, ...],
     "feed": Feed,
     "checkpoints": folder}

`settings.batch_size` is that of the whole batch. The first process alone writes below `checkpoints`, at the end the
result: the checkpoint of the last step (`plmsae.training.loop.finished`). Any process that fails says why in
`checkpoints/failures/<rank>.json`, which `failure` reads. All paths are those of the machine that runs the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from plmsae.activations.cache import BlockCache
from plmsae.activations.live import LiveReader, load
from plmsae.activations.metadata import read_metadata
from plmsae.activations.reader import ActivationReader
from plmsae.activations.shuffle import ShuffledRows
from plmsae.artifacts.atomic import write_text
from plmsae.errors import DataError, GateError, PlmsaeError, TryAgainError, UserError
from plmsae.saes.config import SaeConfig
from plmsae.saes.group import SOLO, Group
from plmsae.training.member import Plan
from plmsae.training.settings import TrainingSettings

SCHEMA_VERSION = 1
FAILURES = "failures"
_ERRORS: Mapping[int, type[PlmsaeError]] = {
    error.exit_code: error for error in (UserError, DataError, GateError, TryAgainError)
}


@dataclass(frozen=True)
class Feed:
    """What a training reads.

    Attributes:
        store: Folder of the store, whose chunks lie in it or in a bucket.
        order_seed: Seed of the order of the rows.
        cache: Folder for blocks that lie in a bucket; every process has one of its own below.
        cache_mib: Disk, in MiB, for all of them together.
        num_workers: Threads of each process that make batches ahead.
        threads: CPU threads of each process.
        sequences: Table of proteins that go through the PLM instead of the stored training rows; None for none.
        root: Folder that the name of a PLM starts from, if it is a relative path.
    """

    store: str
    order_seed: int
    cache: str
    cache_mib: int
    num_workers: int = 0
    threads: int = 1
    sequences: str | None = None
    root: str = "."

    def check(self, batch_size: int, num_processes: int) -> None:
        """Refuse what cannot be divided.

        Raises:
            UserError: The batch is no multiple of the processes, or rows are made by a PLM.
        """
        if batch_size % num_processes:
            raise UserError(
                f"a batch of {batch_size} rows cannot be divided among {num_processes} processes",
                where="train_sae.batch_size, train_sae.num_processes",
                fix=f"make it {batch_size - batch_size % num_processes or num_processes}",
            )
        if self.sequences is not None and num_processes > 1:
            raise UserError(
                f"proteins go through the PLM in one process, not in {num_processes}",
                where="train_sae.sequences, train_sae.num_processes",
                fix="extract the activations first and set sequences to null, or set num_processes to 1",
            )

    @contextmanager
    def open(self, batch_size: int, device: str, group: Group = SOLO) -> Iterator[tuple[ShuffledRows, ShuffledRows]]:
        """Raw training and held-out rows, in batches of `batch_size` divided among the processes.

        Raises:
            UserError: The batch cannot be divided, the store has no such split, or the PLM is not that of the store.
            DataError: A split is empty, or a chunk is missing or corrupted.
            TryAgainError: The bucket cannot be reached.
        """
        self.check(batch_size, group.size)
        store, rows, ahead = Path(self.store), batch_size // group.size, self.num_workers > 0
        folder = Path(self.cache) / str(group.rank) if group.size > 1 else Path(self.cache)
        with BlockCache(folder, self.cache_mib * 2**20 // group.size) as cache, ExitStack() as stack:

            def reader(split: str) -> ActivationReader:
                return ActivationReader(
                    store,
                    split,
                    rows,
                    self.order_seed,
                    cache=cache,
                    ahead=ahead,
                    rank=group.rank,
                    world_size=group.size,
                )

            source: ShuffledRows
            if self.sequences is None:
                source = reader("train")
            else:
                metadata = read_metadata(store)
                plm, table = load(Path(self.sequences), metadata, Path(self.root), device)
                source = stack.enter_context(
                    LiveReader(plm, table, "train", metadata, rows, self.order_seed, threads=self.threads, ahead=ahead)
                )
            yield source, reader("valid")


@dataclass(frozen=True)
class Job:
    """See the module docstring."""

    plans: Sequence[Plan]
    feed: Feed
    checkpoints: Path

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "plans": [
                {
                    "name": plan.name,
                    "kernel": plan.kernel,
                    "config": json.loads(plan.config.to_json()),
                    "settings": asdict(plan.settings),
                }
                for plan in self.plans
            ],
            "feed": asdict(self.feed),
            "checkpoints": str(self.checkpoints),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Job:
        """The inverse of `write`.

        Raises:
            UserError: It is no such file.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"written by another version of plmsae, schema {data['schema_version']}")
            plans = [
                Plan(
                    SaeConfig.from_json(json.dumps(plan["config"]), str(path)),
                    _settings(plan["settings"]),
                    plan["kernel"],
                    plan["name"],
                )
                for plan in data["plans"]
            ]
            return cls(plans, Feed(**data["feed"]), Path(data["checkpoints"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{path}' is not the file of a training: {error}", fix="start it by running train_sae or sweep"
            ) from error


def _settings(data: Mapping[str, Any]) -> TrainingSettings:
    """JSON knows no tuples."""
    known = {field.name for field in fields(TrainingSettings)}
    if set(data) - known:
        raise ValueError(f"unknown settings {sorted(set(data) - known)}")
    values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in data.items()}
    return TrainingSettings(**values)


def write_failure(checkpoints: Path, rank: int, error: PlmsaeError) -> None:
    """Say why a process of a training ends."""
    folder = checkpoints / FAILURES
    folder.mkdir(parents=True, exist_ok=True)
    text = {"exit_code": error.exit_code, "problem": error.problem, "where": error.where, "fix": error.fix}
    write_text(folder / f"{rank}.json", json.dumps(text, sort_keys=True) + "\n")


def clear_failures(checkpoints: Path) -> None:
    """Forget why an earlier run of the training ended."""
    for path in (checkpoints / FAILURES).glob("*.json"):
        path.unlink()


def failures(checkpoints: Path) -> dict[int, PlmsaeError]:
    """Rank -> why it ended, of the processes that said so."""
    found = {}
    for path in (checkpoints / FAILURES).glob("*.json"):
        text = json.loads(path.read_text(encoding="utf-8"))
        error = _ERRORS[text["exit_code"]](text["problem"], where=text["where"], fix=text["fix"])
        found[int(path.stem)] = error
    return dict(sorted(found.items()))


def failure(checkpoints: Path) -> PlmsaeError | None:
    """Why the training ended, if a process said so; what trying again would not mend comes first."""
    found = failures(checkpoints).values()
    return min(found, key=lambda error: isinstance(error, TryAgainError), default=None)
