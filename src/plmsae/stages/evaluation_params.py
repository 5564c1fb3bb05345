"""Parameters of the evaluations that run beside the default ones (`pipelines/evaluate`), and what all of them take."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from plmsae.params import Params

Split = Literal["train", "valid", "test"]


class EvaluationParams(Params):
    """What every evaluation takes."""

    num_resamples: int = Field(1000, ge=1, le=1_000_000, description="Bootstrap resamples, whole proteins.")
    confidence: float = Field(0.95, gt=0.0, lt=1.0, description="Coverage of the intervals.")
    max_tokens: int = Field(4096, ge=16, le=1_048_576, description="Tokens that go through the model at once.")
    threads: int = Field(2, ge=1, le=256, description="Batches that run at once, on one core each.")
    seed: int = Field(0, ge=0, lt=2**53, description="Seed of subset, masking and bootstrap.")


class ProbesParams(EvaluationParams):
    """Parameters of `evaluate@probes`."""

    tasks: list[str] = Field(
        ["secondary_structure", "topology", "ligand_binding", "localisation_signals"],
        description="What is asked: secondary_structure, structure, topology, ligand_binding, localisation_signals, "
        "interprot (docs/how-to/probes.md).",
    )
    labels: str | None = Field(
        None, description="Table of labels of your own, one more task: accession, position, residue, label."
    )
    labels_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Hex sha256 of `labels`; required with it."
    )
    unlisted: Literal["negative", "unknown"] = Field(
        "negative", description="What residues of a listed protein are that the table does not list."
    )
    max_proteins: int | None = Field(
        500, ge=1, description="Size of the seeded subset of the proteins of each split; null takes all."
    )
    min_positives: int = Field(25, ge=1, description="Positive examples that a class needs in each split.")
    min_proteins: int = Field(5, ge=1, description="Proteins with one that it needs in each split.")
    fit_residues: int = Field(200_000, ge=100, description="The most training residues that probes are fitted to.")
    all_unit_examples: int = Field(20_000, ge=100, description="The most of them that all-unit probes are fitted to.")
    strength: float = Field(1.0, gt=0.0, description="Inverse penalty C of one-unit probes.")
    strengths: list[float] = Field(
        [0.01, 0.1, 1.0],
        min_length=1,
        max_length=32,
        description="Ascending inverse penalties C of all-unit probes: the path that validation chooses from.",
    )
    penalty: Literal["l1", "l2"] = Field("l2", description="Penalty of all-unit probes.")
    scale: Literal["maximum", "raw"] = Field(
        "maximum", description="Activations are divided by their unit's maximum, or raw (InterProt)."
    )
    criterion: Literal["f1", "mcc", "balanced_accuracy"] = Field("mcc", description="What validation chooses by.")
    window: int = Field(4, ge=0, le=64, description="Residues to each side in the control that sees only letters.")
    units_per_class: int = Field(10, ge=1, description="Units listed for each class in units.parquet.")

    @field_validator("strengths")
    @classmethod
    def _path(cls, value: list[float]) -> list[float]:
        if value[0] <= 0 or any(low >= high for low, high in pairwise(value)):
            raise ValueError(f"strengths must ascend from above 0, not {value}")
        return value


class PatternsParams(EvaluationParams):
    """Parameters of `evaluate@patterns`."""

    splits: list[Split] = Field(["valid", "test"], min_length=1, description="Splits whose proteins are looked at.")
    max_proteins: int | None = Field(
        None, ge=1, description="Size of the seeded subset of the proteins of each split; null takes all."
    )
    families: Literal["domains", "clusters"] = Field(
        "domains", description="What a family is: a domain that Swiss-Prot names, or a homology cluster of `ingest`."
    )
    labels: str | None = Field(None, description="Table of families of your own, accession and label, instead.")
    labels_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Hex sha256 of `labels`; required with it."
    )
    min_members: int = Field(10, ge=1, description="Proteins that a family needs to be asked about (InterProt: 1).")
    variant: Literal["plmsae", "interprot"] = Field(
        "plmsae", description="Rules: ours, or those of InterProt's code (docs/definitions.md)."
    )
    seed: int = Field(42, ge=0, lt=2**53, description="Seed of subset, halves and bootstrap (InterProt: 42).")


class ClusteringParams(EvaluationParams):
    """Parameters of `evaluate@clustering`; the defaults are those of Simon and Zou 2024, with an exact null."""

    splits: list[Split] = Field(["valid", "test"], min_length=1, description="Splits whose proteins are looked at.")
    structure: bool | None = Field(
        None,
        description="Also look at neighbours in structure, on the proteins that have one; false: only in sequence, on "
        "all; null: in structure if `ingest` wrote structures.",
    )
    max_proteins: int | None = Field(
        None, ge=1, description="Size of the seeded subset of the proteins of each split; null takes all."
    )
    min_coverage: float = Field(
        1.0, gt=0.0, le=1.0, description="Share of a protein's residues that need coordinates; 1 as published."
    )
    threshold: float = Field(
        0.6, ge=0.0, lt=1.0, description="Normalised activation above which a latent counts on a protein."
    )
    min_proteins: int = Field(25, ge=2, description="Such proteins that a latent needs to be tested.")
    sampled_proteins: int = Field(100, ge=2, description="The most of them that are taken per latent.")
    window: int = Field(2, ge=1, le=100, description="Residues to either side that are neighbours in sequence.")
    radius: float = Field(6.0, gt=0.0, description="Distance of C-alpha atoms of neighbours in structure, in angstrom.")
    separations: list[int] = Field(
        [2, 6],
        min_length=1,
        max_length=8,
        description="Ascending distances in sequence that variants leave out of the structural set; the last one is "
        'used for "structural only".',
    )
    num_permutations: int | None = Field(
        None, ge=1, description="Permutations drawn per protein (published: 5); null takes their exact mean."
    )
    margin: float = Field(
        0.05, gt=0.0, lt=1.0, description="Largest effect in sequence that counts as none, as a share of the maximum."
    )
    alpha: float = Field(0.05, gt=0.0, lt=1.0, description="Level of the tests, after Bonferroni's correction.")

    @field_validator("separations")
    @classmethod
    def _separations(cls, value: list[int]) -> list[int]:
        if any(low >= high for low, high in pairwise([0, *value])):
            raise ValueError(f"separations must ascend from at least 1, not {value}")
        return value


class AbsorptionParams(EvaluationParams):
    """Parameters of `evaluate@absorption`."""

    max_proteins: int | None = Field(
        None, ge=1, description="Size of the seeded subset of the validation and of the test proteins; null takes all."
    )
    min_instances: int = Field(25, ge=1, description="Annotations that a concept needs in each of validation and test.")
    min_proteins: int = Field(5, ge=1, description="Proteins with such an annotation that it needs in each of them.")
    thresholds: list[float] = Field(
        [0.0, 0.15, 0.5, 0.6, 0.8],
        min_length=1,
        max_length=32,
        description="Ascending thresholds on activations divided by the latent's maximum; silent is at or below the "
        "lowest.",
    )
    max_latents: int = Field(8, ge=1, le=24, description="The most latents in a union that stands for a concept.")
    share: float = Field(0.95, gt=0.0, le=1.0, description="Share of the best union's F1 that is enough.")
    min_precision: float = Field(0.8, gt=0.0, le=1.0, description="Precision that an absorber needs on the concept.")
    max_share: float = Field(
        0.5, gt=0.0, le=1.0, description="Largest share of a concept's residues that a sub-class may be."
    )
    min_residues: int = Field(10, ge=1, description="Labelled validation residues that an absorber fires on.")

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: list[float], info: ValidationInfo) -> list[float]:
        return ascending(str(info.field_name), value)


def ascending(name: str, value: list[float]) -> list[float]:
    """The list itself, if it ascends in [0, 1).

    Raises:
        ValueError: It does not.
    """
    if value[0] < 0 or value[-1] >= 1 or any(low >= high for low, high in pairwise(value)):
        raise ValueError(f"{name} must ascend from at least 0 to below 1, not {value}")
    return value
