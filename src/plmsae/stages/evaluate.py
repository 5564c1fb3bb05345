"""Stages `evaluate@...`: one per evaluation in `plmsae.evaluation`, all with the same inputs."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from plmsae.stages.concepts_params import ConceptsParams
from plmsae.stages.evaluation_params import (
    AbsorptionParams,
    ClusteringParams,
    EvaluationParams,
    PatternsParams,
    ProbesParams,
    ascending,
)
from plmsae.stages.spec import Input, Pipeline, Plot, Resources, Stage, StageContext, StageResult
from plmsae.stages.variant_entries import STAGES as _TRAINING


class FidelityParams(EvaluationParams):
    """Parameters of `evaluate@fidelity`."""

    max_proteins: int | None = Field(
        200, ge=1, description="Size of the seeded subset of the test proteins; null takes all."
    )
    masked_share: float = Field(
        0.15, gt=0.0, le=1.0, description="Share of each sequence's residues that the masked protocol masks."
    )
    single_mask_residues: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Residues of each sequence that are also masked one at a time, each a forward pass over a copy of "
        "the sequence; 0: none. A causal PLM has neither this nor the masked protocol.",
    )
    error_term: bool = Field(
        False, description="Also measure the reconstruction plus its error: a check that must cost nothing."
    )


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


def _entry(
    name: str,
    summary: str,
    params: type[EvaluationParams],
    *,
    pipeline: Pipeline = "train",
    memory_gib: int = 16,
    optional_files: tuple[str, ...] = (),
    plots: tuple[Plot, ...] = (),
) -> Stage:
    """The declaration of an evaluation; its work function is `run_<name>`."""
    return Stage(
        id=f"evaluate@{name}",
        summary=summary,
        params=params,
        inputs=(
            Input("sequences", "sequences", "ingest"),
            Input("activations", "activations", "extract_activations"),
            Input("sae", "sae", "train_sae"),
        ),
        pipeline=pipeline,
        kind="result",
        run=f"plmsae.stages.evaluate:run_{name}",
        code=("activations", "artifacts", "evaluation", "figures.py", "plms", "proteins", "saes"),
        optional_files=optional_files,
        resources=Resources(cpu=4, memory_gib=memory_gib),
        plots=plots,
        tracked=True,
    )


STAGES = (
    _entry(
        "fidelity",
        "Measure what the model loses when the SAE's reconstruction replaces its hidden state",
        FidelityParams,
        memory_gib=8,
        plots=(
            Plot(
                file="cross_entropy.csv",
                x="hidden_state",
                y=("masked", "unmasked"),
                title="Cross-entropy by replaced hidden state",
            ),
        ),
    ),
    _entry(
        "concepts",
        "Find the Swiss-Prot concepts that single latents predict, beside neurons and the residue letter",
        ConceptsParams,
        optional_files=("interplm_table",),
        plots=(
            Plot(
                file="f1_by_rank.csv",
                x="rank",
                y=("sae", "neurons", "residue"),
                title="Concept F1 from best to worst",
            ),
        ),
    ),
    _entry(
        "baselines",
        "Compare the SAE with neurons, PCA, ICA and random directions by one protocol",
        BaselinesParams,
        plots=(
            Plot(
                file="fvu_by_budget.csv",
                x="active",
                y=("sae", "pca", "ica", "neurons", "random"),
                title="FVU by number of active units",
            ),
        ),
    ),
    _entry(
        "amortisation",
        "Compare the encoder's codes with sparse coding on its own decoder",
        AmortisationParams,
        memory_gib=8,
    ),
    _entry(
        "probes",
        "Fit logistic probes on single latents, on all of them, and on what they are compared with",
        ProbesParams,
        pipeline="evaluate",
        optional_files=("labels",),
    ),
    _entry(
        "patterns",
        "Classify every latent's activation pattern, and find latents specific to a protein family",
        PatternsParams,
        pipeline="evaluate",
        optional_files=("labels",),
    ),
    _entry(
        "clustering",
        "Test whether latents cluster in sequence and in structure",
        ClusteringParams,
        pipeline="evaluate",
    ),
    _entry(
        "absorption",
        "Measure how concepts are split over latents and absorbed by others",
        AbsorptionParams,
        pipeline="evaluate",
    ),
    *_TRAINING,
)


def run_fidelity(context: StageContext) -> StageResult:
    """Write `per_sequence.parquet`, `fidelity.csv`, `amino_acids.csv`, `cross_entropy.csv` and two figures.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store.
        DataError: A corrupted input, or an empty test split.
    """
    return _run("fidelity", context)


def run_concepts(context: StageContext) -> StageResult:
    """Write `concepts`, `latents` (Parquet and CSV), `left_out.csv`, `f1_by_rank.csv` and `figures/concepts.png`; with
    derived concepts also `derived` and `derived_left_out.csv`.

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


def run_probes(context: StageContext) -> StageResult:
    """Write `probes`, `units` (Parquet and CSV), `weights.parquet`, `accuracy.csv`, `left_out.csv` and the figure.

    Raises:
        UserError: An unknown task, a task of structures without structures, or an SAE of another PLM, layer or hook.
        DataError: A corrupted input, an empty split, or a wrong row of the label table.
    """
    return _run("probes", context)


def run_patterns(context: StageContext) -> StageResult:
    """Write `latents`, `families` (Parquet and CSV), `patterns.csv` and `figures/patterns.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook, or the label table is one of residues.
        DataError: A corrupted input, an empty split, or a wrong row of the label table.
    """
    return _run("patterns", context)


def run_clustering(context: StageContext) -> StageResult:
    """Write `latents` (Parquet and CSV), `pairs.parquet` and `figures/clustering.png`.

    Raises:
        UserError: Structure is asked for and `ingest` was run without, or the SAE is of another PLM, layer or hook.
        DataError: A corrupted input, an empty split, or no structure that covers enough of its protein.
    """
    return _run("clustering", context)


def run_absorption(context: StageContext) -> StageResult:
    """Write `concepts`, `unions`, `absorbers` (Parquet and CSV), `curve.csv` and `figures/absorption.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store.
        DataError: A corrupted input, an empty split, or an annotation outside its sequence.
    """
    return _run("absorption", context)


def _run(name: str, context: StageContext) -> StageResult:
    import torch

    from plmsae.evaluation import evaluation
    from plmsae.evaluation.inputs import Inputs

    torch.set_num_threads(context.params.threads)
    inputs = Inputs.load(
        context.inputs["sequences"], context.inputs["activations"], context.inputs["sae"], root=context.root
    )
    arguments = {key: value for key, value in context.params.model_dump().items() if not key.endswith("_sha256")}
    # A raw file is read where the wrapper has put it, its checksum verified.
    files = next(stage.optional_files for stage in STAGES if stage.entry == name)
    arguments |= {key: context.sources.get(key) for key in files}
    outcome = evaluation(name)(inputs, context.output, **arguments)
    return StageResult(metrics=outcome.metrics, summary=outcome.summary)
