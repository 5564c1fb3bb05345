"""Stages `evaluate@...`: one per evaluation in `plmsae.evaluation`, all with the same inputs."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, field_validator

from plmsae.params import Params
from plmsae.stages.spec import Input, Plot, Resources, Stage, StageContext, StageResult


class EvaluationParams(Params):
    """What every evaluation takes."""

    num_resamples: int = Field(1000, ge=1, le=1_000_000, description="Bootstrap resamples, whole proteins.")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Coverage of the intervals.")
    max_tokens: int = Field(4096, ge=16, le=1_048_576, description="Tokens that go through the model at once.")
    threads: int = Field(2, ge=1, le=256, description="Batches that run at once, on one core each.")
    seed: int = Field(0, ge=0, lt=2**53, description="Seed of subset, masking and bootstrap.")


class FidelityParams(EvaluationParams):
    """Parameters of `evaluate@fidelity`."""

    max_proteins: int | None = Field(
        200, ge=1, description="Size of the seeded subset of the test proteins; null takes all."
    )
    masked_share: float = Field(
        0.15, gt=0.0, le=1.0, description="Share of each sequence's residues that the masked protocol masks."
    )
    error_term: bool = Field(
        False, description="Also measure the reconstruction plus its error: a check that must cost nothing."
    )


class ConceptsParams(EvaluationParams):
    """Parameters of `evaluate@concepts`."""

    max_proteins: int | None = Field(
        None, ge=1, description="Size of the seeded subset of the validation and of the test proteins; null takes all."
    )
    min_instances: int = Field(
        25,
        ge=1,
        description="Annotations that a concept needs in each of validation and test to be scored (InterPLM: 25).",
    )
    min_proteins: int = Field(5, ge=1, description="Proteins with such an annotation that it needs in each of them.")
    thresholds: list[float] = Field(
        [0.0, 0.15, 0.5, 0.6, 0.8],
        min_length=1,
        max_length=32,
        description="Ascending thresholds on activations divided by the unit's maximum; active is above (InterPLM).",
    )
    concepts_per_latent: int = Field(3, ge=1, description="Best concepts listed for each latent in latents.parquet.")

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value[0] < 0 or value[-1] >= 1 or any(low >= high for low, high in pairwise(value)):
            raise ValueError(f"thresholds must ascend from at least 0 to below 1, not {value}")
        return value


_INPUTS = (
    Input("sequences", "sequences", "ingest"),
    Input("activations", "activations", "extract_activations"),
    Input("sae", "sae", "train_sae"),
)
_CODE = ("activations", "artifacts", "evaluation", "figures.py", "plms", "proteins", "saes")

STAGES = (
    Stage(
        id="evaluate@fidelity",
        summary="Measure what the model loses when the SAE's reconstruction replaces its hidden state",
        params=FidelityParams,
        inputs=_INPUTS,
        kind="result",
        run="plmsae.stages.evaluate:run_fidelity",
        code=_CODE,
        resources=Resources(cpu=4, memory_gib=8),
        tracked=True,
        plots=(
            Plot(
                file="cross_entropy.csv",
                x="hidden_state",
                y=("masked", "unmasked"),
                title="Cross-entropy by replaced hidden state",
            ),
        ),
    ),
    Stage(
        id="evaluate@concepts",
        summary="Find the Swiss-Prot concepts that single latents predict, beside neurons and the residue letter",
        params=ConceptsParams,
        inputs=_INPUTS,
        kind="result",
        run="plmsae.stages.evaluate:run_concepts",
        code=_CODE,
        resources=Resources(cpu=4, memory_gib=16),
        tracked=True,
        plots=(
            Plot(
                file="f1_by_rank.csv",
                x="rank",
                y=("sae", "neurons", "residue"),
                title="Concept F1 from best to worst",
            ),
        ),
    ),
)


def run_fidelity(context: StageContext) -> StageResult:
    """Write `per_sequence.parquet`, `fidelity.csv`, `cross_entropy.csv` and `figures/fidelity.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store.
        DataError: A corrupted input, or an empty test split.
    """
    return _run("fidelity", context)


def run_concepts(context: StageContext) -> StageResult:
    """Write `concepts`, `latents` (Parquet and CSV), `left_out.csv`, `f1_by_rank.csv` and `figures/concepts.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store.
        DataError: A corrupted input, an empty split, or an annotation outside its sequence.
    """
    return _run("concepts", context)


def _run(name: str, context: StageContext) -> StageResult:
    import torch

    from plmsae.evaluation import evaluation
    from plmsae.evaluation.inputs import Inputs

    torch.set_num_threads(context.params.threads)
    inputs = Inputs.load(
        context.inputs["sequences"], context.inputs["activations"], context.inputs["sae"], root=context.root
    )
    outcome = evaluation(name)(inputs, context.output, **context.params.model_dump())
    return StageResult(metrics=outcome.metrics, summary=outcome.summary)
