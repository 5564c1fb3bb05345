from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import pyarrow.parquet as pq

from tests.data.conftest import ROOT, Dvc


def test_a_fresh_clone_gets_the_data_from_the_remote_inside_the_repository(checkout: Path, dvc: Dvc) -> None:
    dvc("pull", "data.dvc")
    data = checkout / "data"
    listed = dict(reversed(line.split("  ")) for line in (data / "SHA256SUMS").read_text().splitlines())
    present = {path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert present == listed.keys()
    for name, digest in listed.items():
        assert hashlib.sha256((data / name).read_bytes()).hexdigest() == digest, name

    with gzip.open(data / "swissprot.tsv.gz", "rt", encoding="utf-8", newline="") as handle:
        entries = list(csv.DictReader(handle, delimiter="\t"))
    assert len(entries) == 11122
    assert {entry["Reviewed"] for entry in entries} == {"reviewed"}
    assert max(int(entry["Length"]) for entry in entries) <= 1022
    assert len(list((data / "structures").iterdir())) == 20
    atoms = pq.read_table(data / "ca_coords.parquet", columns=["accession", "structure_id"])
    assert len(atoms["structure_id"].unique()) == len(atoms["accession"].unique()) == 259

    with (data / "structures.tsv").open(encoding="utf-8") as handle:
        index = list(csv.DictReader(handle, delimiter="\t"))
    known = {entry["Entry"] for entry in entries}
    covering = [row for row in index if row["accession"] in known and float(row["coverage"]) > 0.7]
    assert len(covering) == 38
    assert "**only 38 of them cover more than 70 %" in (data / "README.md").read_text().replace("\n", " ")
    assert "CC BY 4.0" in (data / "README.md").read_text()


def test_the_remote_is_inside_the_repository_and_needs_no_network() -> None:
    config = (ROOT / ".dvc" / "config").read_text()
    assert "url = ../demo/dvc-remote" in config
    assert "://" not in config
    assert "analytics = false" in config
