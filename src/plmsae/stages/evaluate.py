"""Stages `evaluate@...`: one per evaluation in `plmsae.evaluation`, all with the same inputs."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, ValidationInfo, field_validator

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
        return ascending("thresholds", value)


class BaselinesParams(EvaluationParams):
    """Parameters of `evaluate@baselines`."""

    max_proteins: int | None = Field(
        300, ge=1, description="Size of the seeded subset of the validation and of the test proteins; null takes all."
    )
    fit_rows: int | None = Field(
        65_536,
        ge=2,
        description="Training residues that baselines are fitted to and that all maxima, the SAE's too, are taken "
        "over; null: as many as the SAE's maxima in its file.",
    )
    ica_rows: int = Field(16_384, ge=2, description="The most of them that ICA is fitted to.")
    ica_components: int | None = Field(
        None, ge=1, description="Components of ICA; null: as many as dimensions. Its time grows with their cube."
    )
    ica_iterations: int = Field(
        50, ge=1, le=10_000, description="The most iterations of FastICA; the result says whether it had converged."
    )
    min_instances: int = Field(
        25,
        ge=1,
        description="Annotations that a concept needs in each of validation and test to be scored, and active "
        "annotated residues that a unit needs to have an effective number of concepts.",
    )
    min_proteins: int = Field(5, ge=1, description="Proteins with such an annotation, or such residues, that it needs.")
    thresholds: list[float] = Field(
        [0.0, 0.15, 0.5, 0.6, 0.8],
        min_length=1,
        max_length=32,
        description="Ascending thresholds on activations divided by the unit's maximum; active is above (InterPLM).",
    )
    f1_bounds: list[float] = Field(
        [0.1, 0.2, 0.3, 0.5],
        min_length=1,
        max_length=16,
        description="Ascending bounds: a unit has a concept if its F1 is above, on validation and on test, and above "
        "the residue letters' (InterPLM: 0.5).",
    )

    @field_validator("thresholds", "f1_bounds")
    @classmethod
    def _ascending(cls, value: list[float], info: ValidationInfo) -> list[float]:
        return ascending(str(info.field_name), value)


class AmortisationParams(EvaluationParams):
    """Parameters of `evaluate@amortisation`."""

    max_proteins: int | None = Field(
        100, ge=1, description="Size of the seeded subset of the test proteins; null takes all."
    )
    num_tokens: int = Field(
        256, ge=2, le=10_000_000, description="Residues, a seeded sample of all residues of these proteins."
    )
    penalty: float | None = Field(
        None,
        gt=0.0,
        description="Penalty lambda of the comparison at equal lambda (unit atoms, half the squared error); null: the "
        "one at which the optimum is as sparse as the encoder.",
    )
    tolerance: float = Field(
        1e-3, gt=0.0, lt=1.0, description="Duality gap at which a residue's optimum is found, as a share of F(0)."
    )
    max_iterations: int = Field(
        5000, ge=1, description="The most FISTA steps per residue; residues that need more are counted in the result."
    )


def ascending(name: str, value: list[float]) -> list[float]:
    """The list itself, if it ascends in [0, 1).

    Raises:
        ValueError: It does not.
    """
    if value[0] < 0 or value[-1] >= 1 or any(low >= high for low, high in pairwise(value)):
        raise ValueError(f"{name} must ascend from at least 0 to below 1, not {value}")
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
    Stage(
        id="evaluate@baselines",
        summary="Compare the SAE with neurons, PCA, ICA and random directions by one protocol",
        params=BaselinesParams,
        inputs=_INPUTS,
        kind="result",
        run="plmsae.stages.evaluate:run_baselines",
        code=_CODE,
        resources=Resources(cpu=4, memory_gib=16),
        tracked=True,
        plots=(
            Plot(
                file="fvu_by_budget.csv",
                x="active",
                y=("sae", "pca", "ica", "neurons", "random"),
                title="FVU by number of active units",
            ),
        ),
    ),
    Stage(
        id="evaluate@amortisation",
        summary="Compare the encoder's codes with sparse coding on its own decoder",
        params=AmortisationParams,
        inputs=_INPUTS,
        kind="result",
        run="plmsae.stages.evaluate:run_amortisation",
        code=_CODE,
        resources=Resources(cpu=4, memory_gib=8),
        tracked=True,
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


def run_baselines(context: StageContext) -> StageResult:
    """Write `concepts_by_method`, `fvu` (Parquet and CSV), `units.parquet`, `table.csv`, `figures/baselines.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store.
        DataError: A corrupted input, an empty split, or activations that a baseline cannot be fitted to.
    """
    return _run("baselines", context)


def run_amortisation(context: StageContext) -> StageResult:
    """Write `per_token.parquet`, `amortisation.csv`, `table.csv` and `figures/amortisation.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store.
        DataError: A corrupted input, an empty test split, or an encoder that fires on nothing.
    """
    return _run("amortisation", context)


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
