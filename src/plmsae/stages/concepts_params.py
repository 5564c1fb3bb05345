"""Parameters of `evaluate@concepts`."""

from __future__ import annotations

from pydantic import Field, field_validator

from plmsae.params import Params
from plmsae.stages.evaluation_params import EvaluationParams, ascending


class DerivedParams(Params):
    """One derived concept: the ends of an annotation type's instances, or those near another type's."""

    of: str = Field(description="Annotation type or concept, `Helix` or `Domain: SH3`.")
    first: int | None = Field(None, ge=1, le=1000, description="Its first so many residues.")
    last: int | None = Field(None, ge=1, le=1000, description="Its last so many residues.")
    near: str | None = Field(None, description="Those near this type or concept, `Binding site`.")
    within: int | None = Field(None, ge=0, le=100_000, description="At most so many residues apart in sequence.")


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
    derived: list[DerivedParams] = Field(
        [],
        description="Concepts that annotations imply, reported apart: [{of: Helix, first: 3}, {of: Helix, last: 3}, "
        "{of: Beta strand, near: Binding site, within: 5}] (docs/definitions.md).",
    )
    interplm_table: str | None = Field(
        None,
        description="UniProt's TSV that ingest read: report the numbers of InterPLM's own code as well, its defects "
        "included (docs/how-to/interplm-compat.md).",
    )
    interplm_table_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Hex sha256 of `interplm_table`; required with it."
    )
    interplm_min_instances: int = Field(
        100, ge=1, description="InterPLM's min_required_instances: occurrences that a subtype needs to be a concept."
    )
    interplm_min_residues: int = Field(
        1500, ge=0, description="Its min_aa_per_concept: a concept with more labelled residues is scored."
    )
    interplm_min_domains: int = Field(
        25, ge=0, description="Its min_domains_per_concept: one with more annotations is scored, too."
    )
    interplm_normalised: bool = Field(
        False, description="Divide by the latents' maxima first, which its code means to do and does not."
    )

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        return ascending("thresholds", value)

    @field_validator("derived")
    @classmethod
    def _derived(cls, value: list[DerivedParams]) -> list[DerivedParams]:
        if value:
            from plmsae.evaluation.derived_concepts import parse

            parse([one.model_dump() for one in value])
        return value
