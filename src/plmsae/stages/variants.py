"""The stages `extract_activations` and `train_sae` once more with something changed: another model, other layers.

What a variant makes lies with the checkpoints of the stage that asked for it, complete or not at all: after a kill the
next run goes on where this one stopped, and ends in the same bytes.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.manifest import MANIFEST_NAME, Manifest, list_files, manifest_sha256, verify, write_manifest
from plmsae.errors import DataError, UserError
from plmsae.params import Params, canonical_json, validate
from plmsae.stages import extract_activations, train_sae
from plmsae.stages.extract_activations import ExtractActivationsParams
from plmsae.stages.extract_activations import run as extract
from plmsae.stages.spec import ChildRun, Stage, StageContext, StageResult
from plmsae.stages.sweep import SweepParams
from plmsae.stages.train_sae import run as train
from plmsae.training.parameters import TrainSaeParams

MEMBERS = "members"


@dataclass(frozen=True)
class Recipe:
    """How an SAE and its activations were made.

    Attributes:
        extraction: Parameters of the activations.
        training: Parameters of the SAE.
    """

    extraction: ExtractActivationsParams
    training: TrainSaeParams

    @classmethod
    def of(cls, context: StageContext) -> Recipe:
        """Read from the manifests of the inputs `activations` and `sae`.

        Raises:
            UserError: The SAE is not an output of `train_sae` or `sweep`, or was trained while the PLM ran.
        """
        extraction = validate(
            ExtractActivationsParams, context.manifests["activations"].params, section="extract_activations"
        )
        training = _training(context.manifests["sae"], context.inputs["sae"])
        if training.sequences is not None:
            raise UserError(
                "the SAE was trained on activations that were not stored: an equal training cannot be made here",
                where=f"{context.inputs['sae']} (train_sae.sequences)",
                fix="train it on stored activations: train_sae.sequences null",
            )
        return cls(extraction, training)

    def extraction_of(self, plm: str, revision: str | None, layers: list[int], hook: str) -> ExtractActivationsParams:
        """The same extraction from another model or of other layers.

        Args:
            plm: Name of the model.
            revision: Its revision; None where the name says it all.
            layers: At least one.
            hook: Hook of all of them.
        """
        changes: dict[str, Any] = {
            "plm": plm,
            "plm_revision": revision,
            "layer": layers[0],
            "hook": hook,
            "also": [{"layer": layer, "hook": hook} for layer in layers[1:]],
            "share": None,
            "shared": None,
        }
        return ExtractActivationsParams.model_validate({**self.extraction.model_dump(), **changes})

    def training_of(self, layer: int, hook: str, *, weights: int = 0) -> TrainSaeParams:
        """The same training on the activations of a place, on this machine alone.

        Args:
            layer: Layer of the activations.
            hook: Their hook.
            weights: Added to the seed of the initial weights; the batches stay the same. Dictionaries that started
                from the same weights match for that reason alone.
        """
        changes = {"layer": layer, "hook": hook, "num_nodes": 1, "wandb_project": None}
        if weights:
            seed, order = self.training.seed, self.training.order_seed
            changes |= {"seed": (seed + weights) % 2**53, "order_seed": seed if order is None else order}
        return TrainSaeParams.model_validate({**self.training.model_dump(), **changes})


def _training(manifest: Manifest, folder: Path) -> TrainSaeParams:
    if manifest.stage == "train_sae":
        return validate(TrainSaeParams, manifest.params, section="train_sae")
    if manifest.stage == "sweep":
        with (folder / "members.csv").open(newline="", encoding="utf-8") as handle:
            chosen = next(row["member"] for row in csv.DictReader(handle) if row["chosen"] == "1")
        return validate(SweepParams, manifest.params, section="sweep").members()[chosen]
    raise UserError(
        f"the SAE is an output of '{manifest.stage}', which does not say how to train it again",
        where=str(folder),
        fix="pass an output of train_sae or sweep",
    )


@dataclass(frozen=True)
class Failure:
    """A variant that could not be made, e.g. because its training diverged.

    Attributes:
        reason: Why.
    """

    reason: str


def attempted(context: StageContext, name: str, make: Callable[..., Path], *arguments: Any) -> Path | Failure:
    """What `make` returns, or why the data do not allow it; a failure is remembered like a result.

    Args:
        context: Of the stage that asks.
        name: Unique name of the variant.
        make: Makes its SAE, from the context and the arguments.
        arguments: See `make`.
    """
    note = context.checkpoints / f"{name}.failed"
    if note.is_file():
        return Failure(note.read_text(encoding="utf-8"))
    try:
        return make(context, *arguments)
    except DataError as error:
        write_text(note, error.problem)
        return Failure(error.problem)


def extracted(context: StageContext, params: ExtractActivationsParams, name: str) -> Path:
    """Folder of activations of the proteins of the input `sequences`.

    Args:
        context: Of the stage that asks.
        params: Of `extract_activations`.
        name: Unique name below the checkpoints.

    Raises:
        UserError: See `extract_activations.run`.
        DataError: Likewise.
        TryAgainError: Likewise.
    """
    return _made(context, extract_activations.STAGE, extract, params, {"sequences": context.inputs["sequences"]}, name)


def trained(context: StageContext, params: TrainSaeParams, activations: Path, name: str) -> Path:
    """Folder of an SAE, as `train_sae` writes it.

    Args:
        context: Of the stage that asks.
        params: Of `train_sae`.
        activations: Output folder of an extraction.
        name: Unique name below the checkpoints.

    Raises:
        UserError: See `train_sae.run`.
        DataError: Likewise.
        TryAgainError: Likewise.
    """
    return _made(context, train_sae.STAGE, train, params, {"activations": activations}, name)


def _made(
    context: StageContext,
    stage: Stage,
    run: Callable[[StageContext], StageResult],
    params: Params,
    inputs: Mapping[str, Path],
    name: str,
) -> Path:
    final = context.checkpoints / name
    if final.is_dir():
        try:
            verify(final)
            return final
        except DataError:  # the disk lost what had been written
            shutil.rmtree(final)
    draft, work = context.checkpoints / f"{name}.draft", context.checkpoints / f"{name}.checkpoints"
    shutil.rmtree(draft, ignore_errors=True)
    for folder in (draft, work):
        folder.mkdir(parents=True, exist_ok=True)
    known = {context.inputs[port]: manifest for port, manifest in context.manifests.items()}
    own = StageContext(
        params=params,
        inputs=inputs,
        manifests={port: known[folder] for port, folder in inputs.items() if folder in known},
        output=draft,
        checkpoints=work,
        sources={},
        root=context.root,
    )
    result = run(own)
    wrong = [key for key, value in result.metrics.items() if not math.isfinite(value)]
    if wrong:
        raise DataError(f"metric '{wrong[0]}' of '{stage.id}' is {result.metrics[wrong[0]]}")
    write_text(draft / "metrics.json", canonical_json(result.metrics) + "\n")
    write_text(draft / "summary.md", result.summary.strip() + "\n")
    manifest = Manifest(
        stage=stage.id,
        kind=stage.kind,
        params=params.model_dump(mode="json"),
        inputs={port: manifest_sha256(folder) for port, folder in inputs.items()},
        source_files={},
        environment={},
        files=list_files(draft),
    )
    write_manifest(draft, manifest)
    draft.rename(final)
    shutil.rmtree(work, ignore_errors=True)
    return final


def keep(made: Path, output: Path, name: str) -> None:
    """Copy what was trained into the output, below `members/`."""
    shutil.copytree(made, output / MEMBERS / name, ignore=shutil.ignore_patterns(MANIFEST_NAME), dirs_exist_ok=True)


def child(params: Params, made: Path | Failure, name: str, metrics: Mapping[str, float | int]) -> ChildRun:
    """A variant as a run that is tracked below the stage's.

    Args:
        params: Of its training.
        made: Its folder, or why there is none.
        name: Its folder below `members/`.
        metrics: What it scored.
    """
    if isinstance(made, Failure):
        return ChildRun(params.model_dump(mode="json"), {}, None, made.reason)
    return ChildRun(params.model_dump(mode="json"), metrics, f"{MEMBERS}/{name}")
