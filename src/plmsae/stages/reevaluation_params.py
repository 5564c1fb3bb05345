"""Section `reevaluate` of `params.yaml`: what a re-evaluation measures, on what, and what counts as drift."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from plmsae.params import Params

REEVALUATE = "reevaluate"
NEWEST, RECORDED = "newest", "recorded"
# Stages that come before the evaluations, and the evaluations that need no training.
BEFORE = ("ingest", "validate", "extract_activations")
REPEATED = ("fidelity", "concepts", "baselines", "amortisation", "probes", "patterns", "clustering", "absorption")
REPEATS = (*BEFORE, *(f"evaluate@{name}" for name in REPEATED))
# What the numbers of `changes` and of `reevaluate` depend on.
CODE = (
    "activations",
    "artifacts",
    "evaluation",
    "figures.py",
    "plms",
    "registry",
    "saes",
    "stages/reevaluation.py",
    "stages/reevaluation_inputs.py",
    "stages/reevaluation_plan.py",
)
Tolerance = Annotated[float, Field(ge=0)]
Tolerances = dict[str, dict[str, Tolerance]]


class ReevaluateParams(Params):
    """Parameters of `plmsae reevaluate`, and of the stages `changes`, `reevaluate` and `verdict`."""

    model: str | None = Field(
        default=None,
        description="Registered SAE: models:/NAME@ALIAS or models:/NAME/VERSION; null takes the only champion. "
        "`plmsae reevaluate` is told by its argument.",
    )
    source: str | None = Field(
        default=None,
        description="Newest proteins, a path, s3:// or https://; null takes `ingest.source`. For any other file "
        "`ingest.source_sha256` and `ingest.release` do not count.",
    )
    evaluations: list[str] = Field(
        default=["fidelity", "concepts"],
        min_length=1,
        description="Evaluations that are repeated, each with its own section; `controls` and `layers` train SAEs "
        "and are not.",
    )
    more_is_better: Tolerances = Field(
        default={"fidelity": {"masked_loss_recovered_mean": 2.0}, "concepts": {"mean_f1_sae": 0.02}},
        description="Evaluation -> metric -> how much smaller than registered it may be. `masked_*` is `causal_*` for "
        "a causal PLM.",
    )
    less_is_better: Tolerances = Field(
        default={"fidelity": {"fvu": 0.01}},
        description="Evaluation -> metric -> how much larger than registered it may be.",
    )
    plm_revision: str = Field(
        default=NEWEST,
        min_length=1,
        description="Weights that the SAE is evaluated on: `newest` that its PLM's name stands for now, `recorded` "
        "that it was trained on, or a revision.",
    )
    min_pairs: int = Field(
        default=20, ge=2, description="Proteins or concepts measured both times that a paired comparison needs."
    )
    num_resamples: int = Field(default=1000, ge=1, le=1_000_000, description="Bootstrap resamples, whole pairs.")
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0, description="Coverage of the intervals of differences.")
    seed: int = Field(default=0, ge=0, lt=2**53, description="Seed of the bootstrap.")
    stages: dict[str, dict[str, Any]] = Field(
        default={},
        description="Stage -> parameters that are to differ from its own section, which gives the others. PLM, "
        "revision, layer and hook are those of the SAE.",
    )

    @field_validator("evaluations")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"evaluations stand twice in {value}")
        return value

    @model_validator(mode="after")
    def _measured(self) -> ReevaluateParams:
        for name in (*self.more_is_better, *self.less_is_better):
            if name not in self.evaluations:
                raise ValueError(f"'{name}' has a tolerance but is not among the evaluations {self.evaluations}")
        return self
