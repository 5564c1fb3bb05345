"""Read a protein file, choose proteins, cluster them by homology, split them, write the tables that travel."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, model_validator

from plmsae.params import Params
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult


class IngestParams(Params):
    """Parameters of `ingest`."""

    source: str = Field(
        "data/swissprot.tsv.gz",
        min_length=1,
        description="Protein file, a path or s3://BUCKET/KEY: UniProt TSV, flat text or JSON, FASTA, text; gzip or not",
    )
    source_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Hex sha256 that the file must have; null takes any (a Kubeflow task must name it: its cache does "
        "not look at bytes)",
    )
    format: Literal["auto", "uniprot_tsv", "uniprot_text", "uniprot_json", "fasta", "text"] = Field(
        "auto",
        description="Format of the file; `auto` tells it by content. `uniprot_text` is UniProt's flat text (.dat), "
        "`uniprot_json` that of rest.uniprot.org or JSON Lines, `text` one sequence per line",
    )
    source_name: str = Field("", description="Where the proteins come from, for the record, e.g. UniProtKB/Swiss-Prot")
    release: str = Field("", description="Release of the source, for the record, e.g. 2025_04")
    licence: str = Field("", description="Licence of the source, for the record, e.g. CC BY 4.0")
    min_residues: int = Field(30, ge=1, description="Shorter sequences are dropped")
    max_residues: int = Field(1022, ge=8, description="The longest sequence that the protein LM takes (ESM-2: 1022)")
    long_sequences: Literal["drop", "crop", "window"] = Field(
        "drop",
        description="Sequences longer than max_residues: drop them, keep the first max_residues (crop), or cut them "
        "into windows that cover all of it",
    )
    window_overlap: int = Field(0, ge=0, description="Residues that neighbouring windows share")
    max_proteins: int | None = Field(
        None,
        ge=3,
        description="Size of the seeded subset; null takes all. Annotated proteins come first, the likelier the more "
        "kinds of annotations they show per residue",
    )
    require_annotations: bool = Field(False, description="Drop proteins without annotations")
    duplicate_sequences: Literal["keep", "drop"] = Field(
        "drop", description="Proteins with the very same sequence: keep all, or one"
    )
    cluster_method: Literal["search", "linclust"] = Field(
        "search",
        description="Homology clusters by an all-against-all search (for up to some 100,000 proteins) or by linclust "
        "(millions; misses distant pairs)",
    )
    cluster_identity: float = Field(0.3, ge=0.0, le=1.0, description="Least sequence identity within a cluster")
    cluster_coverage: float = Field(0.5, gt=0.0, le=1.0, description="Least fraction of a sequence that is aligned")
    cluster_sensitivity: float = Field(5.7, ge=1.0, le=7.5, description="MMseqs2's -s for `search`: more finds more")
    valid_fraction: float = Field(0.1, gt=0.0, lt=0.5, description="Expected fraction of the clusters in validation")
    test_fraction: float = Field(0.1, gt=0.0, lt=0.5, description="Expected fraction of the clusters in test")
    seed: int = Field(0, ge=0, lt=2**53, description="Seed of the subset and of the split")

    @model_validator(mode="after")
    def _consistent(self) -> IngestParams:
        if self.min_residues > self.max_residues:
            raise ValueError(f"min_residues = {self.min_residues} is more than max_residues = {self.max_residues}")
        if 2 * self.window_overlap > self.max_residues:
            raise ValueError(
                f"window_overlap = {self.window_overlap} is more than half of max_residues = {self.max_residues}"
            )
        return self


STAGE = Stage(
    id="ingest",
    summary="Read FASTA, text or UniProt's formats; choose, cluster by homology and split the proteins",
    params=IngestParams,
    kind="sequences",
    run="plmsae.stages.ingest:run",
    code=("artifacts", "proteins"),
    source_files=("source",),
    knobs=("source", "source_sha256", "seed"),
    resources=Resources(cpu=2, memory_gib=4),
)

_DROPPED = ("empty sequence", "too short", "too long", "not annotated", "duplicate sequence")


def run(context: StageContext) -> StageResult:
    """Write `sequences.parquet`, `annotations.parquet`, `dropped.tsv` and `source.json`.

    Raises:
        UserError: The file does not exist, or MMseqs2 is missing.
        DataError: The file is malformed (the message names line and accession), nothing is left, a split is empty.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.artifacts.checksums import sha256_file
    from plmsae.proteins import tables
    from plmsae.proteins.clusters import cluster_sequences
    from plmsae.proteins.formats import detect_format, read_proteins
    from plmsae.proteins.rows import build_rows
    from plmsae.proteins.selection import Selection
    from plmsae.proteins.split import SPLITS, assign_splits
    from plmsae.proteins.uniprot import feature_columns

    params: IngestParams = context.params
    path = context.sources["source"]
    file_format = detect_format(path) if params.format == "auto" else params.format
    selection = Selection(
        path,
        seed=params.seed,
        min_residues=params.min_residues,
        max_residues=params.max_residues if params.long_sequences == "drop" else None,
        require_annotations=params.require_annotations,
        duplicate_sequences=params.duplicate_sequences,
        max_proteins=params.max_proteins,
    )
    for protein in read_proteins(path, file_format):
        selection.offer(protein)
    proteins = selection.proteins()
    clusters = cluster_sequences(
        {protein.accession: protein.sequence for protein in proteins},
        folder=context.checkpoints / "mmseqs",
        method=params.cluster_method,
        identity=params.cluster_identity,
        coverage=params.cluster_coverage,
        sensitivity=params.cluster_sensitivity,
    )
    splits = assign_splits(
        clusters, seed=params.seed, valid_fraction=params.valid_fraction, test_fraction=params.test_fraction
    )
    sequences, annotations, num_merged = build_rows(
        proteins,
        clusters,
        splits,
        policy=params.long_sequences,
        max_residues=params.max_residues,
        overlap=params.window_overlap,
    )
    tables.write_sequences(context.output, sequences)
    tables.write_annotations(context.output, annotations)
    dropped = "".join(f"{accession}\t{reason}\n" for accession, reason in selection.dropped())
    write_text(context.output / tables.DROPPED_FILE, "accession\treason\n" + dropped)

    lengths = dict.fromkeys(SPLITS, 0)
    for split, length in zip(sequences["split"], sequences["length"], strict=True):
        lengths[split] += length  # type: ignore[index,operator]
    num_dropped = selection.num_dropped()
    metrics = {
        "num_records": selection.num_seen,
        "num_not_selected": selection.num_not_selected,
        **{f"num_dropped_{kind.replace(' ', '_')}": num_dropped.get(kind, 0) for kind in _DROPPED},
        "num_proteins": len(proteins),
        "num_sequences": len(sequences["accession"]),
        "num_residues": sum(lengths.values()),
        "num_annotations": len(annotations["accession"]),
        "num_annotation_types": len(set(annotations["type"])),
        "num_clusters": len(set(clusters.values())),
        "num_annotations_merged": num_merged,
        "num_annotations_unknown_position": sum(protein.num_unknown_positions for protein in proteins),
        "num_annotations_other_isoform": sum(protein.num_isoform_features for protein in proteins),
        "num_stops_removed": sum(protein.stop_removed for protein in proteins),
        **{f"num_proteins_{split}": sum(found == split for found in splits.values()) for split in SPLITS},
        **{f"num_residues_{split}": lengths[split] for split in SPLITS},
    }
    source = {
        "source": params.source_name,
        "release": params.release,
        "licence": params.licence,
        "file": path.name,
        "format": file_format,
        "feature_columns": feature_columns(path) if file_format == "uniprot_tsv" else [],
        "sha256": sha256_file(path),
        "num_records": selection.num_seen,
    }
    write_text(context.output / tables.SOURCE_FILE, json.dumps(source, indent=1, sort_keys=True) + "\n")
    return StageResult(metrics, _summary(metrics, path.name))


def _summary(metrics: dict[str, int], file: str) -> str:
    left_out = metrics["num_annotations_unknown_position"] + metrics["num_annotations_other_isoform"]
    num_dropped = sum(metrics[f"num_dropped_{kind.replace(' ', '_')}"] for kind in _DROPPED)
    return (
        f"{metrics['num_proteins']:,} of {metrics['num_records']:,} proteins of `{file}` ({metrics['num_residues']:,} "
        f"residues, {metrics['num_annotations']:,} annotations of {metrics['num_annotation_types']} types) in "
        f"{metrics['num_clusters']:,} homology clusters, none of which is in two splits: "
        f"{metrics['num_proteins_train']:,} proteins for training, {metrics['num_proteins_valid']:,} for validation, "
        f"{metrics['num_proteins_test']:,} for test. {num_dropped:,} were dropped (see `dropped.tsv`), "
        f"{metrics['num_not_selected']:,} are outside the subset. Left out: {left_out:,} annotations without a place "
        f"in the sequence and {metrics['num_annotations_merged']:,} that equal another; taken off: "
        f"{metrics['num_stops_removed']:,} final `*`."
    )
