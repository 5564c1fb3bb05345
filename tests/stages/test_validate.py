from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plmsae.artifacts.manifest import list_files, read_manifest, verify, write_manifest
from plmsae.errors import DataError
from plmsae.stages import ingest
from plmsae.stages.execute import execute
from plmsae.stages.validate import STAGE, ValidateParams

TINY = Path(__file__).parents[1] / "fixtures" / "swissprot_tiny.tsv.gz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    params = ingest.IngestParams(source=str(TINY), cluster_method="linclust", source_name="UniProtKB/Swiss-Prot")
    execute(ingest.STAGE, params, root=tmp_path)
    return tmp_path


def spoil(root: Path, table: str, column: str, row: int, value: object) -> None:
    """Change one cell of what ingest wrote, and its manifest, as a faulty ingest would have."""
    folder = root / "outputs" / "ingest"
    path = folder / f"{table}.parquet"
    old = pq.read_table(path)
    values = old[column].to_pylist()
    values[row] = value
    index = old.schema.get_field_index(column)
    pq.write_table(old.set_column(index, column, pa.array(values, old.schema.field(column).type)), path)
    write_manifest(folder, read_manifest(folder).model_copy(update={"files": list_files(folder)}))


def run(root: Path, **params: Any) -> dict[str, Any]:
    return dict(execute(STAGE, ValidateParams(**params), root=root).metrics)


def test_real_entries_pass_every_rule(root: Path) -> None:
    metrics = run(root)
    assert (metrics["num_rules_failed"], metrics["num_warnings"]) == (0, 0)
    assert (metrics["num_sequences_checked"], metrics["num_annotations_checked"]) == (118, 2495)
    folder = root / "outputs" / "validate"
    verify(folder)
    results = json.loads((folder / "results.json").read_text())
    assert len(results) == metrics["num_rules"]
    assert all(result["passed"] for result in results)
    bonds = next(result for result in results if result["rule"] == "disulfides_join_cysteines")
    assert bonds["num_checked"] > 30
    report = (folder / "report.html").read_text()
    assert "UniProtKB/Swiss-Prot" in report
    assert str(root) not in report
    first = (folder / "manifest.json").read_bytes()
    run(root)
    assert (folder / "manifest.json").read_bytes() == first


def test_a_broken_rule_stops_with_a_report_that_can_be_found(root: Path) -> None:
    run(root)
    good = (root / "outputs" / "validate" / "manifest.json").read_bytes()
    spoil(root, "annotations", "end", 7, 9999)
    with pytest.raises(DataError, match=r"table 'annotations', column 'end', rule 'ends_inside_sequence'") as error:
        run(root)
    report = root / ".plmsae" / "failed" / "validate" / "report.html"
    assert error.value.where == f"report: {report}"
    assert "ends_inside_sequence" in report.read_text()
    assert (root / "outputs" / "validate" / "manifest.json").read_bytes() == good

    execute(ingest.STAGE, ingest.IngestParams(source=str(TINY), cluster_method="linclust"), root=root)
    run(root)
    assert not report.exists()


def test_warnings_pass_unless_they_are_errors(root: Path) -> None:
    table = pq.read_table(root / "outputs" / "ingest" / "annotations.parquet").to_pandas()
    for row in table.index[table["type"] == "Initiator methionine"][:5]:
        spoil(root, "annotations", "start", row, 1)
        spoil(root, "annotations", "end", row, 2)
    assert run(root)["num_warnings"] == 1
    with pytest.raises(DataError, match="initiators_are_M1"):
        run(root, warnings_as_errors=True)


def test_too_few_proteins_in_a_split(root: Path) -> None:
    with pytest.raises(DataError, match=r"table 'splits', column 'num_proteins', rule 'split_filled'"):
        run(root, min_proteins=50)
