"""Read a protein file, choose proteins, cluster them by homology, split them, write the tables that travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from plmsae.errors import DataError, UserError
from plmsae.params import Params
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult


class IngestParams(Params):
    """Parameters of `ingest`."""

    source: str = Field(
        "data/swissprot.tsv.gz",
        min_length=1,
        description="Protein file, a path, s3://BUCKET/KEY or https://...: UniProt TSV, flat text or JSON, FASTA, "
        "text; gzip or not",
    )
    source_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Hex sha256 that the file must have; null takes any (a Kubeflow task must name it: its cache does "
        "not look at bytes)",
    )
    source_member: str | None = Field(
        None, min_length=1, description="File to read if `source` is a tar archive, e.g. uniprot_sprot.dat.gz"
    )
    format: Literal["auto", "uniprot_tsv", "uniprot_text", "uniprot_json", "fasta", "text"] = Field(
        "auto",
        description="Format of the file; `auto` tells it by content. `uniprot_text` is UniProt's flat text (.dat), "
        "`uniprot_json` that of rest.uniprot.org or JSON Lines, `text` one sequence per line",
    )
    source_name: str = Field("", description="Where the proteins come from, for the record, e.g. UniProtKB/Swiss-Prot")
    release: str = Field(
        "",
        description="Release of the source, for the record, e.g. 2025_04. Where UniProt's RELEASE.metalink lies beside "
        "the file, it must be that of the list; empty takes it from there",
    )
    licence: str = Field("", description="Licence of the source, for the record, e.g. CC BY 4.0")
    mode: Literal["proteins", "corpus"] = Field(
        "proteins",
        description="`proteins`: annotated ones, all in memory, clustered and split by homology. `corpus`: a file of "
        "any size such as UniRef50, streamed; a seeded subset without annotations, in work units",
    )
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
        "kinds of annotations they show per residue. Of a corpus: number of training sequences, a smaller subset being "
        "inside a larger one",
    )
    held_out_size: int = Field(
        10_000,
        ge=1,
        description="Corpus: number of sequences in each of validation and test (for the change of the loss)",
    )
    held_out_relatives: Literal["keep", "drop"] = Field(
        "keep",
        description="Corpus: training sequences that resemble a held-out one (by cluster_identity and "
        "cluster_coverage): keep them, as the papers did, or drop them",
    )
    unit_size: int = Field(1000, ge=1, description="Corpus: sequences of a work unit, one row group of the table each")
    exclude: str | None = Field(
        None,
        min_length=1,
        description="Corpus: file of evaluation proteins, of any format and place that `source` takes, that the corpus "
        "must not hold: neither their accessions nor their sequences",
    )
    exclude_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Hex sha256 of `exclude`; required with it"
    )
    exclude_relatives: bool = Field(
        True, description="Also exclude what resembles one of them, by cluster_identity and cluster_coverage"
    )
    alphafold: bool = Field(
        False, description="Bring the model of every protein from AlphaFold DB and write structures.parquet"
    )
    alphafold_url: str = Field(
        "https://alphafold.ebi.ac.uk/api", min_length=1, description="Address of AlphaFold DB's API"
    )
    alphafold_version: int | None = Field(
        None, ge=1, description="Version of its models; null takes the latest and records it"
    )
    structures: str | None = Field(
        None,
        min_length=1,
        description="Folder (or tar archive: a path, s3://..., https://...) of PDB and mmCIF files, mapped to the "
        "proteins and checked by sequence",
    )
    structures_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Hex sha256 of `structures`; required with it"
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
        wrong = (
            {
                "long_sequences": self.long_sequences != "drop",
                "require_annotations": self.require_annotations,
                "duplicate_sequences": self.duplicate_sequences != "drop",
                "alphafold": self.alphafold,
                "structures": self.structures is not None,
            }
            if self.mode == "corpus"
            else {"exclude": self.exclude is not None}
        )
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(f"{name} = {getattr(self, name)!r} does not go with mode = {self.mode!r}")
        return self


STAGE = Stage(
    id="ingest",
    summary="Read FASTA, text or UniProt's formats; choose, cluster by homology and split the proteins",
    params=IngestParams,
    kind="sequences",
    run="plmsae.stages.ingest:run",
    code=("artifacts", "proteins"),
    source_files=("source",),
    optional_files=("exclude", "structures"),
    knobs=("source", "source_sha256", "seed"),
    resources=Resources(cpu=2, memory_gib=4),
    resumable=True,
)

_STATE_FOLDER = 1  # of a checkpoint folder's parents: what is there outlives a run
_LENGTHS = ("empty sequence", "too short", "too long")
_DROPPED = (*_LENGTHS, "not annotated", "duplicate sequence")


def run(context: StageContext) -> StageResult:
    """Write `sequences.parquet`, `annotations.parquet`, `dropped.tsv` and `source.json`.

    With structures also `structures.parquet`, `structures.tsv` and `structure_mismatches.tsv`; of a corpus also
    `units.tsv`.

    Raises:
        UserError: A file does not exist, or MMseqs2 is missing.
        DataError: A file is malformed (the message names line and accession) or of another release, nothing is left,
            too little is left, or a split is empty.
        TryAgainError: AlphaFold DB cannot be reached.
    """
    from plmsae.artifacts.metalink import release_of

    params: IngestParams = context.params
    release = release_of(context.sources["source"])
    if release and params.release not in ("", release):
        raise DataError(
            f"'{context.sources['source'].name}' is of release {release}, not {params.release}",
            where="ingest.release",
            fix=f"set it to {release} (or leave it empty), or take the file of the release that was meant",
        )
    path = _file_to_read(context)
    if params.mode == "corpus":
        return _ingest_corpus(context, path, release)
    return _ingest_proteins(context, path, release)


def _ingest_proteins(context: StageContext, path: Path, release: str) -> StageResult:
    from plmsae.artifacts.atomic import write_text
    from plmsae.proteins import tables
    from plmsae.proteins.alphafold import AlphaFold
    from plmsae.proteins.clusters import cluster_sequences
    from plmsae.proteins.formats import detect_format, read_proteins
    from plmsae.proteins.rows import build_rows
    from plmsae.proteins.selection import Selection
    from plmsae.proteins.split import SPLITS, assign_splits
    from plmsae.proteins.structure_sources import write_structures

    params: IngestParams = context.params
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
    _write_source(context, path, release, file_format, selection.num_seen)
    summary = _summary(metrics, path.name)
    if params.alphafold or params.structures:
        found = write_structures(
            context.output,
            {protein.accession: protein.sequence for protein in proteins},
            files=context.sources.get("structures"),
            work=context.checkpoints / "structures",
            alphafold=AlphaFold(
                context.checkpoints.parents[_STATE_FOLDER] / "sources" / "alphafold",
                base_url=params.alphafold_url,
                version=params.alphafold_version,
            )
            if params.alphafold
            else None,
        )
        metrics |= found
        summary += (
            f" {found['num_proteins_with_structure']:,} proteins have a structure (see `structures.tsv`); "
            f"{found['num_structure_mismatches']:,} of {found['num_structure_residues']:,} residues differ from the "
            "sequence (see `structure_mismatches.tsv`)."
        )
    return StageResult(metrics, summary)


def _ingest_corpus(context: StageContext, path: Path, release: str) -> StageResult:
    from plmsae.proteins import tables
    from plmsae.proteins.corpus import CorpusSelection, CorpusSettings
    from plmsae.proteins.corpus_tables import write_corpus
    from plmsae.proteins.exclusion import Exclusion
    from plmsae.proteins.formats import detect_format, read_proteins
    from plmsae.proteins.split import SPLITS

    params: IngestParams = context.params
    file_format = detect_format(path) if params.format == "auto" else params.format
    alike = {
        "identity": params.cluster_identity,
        "coverage": params.cluster_coverage,
        "sensitivity": params.cluster_sensitivity,
    }
    work = context.checkpoints / "corpus"
    excluded = context.sources.get("exclude")
    exclusion = (
        Exclusion(excluded, work / "excluded", relatives=params.exclude_relatives, **alike) if excluded else None
    )
    selection = CorpusSelection(
        lambda: read_proteins(path, file_format),
        work,
        CorpusSettings(
            seed=params.seed,
            min_residues=params.min_residues,
            max_residues=params.max_residues,
            num_train=params.max_proteins,
            num_held_out=params.held_out_size,
            drop_held_out_relatives=params.held_out_relatives == "drop",
            **alike,
        ),
        exclusion,
    )
    writer, counts = write_corpus(context.output, selection.outcomes(), params.unit_size)
    tables.write_annotations(context.output, {name: [] for name in tables.ANNOTATIONS_SCHEMA.names})
    metrics = {
        "num_records": selection.num_records,
        **{f"num_dropped_{kind.replace(' ', '_')}": selection.num_dropped[kind] for kind in _LENGTHS},
        **{f"num_dropped_{kind.replace(' ', '_').replace('-', '_')}": number for kind, number in counts.items()},
        "num_evaluation_proteins": exclusion.num_proteins if exclusion else 0,
        "num_sequences": sum(writer.num_proteins.values()),
        "num_residues": sum(writer.num_residues.values()),
        "num_units": writer.num_units,
        **{f"num_proteins_{split}": writer.num_proteins[split] for split in SPLITS},
        **{f"num_residues_{split}": writer.num_residues[split] for split in SPLITS},
    }
    _write_source(context, path, release, file_format, selection.num_records)
    num_unfit = sum(selection.num_dropped.values())
    summary = (
        f"{metrics['num_sequences']:,} sequences ({metrics['num_residues']:,} residues) of the "
        f"{metrics['num_records']:,} of `{path.name}`: {metrics['num_proteins_train']:,} for training, "
        f"{metrics['num_proteins_valid']:,} for validation, {metrics['num_proteins_test']:,} for test, in "
        f"{metrics['num_units']:,} work units (`units.tsv`). {num_unfit:,} do not have {params.min_residues} to "
        f"{params.max_residues} residues. Met on the way and left out (`dropped.tsv`): "
        f"{', '.join(f'{number:,} {kind}' for kind, number in counts.items())}."
    )
    return StageResult(metrics, summary)


def _file_to_read(context: StageContext) -> Path:
    """The file of proteins: the source, or the member of an archive that it is."""
    from plmsae.artifacts.archive import extract_member, is_archive

    params: IngestParams = context.params
    path = context.sources["source"]
    if params.source_member is not None:
        return extract_member(path, params.source_member, context.checkpoints / "member")
    if is_archive(path):
        raise UserError(
            f"'{path.name}' is an archive",
            where="ingest.source_member",
            fix="name the file in it that is to be read, e.g. uniprot_sprot.dat.gz",
        )
    return path


def _write_source(context: StageContext, path: Path, release: str, file_format: str, num_records: int) -> None:
    from plmsae.artifacts.atomic import write_text
    from plmsae.artifacts.checksums import sha256_file
    from plmsae.proteins import tables
    from plmsae.proteins.uniprot import feature_columns

    params: IngestParams = context.params
    source = {
        "source": params.source_name,
        "release": params.release or release,
        "licence": params.licence,
        "file": path.name,
        "format": file_format,
        "feature_columns": feature_columns(path) if file_format == "uniprot_tsv" else [],
        "sha256": sha256_file(context.sources["source"]),
        "num_records": num_records,
    }
    write_text(context.output / tables.SOURCE_FILE, json.dumps(source, indent=1, sort_keys=True) + "\n")


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
