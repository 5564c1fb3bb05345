"""Entries of the suite `evaluate` that train SAEs of their own: on control models, and on other layers.

Declarations alone. What they run is in modules of their own, since those also need the training, which the other
entries do not depend on.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from plmsae.stages.evaluation_params import EvaluationParams, ascending
from plmsae.stages.spec import Input, Plot, Resources, Stage

Control = Literal["permuted", "random"]


class _ConceptParams(EvaluationParams):
    """How concepts are scored; the names and defaults are those of `evaluate@baselines`."""

    max_proteins: int | None = Field(
        300, ge=1, description="Size of the seeded subset of the validation and of the test proteins; null takes all."
    )
    min_instances: int = Field(
        25, ge=1, description="Annotations that a concept needs in each of validation and test to be scored."
    )
    min_proteins: int = Field(5, ge=1, description="Proteins with such an annotation that it needs in each of them.")
    thresholds: list[float] = Field(
        [0.0, 0.15, 0.5, 0.6, 0.8],
        min_length=1,
        max_length=32,
        description="Ascending thresholds on activations divided by the unit's maximum; active is above (InterPLM).",
    )

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: list[float], info: ValidationInfo) -> list[float]:
        return ascending(str(info.field_name), value)


class ControlsParams(_ConceptParams):
    """Parameters of `evaluate@controls`.

    Those that `evaluate@baselines` has too must be the same there: the results stand in one table.
    """

    controls: list[Control] = Field(
        ["permuted", "random"],
        min_length=1,
        description="Models that SAEs are trained on beside the trained one: permuted has the values of every "
        "parameter in random order, random the model's own initialisation (docs/how-to/plms.md).",
    )
    control_seed: int = Field(0, ge=0, lt=10**9, description="Seed of the controls' weights.")
    fit_rows: int | None = Field(
        65_536,
        ge=2,
        description="Training residues that all maxima are taken over; null: as many as the SAE's maxima in its file.",
    )

    @field_validator("controls")
    @classmethod
    def _different(cls, value: list[Control]) -> list[Control]:
        if len(set(value)) < len(value):
            raise ValueError(f"a control stands twice in {value}")
        return value


class LayersParams(_ConceptParams):
    """Parameters of `evaluate@layers`."""

    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="Ascending layers to train an SAE on, with the SAE's hook; null takes all. That of the SAE is used "
        "as it is.",
    )
    fidelity_proteins: int | None = Field(
        200, ge=1, description="Size of the seeded subset of the test proteins for fidelity; null takes all."
    )
    masked_share: float = Field(
        0.15, gt=0.0, le=1.0, description="Share of each sequence's residues that fidelity masks."
    )
    match_thresholds: list[float] = Field(
        [0.5, 0.7, 0.9],
        min_length=1,
        max_length=8,
        description="Ascending correlations (and cosines of atoms) from which latents of neighbouring layers match.",
    )

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (value[0] < 0 or any(low >= high for low, high in pairwise(value))):
            raise ValueError(f"layers must ascend from at least 0, not {value}")
        return value

    @field_validator("match_thresholds")
    @classmethod
    def _match_thresholds(cls, value: list[float]) -> list[float]:
        return ascending("match_thresholds", value)


_INPUTS = (
    Input("sequences", "sequences", "ingest"),
    Input("activations", "activations", "extract_activations"),
    Input("sae", "sae", "train_sae"),
)
_CODE = (
    "activations",
    "artifacts",
    "evaluation",
    "figures.py",
    "plms",
    "proteins",
    "saes",
    "stages/extract_activations.py",
    "stages/sweep.py",
    "stages/train_sae.py",
    "stages/variants.py",
    "training",
    "validation",
)
_RESOURCES = Resources(cpu=4, memory_gib=16, gpu=1, retry="gpu", timeout_hours=48)

STAGES = (
    Stage(
        id="evaluate@controls",
        summary="Train the same SAE on control models without trained weights and compare it with all baselines",
        params=ControlsParams,
        inputs=(*_INPUTS, Input("baselines", "result", "evaluate@baselines")),
        pipeline="evaluate",
        kind="result",
        run="plmsae.stages.evaluate_controls:run",
        code=(*_CODE, "stages/evaluate_controls.py"),
        resources=_RESOURCES,
        resumable=True,
        tracked=True,
        plots=(Plot("controls.csv", "method", ("mean_f1",), "Mean best F1 of the SAE, its controls and baselines"),),
    ),
    Stage(
        id="evaluate@layers",
        summary="Train the same SAE on every layer: reconstruction, fidelity, concepts and matching latents over depth",
        params=LayersParams,
        inputs=_INPUTS,
        pipeline="evaluate",
        kind="result",
        run="plmsae.stages.evaluate_layers:run",
        code=(*_CODE, "stages/evaluate_layers.py"),
        resources=_RESOURCES,
        resumable=True,
        tracked=True,
        plots=(
            Plot("layers.csv", "layer", ("fvu", "dead_fraction"), "FVU and dead share by layer"),
            Plot("layers.csv", "layer", ("mean_f1",), "Mean best F1 by layer"),
        ),
    ),
)
