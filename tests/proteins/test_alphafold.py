"""AlphaFold DB's API as a local server that answers like it, and misbehaves on demand; the model is a real one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from plmsae.artifacts.http import Limits
from plmsae.errors import DataError, TryAgainError
from plmsae.proteins.alphafold import AlphaFold
from tests.proteins.test_structures import FOLDER, INSULIN
from tests.webserver import WebServer, web

__all__ = ["web"]  # a fixture

FAST = Limits(attempts=3, first_wait=0.01, silence=0.5)
MODEL = gzip.decompress((FOLDER / "AF-P01308-F1-model.cif.gz").read_bytes())


def entry(url: str, *, old: bool = False, accession: str = "P01308", **changes: object) -> dict[str, object]:
    """An entry with the fields of the API's answer, by their names since 2025 or by the old ones."""
    sequence = {"uniprotSequence": INSULIN, "uniprotStart": 1, "uniprotEnd": 110, "entryId": "AF-P01308-F1"}
    if not old:
        sequence = {"sequence": INSULIN, "sequenceStart": 1, "sequenceEnd": 110, "modelEntityId": "AF-P01308-F1"}
    return {
        **sequence,
        "uniprotAccession": accession,
        "latestVersion": 6,
        "allVersions": [1, 2, 3, 4, 6],
        "cifUrl": f"{url}/files/AF-P01308-F1-model_v6.cif",
        "pdbUrl": f"{url}/files/AF-P01308-F1-model_v6.pdb",
        **changes,
    }


def serve(web: WebServer, *entries: dict[str, object]) -> None:
    web.files["/api/prediction/P01308"] = json.dumps(list(entries) or [entry(web.url)]).encode()
    web.files["/files/AF-P01308-F1-model_v6.cif"] = MODEL


def client(web: WebServer, folder: Path, version: int | None = None) -> AlphaFold:
    return AlphaFold(folder, base_url=f"{web.url}/api/", version=version, limits=FAST)


@pytest.mark.parametrize("old", [True, False])
def test_a_model_comes_with_its_version(web: WebServer, tmp_path: Path, old: bool) -> None:
    isoform = entry(web.url, accession="P01308-2", old=old, latestVersion=5)
    serve(web, isoform, entry(web.url, old=old))
    placed = client(web, tmp_path).placed("P01308", INSULIN)
    assert (placed.structure, placed.version, placed.source, placed.problem) == ("AF-P01308-F1", "6", "alphafold", "")
    assert placed.chain is not None
    assert placed.mapping is not None
    assert placed.mapping.positions == tuple(range(110))
    assert placed.chain.residues[0].b_factor == 63.47
    assert placed.chain.residues[0].place == (11.072, 3.621, -38.578)


def test_a_model_is_brought_once(web: WebServer, tmp_path: Path) -> None:
    serve(web)
    for _ in range(2):
        client(web, tmp_path).placed("P01308", INSULIN)
    assert web.paths.count("/files/AF-P01308-F1-model_v6.cif") == 1
    assert (tmp_path / "AF-P01308-F1-model_v6.cif").read_bytes() == MODEL


def test_an_older_version_can_be_asked_for(web: WebServer, tmp_path: Path) -> None:
    serve(web)
    web.files["/files/AF-P01308-F1-model_v4.cif"] = MODEL
    assert client(web, tmp_path, version=4).placed("P01308", INSULIN).version == "4"
    with pytest.raises(DataError, match=r"does not come in version 5; the latest is 6(.|\n)*alphafold_version"):
        client(web, tmp_path, version=5).placed("P01308", INSULIN)
    with pytest.raises(DataError, match="names version 3 of 'AF-P01308-F1' but does not have it"):
        client(web, tmp_path, version=3).placed("P01308", INSULIN)


def test_bad_days_of_the_server(web: WebServer, tmp_path: Path) -> None:
    serve(web)
    web.faults = ["503", "cut:20", "", "cut:5000", "reset"]
    assert not client(web, tmp_path).placed("P01308", INSULIN).problem
    web.faults = ["503"] * 3
    with pytest.raises(TryAgainError, match="answers 503"):
        client(web, tmp_path).placed("P01308", INSULIN)


def test_no_model_and_another_sequence_are_said_and_are_no_error(web: WebServer, tmp_path: Path) -> None:
    serve(web)
    assert client(web, tmp_path).placed("Q99999", "MKT").problem == "AlphaFold DB has no model of it"
    changed = INSULIN[:29] + "W" + INSULIN[30:]
    problem = client(web, tmp_path).placed("P01308", changed).problem
    assert problem == "AlphaFold DB modelled another sequence: 110 residues for 110, the first difference is W30L"
    assert client(web, tmp_path).placed("P01308", INSULIN[:-5]).problem.endswith("110 residues for 105")


def test_a_model_of_another_sequence_than_its_entry_is_an_error(web: WebServer, tmp_path: Path) -> None:
    serve(web)
    web.files["/files/AF-P01308-F1-model_v6.cif"] = MODEL.replace(b"TRP", b"GLY")
    with pytest.raises(DataError, match="not of the sequence that AlphaFold DB says"):
        client(web, tmp_path).placed("P01308", INSULIN)
    serve(web)
    assert not client(web, tmp_path).placed("P01308", INSULIN).problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"<html>maintenance</html>", "not JSON"),
        (b'[{"uniprotAccession": "P01308"}]', "no usable name, sequence, version and file"),
        (json.dumps([entry("http://x", modelEntityId="../../evil")]).encode(), "no usable name"),
    ],
)
def test_an_answer_that_cannot_be_used(web: WebServer, tmp_path: Path, answer: bytes, problem: str) -> None:
    serve(web)
    web.files["/api/prediction/P01308"] = answer
    with pytest.raises(DataError, match=problem):
        client(web, tmp_path).placed("P01308", INSULIN)


def test_many_come_in_the_order_of_their_accessions(web: WebServer, tmp_path: Path) -> None:
    serve(web)
    names = [f"Q{number:05d}" for number in range(30)]
    found = list(client(web, tmp_path).all_placed({"P01308": INSULIN, **dict.fromkeys(names, "MKT")}))
    assert [item.accession for item in found] == ["P01308", *names]
    assert [bool(item.problem) for item in found] == [False, *[True] * 30]
