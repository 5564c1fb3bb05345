"""The rows of the curves as runs of Weights & Biases, by Lightning's logger for it: one run per SAE, as it trains.

The API key comes from the environment variable WANDB_API_KEY, which wandb reads itself, and WANDB_MODE=offline keeps
everything in `wandb/` (or WANDB_DIR) for a later `wandb sync`. What is sent is named here: the rows, and how the SAE is
trained. Code, git state, console output, the name of the machine, its figures and installed packages are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import TryAgainError, UserError
from plmsae.training.member import Plan

WHERE = "train_sae.wandb_project"
_WITHOUT_KEY = ("offline", "dryrun", "disabled")


class WandbRuns:
    """One run per plan; a training that goes on later goes on in the same runs.

    Args:
        plans: The SAEs.
        checkpoints: Folder of the training's checkpoints: what makes it the same training.

    Attributes:
        loggers: Lightning's loggers, in the order of the plans; none if no plan names a project.

    Raises:
        UserError: wandb is not installed, it has no API key, or it refuses the run.
        TryAgainError: Its server does not answer.
    """

    def __init__(self, plans: Sequence[Plan], checkpoints: Path) -> None:
        self._runs: list[Any] = []
        self._last: list[int] = []
        if plans[0].settings.wandb_project is not None:
            _check_key()
            for plan in plans:
                run = _started(plan, checkpoints)
                self._runs.append(run)
                self._last.append(int(run.summary.get("step", 0)))
        self.loggers: list[Logger] = [WandbLogger(experiment=run) for run in self._runs]

    def log(self, curves: Sequence[Sequence[Mapping[str, float]]]) -> None:
        """Send the rows of each plan's curves that its run does not have yet."""
        for place, (logger, rows) in enumerate(zip(self.loggers, curves)):
            for row in rows:
                if row["step"] > self._last[place]:
                    self._last[place] = int(row["step"])
                    logger.log_metrics(dict(row))

    def finish(self) -> None:
        """Wait until all is sent or on disk."""
        for run in self._runs:
            run.finish()


def _check_key() -> None:
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError(
            "Weights & Biases is not installed",
            where=WHERE,
            fix="pip install 'wandb>=0.21', or set the parameter to null",
        ) from error
    if os.environ.get("WANDB_MODE", "online") not in _WITHOUT_KEY and not os.environ.get("WANDB_API_KEY"):
        raise UserError(
            "Weights & Biases has no API key",
            where=WHERE,
            fix="set the environment variable WANDB_API_KEY, or WANDB_MODE=offline to send nothing",
        )


def _started(plan: Plan, checkpoints: Path) -> Any:
    import wandb

    config, settings = plan.config, asdict(plan.settings)
    named = {
        name: getattr(config, name) for name in ("architecture", "d_model", "dictionary_size", "k", "layer", "plm")
    }
    try:
        return wandb.init(
            project=settings.pop("wandb_project"),
            name=plan.name,
            id=sha256_bytes(f"{checkpoints.resolve()}/{plan.name}".encode())[:16],
            resume="allow",
            reinit="create_new",
            config={**named, "options": dict(config.options), "kernel": plan.kernel, **settings},
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                host="",
                quiet=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
    except wandb.errors.CommError as error:
        raise TryAgainError(
            "the server of Weights & Biases does not answer or refuses the run",
            where=WHERE,
            fix="run it again, set WANDB_MODE=offline, or see that WANDB_API_KEY may write to the project",
        ) from error
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            f"Weights & Biases refuses the run: {type(error).__name__}",
            where=WHERE,
            fix="see that WANDB_API_KEY is a key of its own and that the project's name is one it takes",
        ) from error
