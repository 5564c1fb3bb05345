"""One process of a training: `python -m plmsae.training.worker JOB.json`, see `job.py` for the file.

The processes find each other by the environment that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT. Without them it is the only one. Standard output stays empty. Exit codes are those of the command line.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae import collector
from plmsae.errors import PlmsaeError, UserError

if TYPE_CHECKING:
    from plmsae.saes.group import Group
    from plmsae.training.job import Job

logger = logging.getLogger("plmsae")
# Set by a launcher that holds the other end of standard input: when it is gone, so is this process.
LAUNCHED = "PLMSAE_LAUNCHED"


def work(job: Job) -> None:
    """Do this process's part of a training.

    Raises:
        UserError: See `joined`, `Feed.open` and `train_all`, as the others.
        DataError: Rows that are not finite or do not vary, or all trainings diverged.
        TryAgainError: Something outside is not available; the next run goes on from the last checkpoint.
    """
    import torch

    from plmsae.activations.metadata import read_metadata
    from plmsae.training.data import Scaled
    from plmsae.training.loop import train_all

    settings = job.plans[0].settings
    torch.set_num_threads(job.feed.threads)
    with _group(settings.device) as group, job.feed.open(settings.batch_size, settings.device, group) as opened:
        scale = read_metadata(Path(job.feed.store)).normaliser.scale
        source, valid = (Scaled(rows, scale) for rows in opened)
        train_all(job.plans, source, valid, job.checkpoints, num_workers=job.feed.num_workers, group=group)


def main(arguments: Sequence[str]) -> int:
    """Run; returns the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("plmsae").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    if os.environ.get(LAUNCHED):
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    from plmsae.training.job import Job, write_failure

    try:
        if len(arguments) != 1:
            raise UserError("one argument is wanted", fix="python -m plmsae.training.worker JOB.json")
        job = Job.read(Path(arguments[0]))
    except PlmsaeError as error:
        logger.error("error: %s", error)
        return error.exit_code
    try:
        work(job)
    except PlmsaeError as error:
        write_failure(job.checkpoints, rank, error)
        if not os.environ.get(LAUNCHED):
            logger.error("process %d: error: %s", rank, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def _group(device: str) -> Iterator[Group]:
    from plmsae.saes.group import SOLO
    from plmsae.training.group import joined, use_gpu

    if device == "cuda":
        use_gpu()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SOLO
        return
    with joined(device) as ranks:
        yield ranks


def _end_with_launcher() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock the end of the interpreter would find taken
        pass
    os._exit(75)


if __name__ == "__main__":
    collector.spare()
    sys.exit(main(sys.argv[1:]))
