"""The features verb: files in, tables out, nothing half-written."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pytest

import plmsae
from plmsae.cli import main
from plmsae.registry.register import register
from tests.registry.outputs import small_sae, write_outputs

NAME = "plmsae.esm_small.layer3.topk"
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture
def folder(root: Path) -> Path:
    """A SAE folder, the current one holding it."""
    write_outputs(root)
    return root / "outputs" / "train_sae"


def test_a_sequence_as_csv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", SEQUENCE, "--model", str(folder)]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False)
    expected = plmsae.features(SEQUENCE, small_sae())
    assert list(table.columns) == list(expected.columns)
    assert table["latent"].tolist() == expected["latent"].tolist()
    assert table["position"].min() == 1
    assert table["position"].max() == len(SEQUENCE)


def test_json_and_files(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", SEQUENCE, "--model", str(folder), "--json", "--top", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["residue"] for row in rows] == list(SEQUENCE)
    fasta = root / "two.fasta.gz"
    fasta.write_bytes(gzip.compress(f">sp|P1|X\n{SEQUENCE}\n>P2 second\nMKV\n".encode()))
    assert (
        main(["features", str(fasta), "--model", str(folder), "--output", "out/table.parquet", "--format", "parquet"])
        == 0
    )
    table = pd.read_parquet(root / "out" / "table.parquet")
    assert table["accession"].unique().tolist() == ["P1", "P2"]
    assert "2 proteins" in capsys.readouterr().out
    for form in ("csv", "json"):
        assert (
            main(["features", str(fasta), "--model", str(folder), "--output", f"out/t.{form}", "--format", form]) == 0
        )
    assert len(pd.read_csv(root / "out" / "t.csv")) == len(table)
    assert len(json.loads((root / "out" / "t.json").read_text())) == len(table)
    assert sorted(path.name for path in (root / "out").iterdir()) == ["t.csv", "t.json", "table.parquet"]


def test_the_only_champion_is_the_default(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register(write_outputs(root), root)
    assert main(["features", SEQUENCE]) == 2
    assert "no SAE is champion yet" in capsys.readouterr().err
    assert main(["promote", NAME, "1"]) == 0
    capsys.readouterr()
    assert main(["features", SEQUENCE, "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(SEQUENCE) + 1


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("MKTJ", 3, "position 4"),
        ("", 3, "query"),
        ("missing.fasta", 2, "file 'missing.fasta' does not exist"),
        ("empty.fasta", 3, "the file is empty"),
        ("twice.fasta", 3, "accession 'P1' stands twice"),
        ("illegal.fasta", 3, "illegal residue '1' at position 3 of 'P1'"),
        ("cut.fasta.gz", 3, "truncated"),
    ],
)
def test_bad_input_names_its_place_and_writes_nothing(
    argument: str, code: int, message: str, folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "empty.fasta").touch()
    (root / "twice.fasta").write_text(">P1\nMKV\n>P1\nMKV\n")
    (root / "illegal.fasta").write_text(">P1\nMK1V\n")
    (root / "cut.fasta.gz").write_bytes(gzip.compress(b">P1\n" + b"MKVLAT" * 400 + b"\n")[:-9])
    before = sorted(root.iterdir())
    assert main(["features", argument, "--model", str(folder), "--output", "table.csv"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(root.iterdir()) == before


def test_parquet_needs_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", SEQUENCE, "--model", str(folder), "--format", "parquet"]) == 2
    assert "--output" in capsys.readouterr().err
