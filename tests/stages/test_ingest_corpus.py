"""`ingest` over corpora, releases, servers and structures, through `plmsae run ingest` where a user would meet it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from plmsae.artifacts.checksums import sha256_file, sha256_tree
from plmsae.artifacts.http import Limits
from plmsae.artifacts.manifest import verify
from plmsae.cli import main
from plmsae.errors import DataError, UserError
from plmsae.params import validate
from plmsae.proteins.records import STANDARD_RESIDUES
from plmsae.proteins.tables import read_annotations, read_sequences
from plmsae.stages.execute import execute
from plmsae.stages.ingest import STAGE, IngestParams
from plmsae.stages.validate import STAGE as VALIDATE
from plmsae.stages.validate import ValidateParams
from tests.proteins.test_alphafold import serve as serve_alphafold
from tests.proteins.test_structures import FOLDER, HPR, INSULIN
from tests.s3server import S3Server
from tests.webserver import WebServer, web

__all__ = ["web"]  # a fixture

TINY = Path(__file__).parents[1] / "fixtures" / "swissprot_tiny.tsv.gz"
UNIREF = "/pub/databases/uniprot/current_release/uniref/uniref50/uniref50.fasta.gz"
CORPUS = {"mode": "corpus", "max_proteins": 120, "held_out_size": 10, "unit_size": 50}


def uniref(num: int = 200, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(STANDARD_RESIDUES.encode(), dtype=np.uint8)
    records = [
        f">UniRef50_A{index:05d} Uncharacterized protein n=2 Tax=Bacteria TaxID=2 RepID=A{index:05d}_9BACT\n"
        + rng.choice(letters, size=int(rng.integers(60, 120))).tobytes().decode()
        + "\n"
        for index in range(num)
    ]
    return gzip.compress("".join(records).encode(), mtime=0)


def metalink(release: str, **files: bytes) -> bytes:
    """A list in the form of UniProt's."""
    entries = "".join(
        f'<file name="{name}"><size>{len(data)}</size><verification><hash type="md5">{hashlib.md5(data).hexdigest()}'
        "</hash></verification><resources><url>ftp://ftp.example.org/x</url></resources></file>"
        for name, data in files.items()
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><metalink version="3.0" xmlns="http://www.metalinker.org/">'
        f"<version>{release}</version><files>{entries}</files></metalink>"
    ).encode()


