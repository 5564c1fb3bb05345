"""Check what `ingest` wrote against expectations; stop if a rule is broken, and leave a report to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from plmsae.params import Params
from plmsae.stages.spec import Input, Resources, Stage, StageContext, StageResult

if TYPE_CHECKING:
    from plmsae.validation.rules import Finding

    Checked = tuple[list[Finding], dict[str, int], dict[str, dict[str, int]]]

FAILED_REPORT = Path(".plmsae/failed/validate/report.html")


class ValidateParams(Params):
    """Parameters of `validate`."""

    min_proteins: int = Field(1, ge=1, description="Least number of proteins in each of train, valid and test")
    residue_facts: float = Field(
        0.95,
        ge=0.0,
        le=1.0,
        description="Least fraction of features on the residue that their kind calls for (disulfides on C, signal "
        "peptides at residue 1, ...); below it is a warning",
    )
    warnings_as_errors: bool = Field(False, description="Also stop at rules of severity warning")
    num_examples: int = Field(5, ge=1, le=100, description="How many offending rows the report shows per rule")


STAGE = Stage(
    id="validate",
    summary="Check sequences, annotations and splits against expectations; write a report",
    params=ValidateParams,
    kind="report",
    run="plmsae.stages.validate:run",
    code=("artifacts", "proteins", "validation"),
    inputs=(Input("sequences", "sequences", "ingest"),),
    report="report.html",
    resources=Resources(cpu=1, memory_gib=4),
)


def run(context: StageContext) -> StageResult:
    """Write `report.html` and `results.json`.

    Raises:
        DataError: A critical rule is broken. The message names table, column, rule, counts and examples; the report
            is in `.plmsae/failed/validate/` of the working folder.
    """
    import json

    from plmsae.artifacts.atomic import write_text
    from plmsae.validation.report import outcome_of, render_report
    from plmsae.validation.verdict import failures, require

    params: ValidateParams = context.params
    ingest = context.manifests["sequences"].params
    findings, facts, counts = _check_corpus(context) if ingest.get("mode") == "corpus" else _check_tables(context)
    outcomes = [outcome_of(finding) for finding in findings]
    metrics = {
        "num_rules": len(findings),
        "num_rules_failed": outcomes.count("failed"),
        "num_warnings": outcomes.count("warned"),
        "num_sequences_checked": facts.pop("sequences"),
        "num_annotations_checked": facts["annotations"],
    }
    report = render_report(
        "Proteins: validation report",
        f"{ingest['source_name'] or ingest['source']} as ingest wrote it",
        facts,
        findings,
        counts=counts,
    )
    failed_report = context.root / FAILED_REPORT
    failed_report.unlink(missing_ok=True)
    if failures(findings, warnings_as_errors=params.warnings_as_errors):
        write_text(failed_report, report)
    require(
        findings,
        where=f"report: {failed_report}",
        fix="look at the report, mend the input file (or ingest's parameters) and run again: dvc repro",
        warnings_as_errors=params.warnings_as_errors,
    )
    write_text(context.output / "report.html", report)
    write_text(
        context.output / "results.json", json.dumps([finding.as_json() for finding in findings], indent=1) + "\n"
    )
    warned = [finding.rule.name for finding, outcome in zip(findings, outcomes, strict=True) if outcome == "warned"]
    return StageResult(
        metrics,
        f"{outcomes.count('passed')} of {len(findings)} rules hold over {metrics['num_sequences_checked']:,} sequences "
        f"and {metrics['num_annotations_checked']:,} annotations; none that must hold is broken. "
        + (f"Warnings: {', '.join(warned)}." if warned else "No warnings.")
        + " See `report.html`.",
    )


def _check_tables(context: StageContext) -> Checked:
    """Findings, facts and counts of the tables of annotated proteins, which fit into memory."""
    from plmsae.proteins.split import SPLITS
    from plmsae.proteins.tables import read_annotations, read_sequences
    from plmsae.validation.proteins import check_proteins

    params: ValidateParams = context.params
    ingest = context.manifests["sequences"].params
    sequences = read_sequences(context.inputs["sequences"])
    annotations = read_annotations(context.inputs["sequences"])
    findings = check_proteins(
        sequences,
        annotations,
        # Windows of one long protein may each be shorter than a whole protein has to be.
        min_residues=1 if ingest["long_sequences"] == "window" else ingest["min_residues"],
        max_residues=ingest["max_residues"],
        valid_fraction=ingest["valid_fraction"],
        test_fraction=ingest["test_fraction"],
        min_proteins=params.min_proteins,
        residue_facts=params.residue_facts,
        num_examples=params.num_examples,
    )
    facts = {
        "sequences": len(sequences),
        "proteins": sequences["accession"].nunique(),
        "residues": int(sequences["length"].sum()),
        "annotations": len(annotations),
        "annotation types": annotations["type"].nunique(),
        "homology clusters": sequences["cluster"].nunique(),
        **{f"proteins, {split}": sequences["accession"][sequences["split"] == split].nunique() for split in SPLITS},
    }
    by_type = {str(name): int(count) for name, count in annotations["type"].value_counts().items()}
    lengths = Counter(sequences["length"].tolist())
    return findings, facts, {"Annotations by type": by_type, "Sequences by length": _by_length(lengths)}


def _check_corpus(context: StageContext) -> Checked:
    """Findings, facts and counts of a corpus, portion by portion."""
    from plmsae.proteins.split import SPLITS
    from plmsae.validation.corpus import check_corpus

    params: ValidateParams = context.params
    ingest = context.manifests["sequences"].params
    check = check_corpus(
        context.inputs["sequences"],
        min_residues=ingest["min_residues"],
        max_residues=ingest["max_residues"],
        held_out_size=ingest["held_out_size"],
        min_proteins=params.min_proteins,
        num_examples=params.num_examples,
    )
    facts = {
        "sequences": check.num_sequences,
        "proteins": check.num_sequences,
        "residues": check.num_residues,
        "annotations": 0,
        **{f"proteins, {split}": check.num_proteins[split] for split in SPLITS},
    }
    return check.findings, facts, {"Sequences by length": _by_length(check.lengths)}


def _by_length(lengths: Mapping[int, int], width: int = 100) -> dict[str, int]:
    """`301-400` -> number of rows of so many residues; no bin between the first and the last is left out."""
    counts: Counter[int] = Counter()
    for length, number in lengths.items():
        counts[(length - 1) // width] += number
    return {
        f"{place * width + 1}-{(place + 1) * width} residues": counts[place]
        for place in range(min(counts, default=0), max(counts, default=-1) + 1)
    }
