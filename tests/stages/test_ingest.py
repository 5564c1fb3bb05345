from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from plmsae.artifacts.manifest import verify
from plmsae.errors import DataError, PlmsaeError, UserError
from plmsae.params import validate
from plmsae.proteins.tables import read_annotations, read_sequences
from plmsae.stages.execute import execute
from plmsae.stages.ingest import STAGE, IngestParams

TINY = Path(__file__).parents[1] / "fixtures" / "swissprot_tiny.tsv.gz"


def run(root: Path, content: bytes, **params: Any) -> dict[str, Any]:
    """Ingest `content`; returns the metrics. linclust, as it starts in a moment and the choice is not tested here."""
    (root / "in.dat").write_bytes(content)
    settings = validate(IngestParams, {"source": "in.dat", "cluster_method": "linclust", **params}, section="ingest")
    return dict(execute(STAGE, settings, root=root).metrics)


def tables(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = root / "outputs" / "ingest"
    return read_sequences(folder), read_annotations(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("tiny")
    about = {"source_name": "UniProtKB/Swiss-Prot", "release": "mixed", "licence": "CC BY 4.0"}
    return root, run(root, TINY.read_bytes(), cluster_method="search", **about)


def test_golden_counts_of_the_fixture(tiny: tuple[Path, dict[str, Any]]) -> None:
    root, metrics = tiny
    expected = {
        "num_records": 120,
        "num_proteins": 118,
        "num_sequences": 118,
        "num_dropped_duplicate_sequence": 2,
        "num_dropped_too_short": 0,
        "num_not_selected": 0,
        "num_residues": 20659,
        "num_annotations": 2495,
        "num_annotation_types": 26,
        "num_clusters": 109,
        "num_proteins_train": 92,
        "num_proteins_valid": 14,
        "num_proteins_test": 12,
    }
    assert {name: metrics[name] for name in expected} == expected
    sequences, annotations = tables(root)
    assert sequences["length"].sum() == 20659
    assert len(annotations) == 2495
    assert sequences.groupby("split")["accession"].nunique().to_dict() == {"train": 92, "valid": 14, "test": 12}
    verify(root / "outputs" / "ingest")


def test_tables_hold_what_they_promise(tiny: tuple[Path, dict[str, Any]]) -> None:
    sequences, annotations = tables(tiny[0])
    assert sequences["accession"].is_monotonic_increasing
    assert (sequences.groupby("cluster")["split"].nunique() == 1).all()
    assert set(sequences["cluster"]) <= set(sequences["accession"])
    joined = annotations.merge(sequences, on=["accession", "offset"], validate="many_to_one")
    assert len(joined) == len(annotations)
    assert (joined["start"] >= 0).all()
    assert (joined["end"] <= joined["length"]).all()
    assert (joined["end"] > joined["start"]).all()
    phospho = joined[joined["note"] == "Phosphoserine"]
    assert len(phospho) > 50
    assert {row.sequence[row.start] for row in phospho.itertuples()} == {"S"}
    bonds = joined[joined["type"] == "Disulfide bond"]
    assert {row.sequence[row.start] + row.sequence[row.end - 1] for row in bonds.itertuples()} == {"CC"}


def test_source_and_dropped_files(tiny: tuple[Path, dict[str, Any]]) -> None:
    folder = tiny[0] / "outputs" / "ingest"
    source = json.loads((folder / "source.json").read_text())
    assert (source["source"], source["licence"], source["format"]) == (
        "UniProtKB/Swiss-Prot",
        "CC BY 4.0",
        "uniprot_tsv",
    )
    assert (source["file"], source["num_records"], len(source["feature_columns"])) == ("in.dat", 120, 26)
    lines = (folder / "dropped.tsv").read_text().splitlines()
    assert lines[0] == "accession\treason"
    assert len(lines) == 3
    assert all("\tduplicate sequence: the same as " in line for line in lines[1:])


def test_another_order_of_rows_gives_the_same_bytes(tmp_path: Path) -> None:
    header, *rows = gzip.decompress(TINY.read_bytes()).splitlines(keepends=True)
    shuffled = rows.copy()
    random.Random(4).shuffle(shuffled)
    found = []
    for name, order in (("a", rows), ("b", shuffled)):
        root = tmp_path / name
        root.mkdir()
        metrics = run(root, header + b"".join(order), max_proteins=60)
        files = {
            path.name: path.read_bytes()
            for path in (root / "outputs" / "ingest").iterdir()
            if path.name not in ("source.json", "manifest.json")  # they hold the sha256 of the file
        }
        found.append((metrics, files))
    assert found[0] == found[1]
    assert found[0][0]["num_proteins"] == 60
    assert found[0][0]["num_not_selected"] == 58


def test_fasta_and_text_give_the_same_proteins_without_annotations(tmp_path: Path) -> None:
    rows = pd.read_csv(TINY, sep="\t", dtype=str, keep_default_na=False)
    fasta = "".join(f">sp|{row.Entry}|X name\r\n{row.Sequence}*\r\n" for row in rows.itertuples()).encode()
    text = "\n".join(rows["Sequence"]).encode()
    by_format = {}
    for name, content in (("tsv", TINY.read_bytes()), ("fasta", gzip.compress(fasta)), ("text", text)):
        root = tmp_path / name
        root.mkdir()
        metrics = run(root, content)
        by_format[name] = (*tables(root), metrics)
    for name in ("fasta", "text"):
        sequences, annotations, metrics = by_format[name]
        assert sorted(sequences["sequence"]) == sorted(by_format["tsv"][0]["sequence"])
        assert len(annotations) == 0
        assert list(annotations.columns) == list(by_format["tsv"][1].columns)
        assert annotations["start"].dtype == by_format["tsv"][1]["start"].dtype
        assert metrics["num_stops_removed"] == (118 if name == "fasta" else 0)


def test_windows_cover_each_protein_in_one_split(tmp_path: Path) -> None:
    metrics = run(tmp_path, TINY.read_bytes(), max_residues=100, long_sequences="window", window_overlap=20)
    sequences, annotations = tables(tmp_path)
    originals = pd.read_csv(TINY, sep="\t", dtype=str, keep_default_na=False).set_index("Entry")["Sequence"]
    assert metrics["num_proteins"] == 118 < metrics["num_sequences"]
    assert (sequences.groupby("accession")["split"].nunique() == 1).all()
    for accession, rows in sequences.groupby("accession"):
        covered: set[int] = set()
        for row in rows.itertuples():
            assert originals[accession][row.offset : row.offset + row.length] == row.sequence
            covered.update(range(row.offset, row.offset + row.length))
        assert covered == set(range(len(originals[accession])))
    joined = annotations.merge(sequences, on=["accession", "offset"], validate="many_to_one")
    assert (joined["end"] <= joined["length"]).all()
    bonds = joined[joined["type"] == "Disulfide bond"]
    assert {row.sequence[row.start] + row.sequence[row.end - 1] for row in bonds.itertuples()} == {"CC"}


@pytest.mark.parametrize(("policy", "num_proteins", "longest"), [("drop", 9, 88), ("crop", 118, 100)])
def test_other_policies_for_long_sequences(tmp_path: Path, policy: str, num_proteins: int, longest: int) -> None:
    metrics = run(
        tmp_path,
        TINY.read_bytes(),
        max_residues=100,
        long_sequences=policy,
        valid_fraction=0.3,
        test_fraction=0.3,
        seed=1,
    )
    sequences, _ = tables(tmp_path)
    assert (metrics["num_proteins"], sequences["length"].max()) == (num_proteins, longest)
    assert metrics["num_dropped_too_long"] == (110 if policy == "drop" else 0)


PROTEIN = b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
HEADER = b"Entry\tLength\tSequence\tSite\n"


def rows(*cells: tuple[str, int, str]) -> bytes:
    return HEADER + b"".join(b"%s\t%d\t%s\t%s\n" % (a.encode(), n, PROTEIN, s.encode()) for a, n, s in cells)


@pytest.mark.parametrize(
    ("content", "problem", "where"),
    [
        (b"", "the file is empty", "in.dat"),
        (b"\n\n", "the file is empty", "in.dat"),
        (b">a\n" + PROTEIN + b"\n>a\n" + PROTEIN, "accession 'a' stands twice", "in.dat, lines 1 and 3"),
        (rows(("P1", 33, ""), ("P1", 33, "")), "accession 'P1' stands twice", "in.dat, lines 2 and 3"),
        (b">a\nMKTA\nYI8AK\n", "illegal residue '8' at position 7 of 'a'", "in.dat, line 3"),
        (rows(("P1", 33, "SITE 34")), "annotation SITE 34 of 'P1' is outside its sequence of 33", "line 2"),
        (rows(("P1", 32, "")), "'P1' has 33 residues but its Length is '32'", "line 2"),
        (rows(("P1", 33, "SITE x")), "the features cannot be read", "entry 'P1', column 'Site'"),
        (TINY.read_bytes()[:-5000], "truncated", "in.dat, after line"),
        (b"Entry\tSeq\nP1\tMK\n", "missing column 'Sequence'", "line 1"),
        (b">caf\xe9\nMK\n", "not UTF-8", "in.dat, line 1"),
        (b"ID   X\n", "the entry 'X' that starts in line 1 does not end with '//'", "at its end"),
        (b'{"results": [{"primaryAccession": "P1"', "the JSON ends too early", "line 1"),
        (b">a\n>b\nMKT\n", "no protein is left of 2 (1 empty sequence, 1 too short)", "in.dat"),
        (b">a\n" + PROTEIN + b"\n", "1 proteins form 1 homology clusters", None),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path: Path, content: bytes, problem: str, where: str | None) -> None:
    with pytest.raises(DataError) as error:
        run(tmp_path, content)
    assert problem in error.value.problem
    assert error.value.exit_code == 3
    assert error.value.fix
    if where:
        assert where in str(error.value.where)
    assert not (tmp_path / "outputs").exists()
    assert not any((tmp_path / ".plmsae" / "staging").iterdir())


@pytest.mark.parametrize(("name", "file_format"), [("txt", "uniprot_text"), ("json", "uniprot_json")])
def test_the_other_formats_of_uniprot_come_with_their_annotations(tmp_path: Path, name: str, file_format: str) -> None:
    content = (TINY.parent / f"uniprot_entries.{name}.gz").read_bytes()
    metrics = run(tmp_path, content, valid_fraction=0.3, test_fraction=0.3, seed=4)
    assert metrics["num_proteins"] == {"txt": 12, "json": 6}[name]
    assert metrics["num_annotations"] > 100
    assert metrics["num_annotations_unknown_position"] > 0
    source = json.loads((tmp_path / "outputs" / "ingest" / "source.json").read_text())
    assert source["format"] == file_format


def test_bad_input_leaves_the_output_of_before(tmp_path: Path) -> None:
    run(tmp_path, TINY.read_bytes())
    before = {path.name: path.read_bytes() for path in (tmp_path / "outputs" / "ingest").iterdir()}
    with pytest.raises(DataError):
        run(tmp_path, TINY.read_bytes()[:-5000])
    verify(tmp_path / "outputs" / "ingest")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "outputs" / "ingest").iterdir()}


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        execute(STAGE, IngestParams(source="data/none.tsv"), root=tmp_path)
    assert "dvc pull" in str(error.value.fix)


@pytest.mark.parametrize(
    ("params", "problem", "fix"),
    [
        ({"max_residue": 3}, "unknown parameter 'ingest.max_residue'", "did you mean 'max_residues'?"),
        ({"long_sequences": "cut"}, "'ingest.long_sequences' = 'cut'", "correct"),
        ({"max_residues": "1022"}, "'ingest.max_residues' = '1022'", "correct"),
        ({"min_residues": 50, "max_residues": 40}, "min_residues = 50 is more than max_residues = 40", "correct"),
        ({"window_overlap": 600}, "window_overlap = 600 is more than half", "correct"),
        ({"test_fraction": 0.0}, "'ingest.test_fraction' = 0.0", "correct"),
    ],
)
def test_bad_parameters(params: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(PlmsaeError) as error:
        validate(IngestParams, params, section="ingest")
    assert problem in error.value.problem
    assert fix in str(error.value.fix)
    assert error.value.exit_code == 2
