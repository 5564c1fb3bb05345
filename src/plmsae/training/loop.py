"""The training run: initialise or resume, let Lightning turn the steps, validate, report, save."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

from plmsae.errors import DataError, UserError
from plmsae.progress import Progress
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.group import SOLO, Group
from plmsae.training.center import starting_center
from plmsae.training.checkpoint import Checkpoint, latest_checkpoint, latest_step
from plmsae.training.data import BatchSource, StepStream, all_rows, check_state
from plmsae.training.group import from_first_, of_first
from plmsae.training.interruption import Interruption, StopError
from plmsae.training.member import Failed, Member, Plan
from plmsae.training.module import SaeModule
from plmsae.training.run import Run
from plmsae.training.settings import TrainingSettings, multiplies_bfloat16
from plmsae.training.wandb_runs import WandbRuns

logger = logging.getLogger("plmsae")
# What members of one training have in common: the batches, and when to look at them and save them.
_SHARED = (
    "batch_size",
    "num_steps",
    "num_init_rows",
    "validate_every",
    "num_valid_rows",
    "checkpoint_every",
    "device",
    "wandb_project",
)


@dataclass(frozen=True)
class Trained:
    """The end of a training.

    Attributes:
        sae: The SAE, on the CPU, for rows of unit mean squared norm; its threshold, if it has one for all latents, is
            calibrated on the held-out rows of the last look.
        curves: One row per look: step, tokens, loss, fvu, l0, dead_fraction, aux_loss, valid_fvu, valid_l0,
            valid_dead_fraction (silent on every one of the held-out rows), learning_rate, and, if there is one, the
            penalty's weight.
        dead_fraction: Latents that were silent for the last `dead_after_tokens` training tokens.
    """

    sae: SparseAutoencoder
    curves: list[dict[str, float]]
    dead_fraction: float


def train(
    config: SaeConfig,
    kernel: str,
    source: BatchSource,
    valid: BatchSource,
    settings: TrainingSettings,
    checkpoints: Path,
    *,
    num_workers: int = 0,
) -> Trained:
    """Train an SAE, or finish the training that `checkpoints` holds the start of: `train_all` with one plan.

    Args:
        config: The SAE; its normaliser says what `source` was divided by.
        kernel: `auto` or `reference`.
        source: Training rows of unit mean squared norm, in batches of `settings.batch_size`.
        valid: Held-out rows, scaled alike.
        settings: How to train.
        checkpoints: Folder for checkpoints of exactly this training.
        num_workers: Threads that make batches ahead; see `StepStream`.

    Raises:
        UserError: See `train_all`.
        DataError: See `train_all`.
    """
    plan = Plan(config, settings, kernel)
    (trained,) = train_all([plan], source, valid, checkpoints, num_workers=num_workers)
    assert isinstance(trained, Trained)  # one that diverges alone raises
    return trained


def train_all(
    plans: Sequence[Plan],
    source: BatchSource,
    valid: BatchSource,
    checkpoints: Path,
    *,
    num_workers: int = 0,
    group: Group = SOLO,
) -> list[Trained | Failed]:
    """Train SAEs on the same batches, each as if alone, or finish the training that `checkpoints` holds the start of.

    Args:
        plans: At least one. They differ in anything but the length of the training, the batches and when to look.
        source: Training rows of unit mean squared norm, in batches of the settings' `batch_size`.
        valid: Held-out rows, scaled alike.
        checkpoints: Folder for checkpoints of exactly this training.
        num_workers: Threads that make batches ahead; see `StepStream`.
        group: The processes that train them together, each with rows of its own: `source` and `valid` give those of
            this process, in batches of `batch_size` divided by their number. The first one reads and writes
            checkpoints.

    Returns:
        What became of each plan, in order. A plan that diverged is `Failed`, if another one did not.

    Raises:
        UserError: A normaliser works per token, plans do not fit each other, or the checkpoint is of a training that
            got other batches, e.g. among another number of processes.
        DataError: Rows that are not finite or do not vary; all trainings diverged. The message names the last good
            checkpoint.
        TryAgainError: SIGTERM came; the message names the step of the checkpoint that is kept.
        KeyboardInterrupt: SIGINT came; a checkpoint is kept as well.
    """
    _check(plans)
    with Interruption(group) as interruption:
        return _train_all(plans, source, valid, checkpoints, num_workers, group, interruption)


def _train_all(
    plans: Sequence[Plan],
    source: BatchSource,
    valid: BatchSource,
    checkpoints: Path,
    num_workers: int,
    group: Group,
    interruption: Interruption,
) -> list[Trained | Failed]:
    settings = plans[0].settings
    if any(plan.settings.precision == "bfloat16" for plan in plans) and not multiplies_bfloat16(settings.device):
        logger.warning("train_sae.precision bfloat16: this machine has no fast bf16 products; float32 would be faster")
    run = Run(settings, source, valid, checkpoints, group, interruption)
    with interruption.at_once():
        checkpoint = of_first(latest_checkpoint(checkpoints) if group.rank == 0 else None, group)
        module = _module(plans, source, run, checkpoint)
    interruption.keep = lambda: run.save(module)
    run.wandb = WandbRuns(plans, checkpoints) if group.rank == 0 else None
    try:
        run.report(module)
        if module.pending:
            run.finish(module)
            run.save(module)
        _take_steps(module, run, num_workers)
    finally:
        if run.wandb is not None:
            run.wandb.finish()
    return [_result(member) for member in module.members]


def _take_steps(module: SaeModule, run: Run, num_workers: int) -> None:
    """The steps that are left, with a progress bar."""
    settings, first = run.settings, module.num_steps_done
    if first == settings.num_steps:
        return
    total, done = (steps * settings.batch_size for steps in (settings.num_steps, first))
    with Progress("train_sae", total, "tokens", done=done) as progress:
        run.progress = progress if run.group.rank == 0 else None
        _fit(module, StepStream(run.source, first, settings.num_steps, num_workers, run.interruption.at_once), run)


def finished(plans: Sequence[Plan], checkpoints: Path) -> list[Trained | Failed] | None:
    """What `train_all` returned for these plans, wherever it ran, from its last checkpoint; None if there is none."""
    checkpoint = latest_checkpoint(checkpoints)
    if checkpoint is None or checkpoint.step != plans[0].settings.num_steps or checkpoint.info["pending"]:
        return None
    here = [replace(plan, settings=replace(plan.settings, device="cpu")) for plan in plans]  # it may have no GPU
    module = SaeModule([_member(plan, None, SOLO) for plan in here], lambda _: None)
    module.restore(checkpoint)
    return [_result(member) for member in module.members]


def _check(plans: Sequence[Plan]) -> None:
    for plan in plans:
        if plan.config.per_token:
            raise UserError(
                f"the normaliser {dict(plan.config.normaliser)} scales every token by itself; a training takes rows "
                "divided by one number",
                where="normaliser",
                fix="train with the kind rms",
            )
        for name in _SHARED:
            ours, theirs = getattr(plans[0].settings, name), getattr(plan.settings, name)
            if ours != theirs:
                raise UserError(
                    f"SAEs of one training share their batches, but {name} is {ours} for '{plans[0].name}' and "
                    f"{theirs} for '{plan.name}'",
                    where=name,
                    fix="train them apart, or set it to one value",
                )


def _sample(source: BatchSource, num_rows: int, group: Group) -> Tensor:
    """The first rows of the training, which say where it starts.

    Raises:
        DataError: They do not vary.
    """
    sample = all_rows(source, num_rows, group)
    if not _variance(sample) > 0:
        raise DataError(
            f"the first {len(sample)} activation rows are all the same",
            fix="extract activations of more sequences: dvc repro --force extract_activations",
        )
    return sample


def _variance(sample: Tensor) -> float:
    return float((sample.double() - sample.double().mean(0)).square().sum(1).mean())


def _member(plan: Plan, sample: Tensor | None, group: Group) -> Member:
    """A member with its starting weights, `b_dec` at a centre of the sample; without one its weights are to come."""
    settings = plan.settings
    sae = build(plan.config, seed=settings.seed)
    sae.prepare_training(plan.kernel, settings.precision)
    variance = 0.0
    if sample is not None:
        variance = _variance(sample)
        center = starting_center(sample[: settings.num_center_rows], settings.center)
        sae.initialise(torch.Generator().manual_seed(settings.seed), center)
        for tensor in sae.state_dict().values():  # the centre's last bits may depend on the machine
            from_first_(tensor, group)
    return Member(plan, sae.to(settings.device), variance, group)


def _module(plans: Sequence[Plan], source: BatchSource, run: Run, checkpoint: Checkpoint | None) -> SaeModule:
    """All members, before their first step or after that of the checkpoint."""
    if checkpoint is None:
        sample = _sample(source, run.settings.num_init_rows, run.group)
        return SaeModule([_member(plan, sample, run.group) for plan in plans], run.after_step)
    check_state(checkpoint.info["source"], source.state(), str(run.checkpoints))
    module = SaeModule([_member(plan, None, run.group) for plan in plans], run.after_step)
    module.restore(checkpoint)
    run.kept(module)
    logger.info("train_sae resumes after step %d of %d", checkpoint.step, run.settings.num_steps)
    return module


def _result(member: Member) -> Trained | Failed:
    if member.failed is not None:
        return member.failed
    dead = float(member.dead.double().mean())
    member.sae.group = SOLO
    return Trained(member.sae.cpu().requires_grad_(False), member.curves, dead)


def _fit(module: SaeModule, stream: StepStream, run: Run) -> None:
    """Let Lightning turn the remaining steps; errors of the training name the last good checkpoint."""
    settings, checkpoints = run.settings, run.checkpoints
    with _quiet_lightning(), tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            accelerator=settings.device,
            devices=1 if settings.device == "cpu" else [torch.cuda.current_device()],
            plugins=[LightningEnvironment()],  # the processes are ours (`group.py`), whoever started them
            max_epochs=1,
            logger=[] if run.wandb is None else run.wandb.loggers,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=scratch,
        )
        try:
            trainer.fit(module, train_dataloaders=DataLoader(stream, batch_size=None))
        except DataError as error:
            step = latest_step(checkpoints)
            good = f"last good checkpoint: step {step}" if step is not None else "no checkpoint was written yet"
            place = f"{error.where}; {good}" if error.where else good
            raise DataError(error.problem, where=place, fix=error.fix) from error
        except (StopError, SystemExit) as error:  # Lightning makes an exit of signals that it sees between steps
            if not run.interruption.requested:
                raise KeyboardInterrupt from error  # one that was raised and not sent; the caller must see it as it is
            run.interruption.stop()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says about loaders without workers, devices that are not used, and its tips."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in zip(loggers, levels):
            item.setLevel(level)
