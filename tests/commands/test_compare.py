"""The compare verb: folders in, a table or JSON out, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from plmsae.cli import main
from plmsae.proteins.tables import write_annotations, write_sequences
from plmsae.proteins.uniprot import read_uniprot_tsv
from plmsae.saes import save
from tests.registry.outputs import small_sae
from tests.workspace import FIXTURE


@pytest.fixture
def folder(root: Path) -> Path:
    """Two SAE folders and an ingest output, the current folder holding them."""
    save(small_sae(), root / "first")
    save(small_sae(seed=1, dictionary_size=32, k=4, layer=2), root / "second")
    proteins = sorted(read_uniprot_tsv(FIXTURE), key=lambda each: len(each.sequence))[:12]
    ingest = root / "outputs" / "ingest"
    ingest.mkdir(parents=True)
    write_sequences(
        ingest,
        {
            "accession": [each.accession for each in proteins],
            "offset": [0] * 12,
            "sequence": [each.sequence for each in proteins],
            "length": [len(each.sequence) for each in proteins],
            "cluster": [each.accession for each in proteins],
            "split": ["valid", "test"] * 6,
            "name": [each.name for each in proteins],
        },
    )
    features = [(each.accession, feature) for each in proteins for feature in each.features]
    columns = {name: [getattr(feature, name) for _, feature in features] for name in features[0][1]._fields}
    write_annotations(ingest, {"accession": [name for name, _ in features], "offset": [0] * len(features), **columns})
    return root


SETTINGS = ["--num-resamples", "20", "--threads", "1", "--min-instances", "1", "--min-proteins", "1"]


def test_two_saes_as_text_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "first", "second", *SETTINGS, "--output", "tables"]) == 0
    text = capsys.readouterr().out
    assert "MINUS first" in text
    assert "6 test proteins" in text
    assert "-> tables" in text
    saes = pd.read_parquet(folder / "tables" / "saes.parquet")
    assert saes["dictionary_size"].tolist() == [64, 32]
    assert saes["layer"].tolist() == [3, 2]
    assert main(["compare", "first", "second", *SETTINGS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["saes"]] == ["first", "second"]
    assert found["saes"][0]["fvu"] == pytest.approx(saes["fvu"][0])
    assert found["differences"][0]["fvu"] == pytest.approx(saes["fvu"][1] - saes["fvu"][0])
    assert {each["threshold"] for each in found["matches"][0]["shares"]} == {0.5, 0.7, 0.9}


def test_errors_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "first", "first"]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main(["compare", "first", "third"]) == 2
    assert "neither a folder nor a registered SAE" in capsys.readouterr().err
    assert main(["compare", "first", "--confidence", "1"]) == 2
    assert main(["compare", "first", "--threads", "0"]) == 2
    assert "--threads is 0" in capsys.readouterr().err
    assert main(["compare", "first", "--sequences", "nowhere"]) == 2
    assert "'nowhere' is not an output folder of ingest" in capsys.readouterr().err
    raw = small_sae(normaliser={"kind": "rms", "scale": 2.0, "folded": False})
    save(raw, folder / "raw")
    assert main(["compare", "first", "raw"]) == 2
    assert "fold" in capsys.readouterr().err
