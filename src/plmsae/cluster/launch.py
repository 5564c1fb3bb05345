"""Starts the processes of a training on several nodes, from inside a task of the cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from plmsae.cluster.train_job import TrainJobSettings, torchrun, train_job
from plmsae.cluster.train_job_run import TrainJobRun
from plmsae.cluster.trainer_api import TrainJobs
from plmsae.errors import PlmsaeError, UserError

# Set by the pipeline: what the job is made of, and the namespace of the task.
TRAIN_JOB_VARIABLE = "PLMSAE_TRAIN_JOB"
NAMESPACE_VARIABLE = "PLMSAE_NAMESPACE"


@dataclass(frozen=True)
class TrainJobLauncher:
    """Starts processes as a TrainJob; the `Nodes` of `plmsae.training.nodes`.

    Attributes:
        settings: What the job is made of.
        namespace: Namespace of this task.
        cache: Folder of a node's own, on its volume for temporary files.
        connect: Gives the TrainJobs of a namespace.
    """

    settings: TrainJobSettings
    namespace: str
    cache: str = "/tmp/plmsae-blocks"
    connect: Callable[[str], TrainJobs] = TrainJobs

    @property
    def device(self) -> str:
        """`cuda` where the nodes have GPUs (ROCm goes by this name as well), else `cpu`."""
        return "cpu" if self.settings.placement.gpu_type is None else "cuda"

    @classmethod
    def from_environment(cls) -> TrainJobLauncher | None:
        """The launcher of this task; None in a task, or on a machine, that was not made to start a TrainJob.

        Raises:
            UserError: The variables hold something else.
        """
        text = os.environ.get(TRAIN_JOB_VARIABLE)
        if not text:
            return None
        try:
            settings = TrainJobSettings.model_validate_json(text)
        except ValidationError as error:
            raise UserError(
                f"{TRAIN_JOB_VARIABLE} does not describe a TrainJob: {error.errors()[0]['msg']}",
                where=f"environment variable {TRAIN_JOB_VARIABLE}",
                fix="compile the pipeline again with this version: plmsae compile, plmsae submit",
            ) from error
        namespace = os.environ.get(NAMESPACE_VARIABLE)
        if not namespace:
            raise UserError(
                "the namespace of the task is not known",
                where=f"environment variable {NAMESPACE_VARIABLE}",
                fix="compile the pipeline again with this version: plmsae compile, plmsae submit",
            )
        return cls(settings, namespace)

    def check(self, num_nodes: int, num_processes: int) -> None:
        """Make sure that the job has the size that the parameters name.

        Raises:
            UserError: The pipeline was compiled for another.
        """
        found = (self.settings.num_nodes, self.settings.num_processes)
        if found != (num_nodes, num_processes):
            raise UserError(
                f"the pipeline was compiled for {found[0]} nodes with {found[1]} processes each, and the run asks for "
                f"{num_nodes} with {num_processes}",
                where="train_sae.num_nodes, train_sae.num_processes",
                fix="compile it for them: plmsae submit --set train_sae.num_nodes=... does",
            )

    def shared(self, path: Path, folder: Path) -> Path:
        """Where every node finds a file or folder of this task: there, or a copy of it on the state volume.

        Args:
            path: What this task has.
            folder: Where a copy goes, on the state volume; a copy that is there already is taken.
        """
        if path.resolve().is_relative_to(Path(self.settings.state_folder).resolve()):
            return path
        copy = folder / path.name
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f".{path.name}"
            if path.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
                shutil.copytree(path, draft)
            else:
                shutil.copyfile(path, draft)
            draft.rename(copy)
        return copy

    def run(
        self,
        module: str,
        job: Path,
        *,
        key: str,
        forget: Callable[[], None],
        failure: Callable[[], PlmsaeError | None],
        finished: Callable[[], bool],
    ) -> None:
        """Run a module in every process, and wait.

        Args:
            module: Module to run.
            job: Its argument, a file on the state volume.
            key: Names the work: the job of an earlier attempt at it is taken up.
            forget: Removes what the processes of an earlier attempt have written about their failure.
            failure: What a process has written about its failure, or None.
            finished: Whether the result is there.

        Raises:
            UserError: The file is not on the state volume; or as `TrainJobRun.run`, like all that follows.
            PlmsaeError: What a process said.
            TryAgainError: The job failed without a word or was stopped, or Kubernetes does not answer.
        """
        if not job.resolve().is_relative_to(Path(self.settings.state_folder).resolve()):
            raise UserError(
                f"'{job}' is not on the state volume, where the nodes of the TrainJob could read it",
                where=f"volume claim {self.settings.state_claim} at {self.settings.state_folder}",
                fix="keep the state there: PLMSAE_STATE, which a pipeline compiled with --state-claim sets",
            )
        manifest = train_job(key, self.namespace, torchrun(module, [str(job)], self.settings), self.settings)
        TrainJobRun(self.connect(self.namespace), manifest, forget, failure, finished).run()
