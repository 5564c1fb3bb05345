"""The training run: initialise or resume, let Lightning turn the steps, validate, report, save."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from plmsae.errors import DataError, UserError
from plmsae.progress import Progress
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Dictionary
from plmsae.training.center import starting_center
from plmsae.training.checkpoint import latest_checkpoint, latest_step, save_checkpoint
from plmsae.training.data import BatchSource, StepStream, check_state, rows
from plmsae.training.metrics import ReconstructionMetrics
from plmsae.training.module import SaeModule
from plmsae.training.resampling import resample
from plmsae.training.settings import TrainingSettings

logger = logging.getLogger("plmsae")
# A reconstruction this many times worse than at the start (or than the mean) does not come back.
DIVERGED = 10.0


@dataclass(frozen=True)
class Trained:
    """The end of a training.

    Attributes:
        sae: The SAE, on the CPU, for rows of unit mean squared norm; its threshold, if it has one for all latents, is
            calibrated on the held-out rows of the last look.
        curves: One row per look: step, tokens, loss, fvu, l0, dead_fraction, aux_loss, valid_fvu, learning_rate,
            and, if there is one, the penalty's weight.
        dead_fraction: Latents that were silent for the last `dead_after_tokens` training tokens.
    """

    sae: SparseAutoencoder
    curves: list[dict[str, float]]
    dead_fraction: float


class _Run:
    """What happens after each step."""

    def __init__(
        self,
        settings: TrainingSettings,
        source: BatchSource,
        valid: BatchSource,
        variance: float,
        checkpoints: Path,
    ) -> None:
        self.settings, self.source, self.valid = settings, source, valid
        self.variance, self.checkpoints = variance, checkpoints
        self.curves: list[dict[str, float]] = []
        self.progress: Progress | None = None

    def after_step(self, module: SaeModule) -> None:
        """Report, look and save where a step is due for it."""
        step, settings = module.num_steps_done, self.settings
        last = step == settings.num_steps
        look = last or step % settings.validate_every == 0
        save = last or step % settings.checkpoint_every == 0
        if look or save:
            module.check_finite()
        if look:
            self._look(module)
        if step in settings.resample_steps:
            self._resample(module)
        if self.progress is not None:
            row = self.curves[-1] if self.curves else {}
            shown = {name: row[name] for name in ("fvu", "l0", "dead_fraction") if row}
            self.progress.update(settings.batch_size, **shown)
        if save:
            info = {"curves": self.curves, "variance": self.variance, "source": dict(self.source.state())}
            save_checkpoint(self.checkpoints, module.checkpoint(info))

    def _resample(self, module: SaeModule) -> None:
        dead = module.dead.nonzero().flatten()
        if len(dead) and isinstance(module.sae, Dictionary):
            # Of the step alone, so that a resumed run draws alike.
            generator = torch.Generator().manual_seed(self.settings.seed + module.num_steps_done)
            resample(module.sae, self.source, dead, self.settings.num_resample_rows, generator)
            module.forget(dead)

    def _look(self, module: SaeModule) -> None:
        *sums, num_steps = module.window.tolist()
        loss, error, aux, active = (total / num_steps for total in sums)
        fvu = error / self.variance
        first = self.curves[0]["fvu"] if self.curves else fvu
        if fvu > DIVERGED * max(1.0, first):
            raise DataError(
                f"the training diverged: FVU is {fvu:.3g} at step {module.num_steps_done}",
                where=f"learning rate {self.settings.learning_rate:.3g}",
                fix="lower train_sae.learning_rate or lengthen train_sae.warmup_steps",
            )
        if module.sae.calibrated:
            held_out = list(rows(self.valid, self.settings.num_valid_rows))
            module.sae.calibrate(torch.cat(held_out).to(self.settings.device))
        metrics = ReconstructionMetrics(module.sae.config.d_model, module.sae.config.dictionary_size)
        for x in rows(self.valid, self.settings.num_valid_rows):
            metrics.update(module.sae, x.to(self.settings.device))
        row = {
            "step": module.num_steps_done,
            "tokens": module.num_tokens_done,
            "loss": loss,
            "fvu": fvu,
            "l0": active,
            "dead_fraction": float(module.dead.double().mean()),
            "aux_loss": aux,
            "valid_fvu": float(metrics.compute()["fvu"]),
            "learning_rate": module.optimizers().param_groups[0]["lr"],
        }
        if module.penalty is not None:
            row["penalty"] = module.penalty
        self.curves.append(row)
        module.window.zero_()


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
    """Train an SAE, or finish the training that `checkpoints` holds the start of.

    Args:
        config: The SAE; its normaliser says what `source` was divided by.
        kernel: `auto` or `reference`.
        source: Training rows of unit mean squared norm, in batches of `settings.batch_size`.
        valid: Held-out rows, scaled alike.
        settings: How to train.
        checkpoints: Folder for checkpoints of exactly this training.
        num_workers: Threads that make batches ahead; see `StepStream`.

    Raises:
        UserError: The normaliser works per token, or the checkpoint is of a training that got other batches, e.g. among
            another number of processes.
        DataError: Rows that are not finite or do not vary; a training that diverged. The message names the last
            good checkpoint.
    """
    if config.per_token:
        raise UserError(
            f"the normaliser {dict(config.normaliser)} scales every token by itself; a training takes rows divided by "
            "one number",
            where="normaliser",
            fix="train with the kind rms",
        )
    sae = build(config, seed=settings.seed)
    sae.kernel = kernel
    checkpoint = latest_checkpoint(checkpoints)
    if checkpoint is None:
        variance = _initialise(sae, source, settings)
    else:
        check_state(checkpoint.info["source"], source.state(), str(checkpoints))
        variance = float(checkpoint.info["variance"])
    run = _Run(settings, source, valid, variance, checkpoints)
    module = SaeModule(sae.to(settings.device), settings, run.after_step)
    if checkpoint is not None:
        run.curves = list(checkpoint.info["curves"])
        module.restore(checkpoint)
        logger.info("train_sae resumes after step %d of %d", checkpoint.step, settings.num_steps)
    if module.num_steps_done < settings.num_steps:
        total = settings.num_steps * settings.batch_size
        with Progress("train_sae", total, "tokens", done=module.num_tokens_done) as progress:
            run.progress = progress
            stream = StepStream(source, module.num_steps_done, settings.num_steps, num_workers)
            _fit(module, stream, settings, checkpoints)
    dead = float(module.dead.double().mean())
    return Trained(module.sae.cpu().requires_grad_(False), run.curves, dead)


def _initialise(sae: SparseAutoencoder, source: BatchSource, settings: TrainingSettings) -> float:
    """Set the starting weights, with `b_dec` at a centre of the first rows; returns their variance."""
    sample = torch.cat(list(rows(source, settings.num_init_rows)))
    variance = float((sample.double() - sample.double().mean(0)).square().sum(1).mean())
    if not variance > 0:
        raise DataError(
            f"the first {len(sample)} activation rows are all the same",
            fix="extract activations of more sequences: dvc repro --force extract_activations",
        )
    center = starting_center(sample[: settings.num_center_rows], settings.center)
    sae.initialise(torch.Generator().manual_seed(settings.seed), center)
    return variance


def _fit(module: SaeModule, stream: StepStream, settings: TrainingSettings, checkpoints: Path) -> None:
    """Let Lightning turn the remaining steps; errors of the training name the last good checkpoint."""
    with _quiet_lightning(), tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            accelerator=settings.device,
            devices=1,
            max_steps=stream.last - stream.first,
            max_epochs=-1,
            logger=False,
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
        except SystemExit as error:
            raise KeyboardInterrupt from error  # Lightning turns Ctrl-C into an exit; the caller must see it as it is


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