def packed(files: dict[str, bytes]) -> bytes:
    """A tar.gz of files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return archive.getvalue()


def run(root: Path, source: str, **params: Any) -> dict[str, Any]:
    settings = validate(IngestParams, {"source": source, "cluster_method": "linclust", **params}, section="ingest")
    return dict(execute(STAGE, settings, root=root).metrics)


def output(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "outputs" / "ingest").iterdir()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plmsae.artifacts.http.DEFAULT", Limits(attempts=4, first_wait=0.01, silence=1.0, window=1.0))


def test_a_corpus_from_disk_web_and_bucket_is_the_same(web: WebServer, s3: S3Server, tmp_path: Path) -> None:
    data, bucket = uniref(), s3.bucket()
    (tmp_path / "uniref50.fasta.gz").write_bytes(data)
    web.files[UNIREF] = data
    web.faults = ["404", "503", "cut:4000", "reset"]  # 404: no list of the release
    s3.client().put_object(Bucket=bucket, Key="a/uniref50.fasta.gz", Body=data)
    found = []
    for name, source in (
        ("disk", str(tmp_path / "uniref50.fasta.gz")),
        ("web", web.url + UNIREF),
        ("bucket", f"s3://{bucket}/a/uniref50.fasta.gz"),
    ):
        root = tmp_path / name
        root.mkdir()
        metrics = run(root, source, **CORPUS)
        files = output(root)
        del files["manifest.json"]  # it holds the address
        found.append((metrics, files))
    assert found[0] == found[1] == found[2]
    assert "bytes=4000-" in web.sent_ranges()
    metrics = found[0][0]
    assert (metrics["num_records"], metrics["num_proteins_train"], metrics["num_units"]) == (200, 120, 5)
    assert len(read_annotations(tmp_path / "disk" / "outputs" / "ingest")) == 0
    verify(tmp_path / "web" / "outputs" / "ingest")


def test_validation_passes_and_the_splits_are_those_of_later_stages(tmp_path: Path) -> None:
    (tmp_path / "u.fasta.gz").write_bytes(uniref())
    run(tmp_path, "u.fasta.gz", **CORPUS)
    execute(VALIDATE, ValidateParams(warnings_as_errors=True), root=tmp_path)
    table = read_sequences(tmp_path / "outputs" / "ingest")
    assert table["split"].value_counts().to_dict() == {"train": 120, "valid": 10, "test": 10}


def test_the_release_is_that_of_the_list_beside_the_file(web: WebServer, tmp_path: Path) -> None:
    data = uniref()
    web.files[UNIREF] = data
    web.files[UNIREF.rpartition("/")[0] + "/RELEASE.metalink"] = metalink("2025_04", **{"uniref50.fasta.gz": data})
    run(tmp_path, web.url + UNIREF, **CORPUS)
    source = json.loads((tmp_path / "outputs" / "ingest" / "source.json").read_text())
    assert (source["release"], source["sha256"]) == ("2025_04", hashlib.sha256(data).hexdigest())
    with pytest.raises(DataError, match=r"'uniref50.fasta.gz' is of release 2025_04, not 2025_03"):
        run(tmp_path, web.url + UNIREF, release="2025_03", **CORPUS)
    run(tmp_path, web.url + UNIREF, release="2025_04", **CORPUS)


def test_a_file_that_is_not_the_one_of_the_list_is_refused(web: WebServer, tmp_path: Path) -> None:
    data = uniref()
    web.files[UNIREF] = data[:-1] + b"x"
    web.files[UNIREF.rpartition("/")[0] + "/RELEASE.metalink"] = metalink("2025_04", **{"uniref50.fasta.gz": data})
    with pytest.raises(DataError, match=r"has md5 [0-9a-f]{32}, not [0-9a-f]{32} as its publisher says"):
        run(tmp_path, web.url + UNIREF, **CORPUS)
    assert not (tmp_path / "outputs").exists()
    web.files[UNIREF] = data
    run(tmp_path, web.url + UNIREF, **CORPUS)


def test_swiss_prot_of_an_earlier_release_comes_out_of_its_archive(web: WebServer, tmp_path: Path) -> None:
    flat = (TINY.parent / "uniprot_entries.txt.gz").read_bytes()
    archive = packed({"uniprot_sprot.fasta.gz": uniref(3), "uniprot_sprot.dat.gz": flat})
    folder, name = (
        "/pub/databases/uniprot/previous_releases/release-2025_03/knowledgebase",
        "uniprot_sprot-only2025_03.tar.gz",
    )
    web.files[f"{folder}/{name}"] = archive
    web.files[f"{folder}/RELEASE.metalink"] = metalink("2025_03", **{name: archive})
    arguments = {"release": "2025_03", "valid_fraction": 0.3, "test_fraction": 0.3, "seed": 4}
    url = f"{web.url}{folder}/{name}"
    metrics = run(tmp_path, url, source_member="uniprot_sprot.dat.gz", **arguments)
    assert metrics["num_annotations"] > 100
    source = json.loads((tmp_path / "outputs" / "ingest" / "source.json").read_text())
    assert source["file"] == "uniprot_sprot.dat.gz"
    assert source["format"] == "uniprot_text"
    assert source["sha256"] == hashlib.sha256(archive).hexdigest()
    with pytest.raises(UserError, match=r"is an archive(.|\n)*source_member"):
        run(tmp_path, url, **arguments)
    with pytest.raises(UserError, match=r"no file 'other.dat'(.|\n)*'uniprot_sprot.fasta.gz', 'uniprot_sprot.dat.gz'"):
        run(tmp_path, url, source_member="other.dat", **arguments)
    (tmp_path / "cut.tar.gz").write_bytes(archive[:2000])
    with pytest.raises(DataError, match="the archive cannot be read"):
        run(tmp_path, "cut.tar.gz", source_member="uniprot_sprot.dat.gz")


def test_evaluation_proteins_come_with_their_checksum(tmp_path: Path) -> None:
    (tmp_path / "u.fasta.gz").write_bytes(uniref())
    evaluation = gzip.decompress(uniref()).decode().splitlines()[:40]
    (tmp_path / "e.fasta").write_text("\n".join(evaluation) + "\n")
    arguments = {**CORPUS, "max_proteins": None, "exclude": "e.fasta", "exclude_relatives": False}
    digest = sha256_file(tmp_path / "e.fasta")
    with pytest.raises(
        UserError, match=f"does not say which bytes 'e.fasta' must hold(.|\n)*sha256 of the file: {digest}"
    ):
        run(tmp_path, "u.fasta.gz", **arguments)
    metrics = run(tmp_path, "u.fasta.gz", exclude_sha256=digest, **arguments)
    assert metrics["num_dropped_evaluation_protein"] == 20
    assert metrics["num_evaluation_proteins"] == 20
    assert metrics["num_proteins_train"] == 160
    lines = (tmp_path / "outputs" / "ingest" / "dropped.tsv").read_text().splitlines()
    assert len(lines) == 21
    assert "UniRef50_A00003\tevaluation protein: A00003" in lines
    with pytest.raises(DataError, match="has sha256"):
        run(tmp_path, "u.fasta.gz", exclude_sha256="0" * 64, **arguments)
    with pytest.raises(UserError, match=r"nowhere\.fasta' does not exist"):
        run(tmp_path, "u.fasta.gz", exclude_sha256=digest, **(arguments | {"exclude": str(tmp_path / "nowhere.fasta")}))


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"mode": "corpus", "long_sequences": "crop"}, "long_sequences = 'crop' does not go with mode = 'corpus'"),
        ({"mode": "corpus", "duplicate_sequences": "keep"}, "duplicate_sequences = 'keep' does not go"),
        ({"mode": "corpus", "require_annotations": True}, "require_annotations = True does not go"),
        ({"mode": "corpus", "alphafold": True}, "alphafold = True does not go"),
        ({"exclude": "e.fasta"}, "exclude = 'e.fasta' does not go with mode = 'proteins'"),
        ({"mode": "corpora"}, "'ingest.mode' = 'corpora'"),
        ({"held_out_size": 0}, "'ingest.held_out_size' = 0"),
    ],
)
def test_parameters_that_do_not_go_together(params: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        validate(IngestParams, params, section="ingest")
    assert problem in error.value.problem


def plmsae(root: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str, **params: Any) -> int:
    """`plmsae run ingest`; its exit code."""
    source = content if isinstance(content, str) else "in.fasta"
    if isinstance(content, bytes):
        (root / source).write_bytes(content)
    section = {"source": source, "cluster_method": "linclust", **params}
    (root / "params.yaml").write_text(yaml.safe_dump({"ingest": section}))
    monkeypatch.chdir(root)
    return main(["run", "ingest"])


BODY = STANDARD_RESIDUES * 3
GOOD = b"".join(b">p%d\n%s\n" % (index, (BODY[index:] + BODY[:index]).encode()) for index in range(40))


@pytest.mark.parametrize("mode", ["proteins", "corpus"])
@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b">bad\nMKT-AYI\n", "illegal residue '-' at position 4 of 'bad'"),
        (b">bad\nMKT.AYI\n", "illegal residue '.' at position 4 of 'bad'"),
        (b">bad\nMKT*AYI\n", "illegal residue '*' at position 4 of 'bad'"),
        (b">bad\nMKTJAYI\n", "illegal residue 'J' at position 4 of 'bad'"),
        (b">bad\nMKT1AYI\n", "illegal residue '1' at position 4 of 'bad'"),
        (b">\nMKT\n", "a record has no name"),
        (b">bad\nMK\xff\n", "not UTF-8"),
    ],
)
def test_bad_letters_stop_the_run_with_their_place(
    tmp_path: Path, monkeypatch, capsys, mode: str, record: bytes, problem: str
) -> None:
    sizes = {"max_proteins": None, "held_out_size": 1}
    assert plmsae(tmp_path, monkeypatch, GOOD + record, mode=mode, **sizes) == 3
    message = capsys.readouterr().err
    assert problem in message
    assert "in.fasta, line 8" in message
    assert "Traceback" not in message
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("mode", ["proteins", "corpus"])
def test_lengths_and_cases_at_the_bounds(tmp_path: Path, monkeypatch, mode: str) -> None:
    rng = np.random.default_rng(0)

    def sequence(length: int) -> str:
        return "".join(rng.choice(list(STANDARD_RESIDUES), size=length))

    odd = {"zero": "", "one": "M", "most": sequence(1022), "over": sequence(1023), "titin": sequence(36_000)}
    odd |= {"lower": sequence(50).lower(), "stop": sequence(50) + "*", "other": "BZXUO" * 10, "least": sequence(30)}
    records = "".join(f">{name}\n{text}\n" for name, text in odd.items()).encode()
    sizes = {"valid_fraction": 0.3, "test_fraction": 0.3} if mode == "proteins" else {"held_out_size": 1}
    assert plmsae(tmp_path, monkeypatch, GOOD + records, mode=mode, max_proteins=None, **sizes) == 0
    table = read_sequences(tmp_path / "outputs" / "ingest").set_index("accession")["sequence"]
    assert set(table.index) & set(odd) == {"most", "lower", "stop", "other", "least"}
    assert table["lower"] == odd["lower"].upper()
    assert table["stop"] == odd["stop"].removesuffix("*")
    metrics = json.loads((tmp_path / "outputs" / "ingest" / "metrics.json").read_text())
    dropped = {kind: metrics[f"num_dropped_{kind}"] for kind in ("empty_sequence", "too_short", "too_long")}
    assert dropped == {"empty_sequence": 1, "too_short": 1, "too_long": 2}


def test_36000_residues_can_be_windows(tmp_path: Path, monkeypatch) -> None:
    text = "".join(np.random.default_rng(0).choice(list(STANDARD_RESIDUES), size=36_000)).encode()
    sizes = {"max_proteins": None, "valid_fraction": 0.3, "test_fraction": 0.3, "long_sequences": "window"}
    others = gzip.decompress(uniref(40))
    assert plmsae(tmp_path, monkeypatch, others + b">titin\n" + text + b"\n", **sizes) == 0
    table = read_sequences(tmp_path / "outputs" / "ingest")
    rows = table[table["accession"] == "titin"].sort_values("offset")
    assert len(rows) == 36
    assert "".join(rows["sequence"]).encode() == text


@pytest.mark.parametrize(
    ("path", "faults", "code", "problem"),
    [
        ("/u.fasta.gz", ["503"] * 4, 75, "answers 503 (Service Unavailable) (4 attempts)"),
        ("/u.fasta.gz", ["cut:100"] * 4, 75, "the connection ended after 100 of"),
        ("/u.fasta.gz", ["503:900"], 75, "asks to wait 900 s"),
        ("/u.fasta.gz", ["silent:1.5"] * 4, 75, "the server is silent"),
        ("/none.fasta.gz", [], 2, "does not exist (the server answers 404)"),
        ("/u.fasta.gz", ["403"], 2, "no permission to read"),
    ],
)
def test_a_server_in_trouble(
    web: WebServer, tmp_path: Path, monkeypatch, capsys, path: str, faults: list[str], code: int, problem: str
) -> None:
    web.files["/u.fasta.gz"], web.faults, web.ranges = uniref(), faults, False
    assert plmsae(tmp_path, monkeypatch, web.url + path, **CORPUS) == code
    message = capsys.readouterr().err
    assert problem in message
    assert "fix:" in message
    assert "Traceback" not in message


def test_a_disk_that_fills_up_while_an_object_comes(s3: S3Server, tmp_path: Path, monkeypatch, capsys) -> None:
    import resource
    import signal

    bucket, data = s3.bucket(), uniref(4000)
    s3.client().put_object(Bucket=bucket, Key="u.fasta.gz", Body=data)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) // 2, hard))
    try:
        assert plmsae(tmp_path, monkeypatch, f"s3://{bucket}/u.fasta.gz", **CORPUS) == 75
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "no room is left on the disk" in capsys.readouterr().err
    assert plmsae(tmp_path, monkeypatch, f"s3://{bucket}/u.fasta.gz", **CORPUS) == 0


def test_an_address_of_another_kind(tmp_path: Path, monkeypatch, capsys) -> None:
    assert plmsae(tmp_path, monkeypatch, "ftp://ftp.uniprot.org/pub/databases/uniprot/x.gz", **CORPUS) == 2
    assert "servers of ftp:// mostly answer to https:// too" in capsys.readouterr().err


def test_a_pinned_file_is_taken_without_asking_the_server_again(web: WebServer, tmp_path: Path) -> None:
    data = uniref()
    web.files["/u.fasta.gz"] = data
    for _ in range(2):
        run(tmp_path, f"{web.url}/u.fasta.gz", source_sha256=hashlib.sha256(data).hexdigest(), **CORPUS)
    assert len(web.requests) == 1
    with pytest.raises(DataError, match="has sha256"):
        run(tmp_path, f"{web.url}/u.fasta.gz", source_sha256="0" * 64, **CORPUS)


def test_structures_of_a_folder_and_of_alphafold(web: WebServer, tmp_path: Path) -> None:
    import pandas as pd

    serve_alphafold(web)
    others = gzip.decompress(uniref(40)).decode().replace("UniRef50_", "")
    (tmp_path / "in.fasta").write_text(f"{others}>sp|P08877|PTHP_BACSU HPr\n{HPR}\n>P01308\n{INSULIN}\n")
    folder = tmp_path / "structures"
    folder.mkdir()
    for name in ("P08877__1KKL_H.pdb.gz", "1A8O.cif.gz"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    arguments: dict[str, Any] = {"structures": "structures", "alphafold": True, "alphafold_url": f"{web.url}/api"}
    digest = sha256_tree([folder], folder)
    with pytest.raises(UserError, match=f"sha256 of the folder: {digest}"):
        run(tmp_path, "in.fasta", **arguments)
    metrics = run(tmp_path, "in.fasta", structures_sha256=digest, **arguments)
    assert metrics["num_structures"] == 2
    assert metrics["num_proteins_with_structure"] == 2
    assert metrics["num_structure_residues"] == 86 + 110
    assert metrics["num_structure_mismatches"] == 1
    out = tmp_path / "outputs" / "ingest"
    table = pd.read_parquet(out / "structures.parquet")
    insulin = table[table["accession"] == "P01308"]
    assert "".join(insulin["residue"]) == INSULIN
    assert insulin["position"].tolist() == list(range(110))
    assert table["same_residue"].sum() == len(table) - 1
    listed = pd.read_csv(out / "structures.tsv", sep="\t", dtype=str, keep_default_na=False).set_index("structure")
    assert listed.loc["AF-P01308-F1"]["version"] == "6"
    assert listed.loc["P08877__1KKL_H.pdb.gz"]["identity"] == "0.988"
    assert listed.loc["1A8O.cif.gz"]["problem"] == "its proteins are not in the table: P12497"
    lines = (out / "structure_mismatches.tsv").read_text().splitlines()
    assert lines[1].split("\t") == ["P08877", "P08877__1KKL_H.pdb.gz", "H", "85", "G", "R"]
    before = output(tmp_path)
    run(tmp_path, "in.fasta", structures_sha256=digest, **arguments)
    assert output(tmp_path) == before
    archive = packed({path.name: path.read_bytes() for path in folder.iterdir()})
    web.files["/pdb.tar.gz"] = archive
    arguments["structures"] = f"{web.url}/pdb.tar.gz"
    run(tmp_path, "in.fasta", structures_sha256=hashlib.sha256(archive).hexdigest(), **arguments)
    after = output(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}


def test_without_structures_none_are_written(tmp_path: Path) -> None:
    run(tmp_path, str(TINY))
    assert not [name for name in output(tmp_path) if "structure" in name or "unit" in name]
