"""The scripts that made the committed data, on a small made-up source and on the demo data itself."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from pathlib import Path

from tests.data.conftest import ROOT, Dvc

FEATURES = ["Active site", "Helix", "Initiator methionine"]
COLUMNS = ["Entry", "Reviewed", "Organism", "Length", "Sequence", *FEATURES, "Source"]
INDEX = ["structure_id", "kind", "accession", "chain", "n_res", "uniprot_len", "coverage", "identity", "repo", "path"]


def write_table(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join("\t".join(row) for row in [columns, *rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def make_source(folder: Path) -> None:
    entry = ["reviewed", "Yeast (strain x)"]
    rows = [
        ["P2", *entry, "8", "MKTAYIAK", "", "HELIX 1..4", "", "biopython"],
        ["P1", *entry, "1022", "M" * 1022, "", "", "", "biopython"],
        ["P3", *entry, "1023", "M" * 1023, "", "", "", "biopython"],
        ["P4", "unreviewed", "Yeast", "8", "MKTAYIAK", "", "", "", "biopython"],
    ]
    write_table(folder / "A_swissprot/derived/swissprot_annotated_uniprot_style.tsv.gz", COLUMNS, rows)
    structures = folder / "C_structures"
    index = [
        ["P1__a", "pdb", "P1", "A", "900", "1022", "0.88", "1.0", "owner+one", "x"],
        ["P2__b", "pdb", "P2", "A", "8", "8", "1.0", "1.0", "owner+two", "x"],
        ["AF-P2", "afdb", "P2", "A", "5", "8", "0.6", "1.0", "owner+two", "x"],
        ["P9__c", "pdb", "P9", "A", "8", "8", "1.0", "1.0", "owner+two", "x"],
    ]
    write_table(structures / "structure_index.tsv", INDEX, index)
    (structures / "ca_coords.parquet").write_bytes(b"table")
    for name in ("pdb_chains/P1__a", "pdb_chains/P2__b", "afdb/AF-P2"):
        path = structures / f"{name}.pdb.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(name.encode(), mtime=12345))


def run_script(name: str, *arguments: Path | str) -> None:
    command = [sys.executable, "-m", f"scripts.demo_data.{name}", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def build(source: Path, output: Path) -> dict[str, bytes]:
    run_script("build", source, "--output", output)
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_the_demo_data_are_the_reviewed_entries_that_fit(tmp_path: Path) -> None:
    make_source(tmp_path / "source")
    files = build(tmp_path / "source", tmp_path / "one")
    rows = list(csv.DictReader(gzip.decompress(files["swissprot.tsv.gz"]).decode().splitlines(), delimiter="\t"))
    assert [row["Entry"] for row in rows] == ["P2", "P1"]
    assert {name for name in files if name.startswith("structures/")} == {
        "structures/P1__a.pdb.gz",
        "structures/P2__b.pdb.gz",
        "structures/AF-P2.pdb.gz",
    }
    assert gzip.decompress(files["structures/AF-P2.pdb.gz"]) == b"afdb/AF-P2"
    readme = files["README.md"].decode().replace("\n", " ")
    # P1 is covered to 88 % but has no annotation, so one structure covers an annotated entry.
    assert "only 3 belong to an entry" in readme
    assert "**only 1 of them cover more than 70 %" in readme
    assert "owner/two 3, owner/one 1" in readme


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    make_source(tmp_path / "source")
    assert build(tmp_path / "source", tmp_path / "one") == build(tmp_path / "source", tmp_path / "two")


def test_the_fixture_is_what_its_script_makes(checkout: Path, dvc: Dvc, tmp_path: Path) -> None:
    dvc("pull", "data.dvc")
    output = tmp_path / "tiny.tsv.gz"
    source = checkout / "data" / "swissprot.tsv.gz"
    run_script("tiny", "--source", source, "--output", output)
    fixture = ROOT / "tests" / "fixtures" / "swissprot_tiny.tsv.gz"
    assert gzip.decompress(output.read_bytes()) == gzip.decompress(fixture.read_bytes())
