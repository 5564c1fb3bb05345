"""Hold one latent at a value inside the running model and measure what its predictions do about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from plmsae.params import Params
from plmsae.stages.spec import Input, Plot, Resources, Stage, StageContext, StageResult

CHOOSE = -1  # and not null: a number that may be null cannot be a field of the Kubeflow form


class SteerParams(Params):
    """Parameters of `steer`."""

    latent: int = Field(
        -1,
        ge=-1,
        description="Index of the latent; -1 takes the one that reaches half of its maximum on the most residues of "
        "the chosen proteins, among those active on at most a tenth of them (ties: the smaller index)",
    )
    clamp: float = Field(
        1.0,
        ge=-1000.0,
        le=1000.0,
        description="Value that the latent is held at, as a multiple of its maximum on training residues; 0 switches "
        "it off",
    )
    strength: float = Field(
        1.0, ge=0.0, le=1.0, description="Share of the way to that value; 0 leaves the model as it is, bit for bit"
    )
    accessions: list[str] = Field([], description="Proteins to steer; empty takes a seeded subset of the split")
    split: Literal["train", "valid", "test"] = Field("test", description="Split that the subset is taken from")
    max_proteins: int | None = Field(20, ge=1, description="Size of the subset; null takes all of the split")
    first_residue: int | None = Field(
        None, ge=1, description="First residue to edit, 1-based UniProt position; null starts at the first"
    )
    last_residue: int | None = Field(None, ge=1, description="Last residue to edit, included; null goes to the end")
    num_random_directions: int = Field(
        20, ge=1, le=10_000, description="Controls: random directions that move each residue by the same length"
    )
    num_top: int = Field(20, ge=1, description="Residues listed in top_residues.csv, by KL")
    num_resamples: int = Field(1000, ge=1, le=1_000_000, description="Bootstrap resamples, whole proteins")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Coverage of the intervals")
    max_tokens: int = Field(4096, ge=16, le=1_048_576, description="Tokens that go through the model at once")
    threads: int = Field(2, ge=1, le=256, description="Batches that run at once, on one core each")
    seed: int = Field(0, ge=0, lt=2**53, description="Seed of subset, random directions and bootstrap")

    @model_validator(mode="after")
    def _consistent(self) -> SteerParams:
        if self.last_residue is not None and (self.first_residue or 1) > self.last_residue:
            raise ValueError(f"first_residue = {self.first_residue} is after last_residue = {self.last_residue}")
        return self


STAGE = Stage(
    id="steer",
    summary="Hold one latent at a value in the running model and measure what its predictions do",
    params=SteerParams,
    inputs=(
        Input("sequences", "sequences", "ingest"),
        Input("activations", "activations", "extract_activations", optional=True),
        Input("sae", "sae", "train_sae"),
    ),
    kind="result",
    run="plmsae.stages.steer:run",
    code=("activations", "artifacts", "figures.py", "plms", "proteins", "saes", "steering"),
    resources=Resources(cpu=4, memory_gib=8),
    knobs=("latent", "strength"),
    tracked=True,
    plots=(
        Plot(
            file="amino_acids.csv",
            x="amino_acid",
            y=("change", "random_change"),
            title="Change of predicted amino acids under steering",
        ),
    ),
)


def run(context: StageContext) -> StageResult:
    """Write `residues.parquet`, `amino_acids.csv`, `substitutions.csv`, `top_residues.csv` and `figures/steer.png`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store; there is no such
            latent, it is dead, or there is no such protein or residue.
        DataError: A corrupted input, an empty split, or an SAE without a latent that fires.
    """
    import torch

    from plmsae.steering.inputs import chosen_rows, load_source
    from plmsae.steering.steer import steer

    params: SteerParams = context.params
    torch.set_num_threads(params.threads)
    source = load_source(context.inputs.get("activations"), context.inputs["sae"], root=context.root)
    rows = chosen_rows(
        context.inputs["sequences"],
        accessions=params.accessions,
        split=params.split,
        max_proteins=params.max_proteins,
        first_residue=params.first_residue,
        last_residue=params.last_residue,
        seed=params.seed,
    )
    outcome = steer(
        source,
        rows,
        context.output,
        latent=None if params.latent == CHOOSE else params.latent,
        clamp=params.clamp,
        strength=params.strength,
        num_random_directions=params.num_random_directions,
        num_top=params.num_top,
        num_resamples=params.num_resamples,
        confidence=params.confidence,
        max_tokens=params.max_tokens,
        threads=params.threads,
        seed=params.seed,
    )
    return StageResult(metrics=outcome.metrics, summary=outcome.summary)
