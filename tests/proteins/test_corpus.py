"""Subsets of a corpus against a plain computation in memory; what must not matter does not."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plmsae
from plmsae.errors import DataError, UserError
from plmsae.proteins.corpus import CorpusSelection, CorpusSettings, Outcome
from plmsae.proteins.corpus_tables import write_corpus
from plmsae.proteins.exclusion import Exclusion, bare_accession
from plmsae.proteins.records import STANDARD_RESIDUES, Protein
from plmsae.proteins.tables import read_sequences


def proteins(num: int, seed: int = 1, low: int = 40, high: int = 90) -> list[Protein]:
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(STANDARD_RESIDUES.encode(), dtype=np.uint8)
    found = []
    for index in range(num):
        text = rng.choice(letters, size=int(rng.integers(low, high))).tobytes().decode()
        found.append(Protein(f"UniRef50_A{index:05d}", f"protein {index}", text, index + 1))
    return found


def choose(
    records: Sequence[Protein],
    folder: Path,
    exclusion: Exclusion | None = None,
    *,
    bucket: int = 50_000,
    **changes: Any,
) -> list[Outcome]:
    plain = {
        "seed": 0,
        "min_residues": 30,
        "max_residues": 1022,
        "num_train": 100,
        "num_held_out": 20,
        "drop_held_out_relatives": False,
        "identity": 0.3,
        "coverage": 0.5,
        "sensitivity": 5.7,
    }
    selection = CorpusSelection(
        lambda: iter(records), folder, CorpusSettings(**(plain | changes)), exclusion, bucket_sequences=bucket
    )
    return list(selection.outcomes())


def splits(outcomes: list[Outcome]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"test": [], "valid": [], "train": []}
    for outcome in outcomes:
        if outcome.split:
            found[outcome.split].append(outcome.accession)
    return found


def expected(records: Sequence[Protein], seed: int = 0) -> list[str]:
    """Accessions in the order of their keys: hashlib and sorted, nothing of ours."""

    def key(record: Protein) -> bytes:
        return hashlib.blake2b(
            record.sequence.encode(), digest_size=8, key=str(seed).encode(), person=b"corpus"
        ).digest()

    return [record.accession for record in sorted(records, key=key)]


def test_the_smallest_keys_are_taken_in_order(tmp_path: Path) -> None:
    records = proteins(500)
    order = expected(records)
    found = splits(choose(records, tmp_path))
    assert found == {"test": order[:20], "valid": order[20:40], "train": order[40:140]}
    assert splits(choose(records, tmp_path / "other", seed=3))["test"] == expected(records, 3)[:20]


def test_neither_the_order_of_the_file_nor_the_portions_matter(tmp_path: Path) -> None:
    records = proteins(400)
    shuffled = random.Random(2).sample(records, len(records))
    one = choose(records, tmp_path / "a")
    assert choose(shuffled, tmp_path / "b", bucket=7) == one
    assert choose(records[::-1], tmp_path / "c", bucket=1) == one


def test_a_smaller_subset_is_inside_a_larger_one_with_the_same_held_out_sets(tmp_path: Path) -> None:
    records = proteins(400)
    small = splits(choose(records, tmp_path / "a", num_train=50))
    large = splits(choose(records, tmp_path / "b", num_train=200))
    whole = splits(choose(records, tmp_path / "c", num_train=None))
    assert small["test"] == large["test"] == whole["test"]
    assert small["valid"] == large["valid"] == whole["valid"]
    assert small["train"] == large["train"][:50] == whole["train"][:50]
    assert len(whole["train"]) == 360


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ACDW", min_size=1, max_size=3), min_size=1, max_size=40),
    num_train=st.one_of(st.none(), st.integers(1, 30)),
    num_held_out=st.integers(1, 5),
    bucket=st.integers(1, 50),
)
def test_splits_are_disjoint_and_complete(
    tmp_path_factory: Any, texts: list[str], num_train: int | None, num_held_out: int, bucket: int
) -> None:
    records = [Protein(f"P{index}", "", text, index) for index, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("corpus")
    arguments = {"num_train": num_train, "num_held_out": num_held_out, "min_residues": 2}
    usable = {text for text in texts if len(text) >= 2}
    wanted = 2 * num_held_out + (num_train or 1)
    if len(usable) < wanted:
        with pytest.raises(DataError, match="fewer than"):
            choose(records, folder, bucket=bucket, **arguments)
        return
    outcomes = choose(records, folder, bucket=bucket, **arguments)
    chosen = [outcome.sequence for outcome in outcomes if outcome.split]
    assert len(chosen) == len(set(chosen)) == (wanted if num_train else len(usable))
    assert set(chosen) <= usable
    for outcome in outcomes:
        if not outcome.split:
            assert outcome.reason.startswith("duplicate sequence: the same as P")
    if num_train is None:
        assert len(outcomes) == sum(len(text) >= 2 for text in texts)


def test_too_few_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"150 sequences of 150 are left, fewer than the 540 wanted(.|\n)*held_out_size"
    ):
        choose(proteins(150), tmp_path, num_train=500)


def test_evaluation_proteins_are_kept_out_by_accession_and_sequence(tmp_path: Path) -> None:
    records = proteins(300)
    file = tmp_path / "evaluation.fasta"
    named, same = records[10], records[20]
    file.write_text(f">sp|A00010|X name\nMKTAYIAKQRQISFVK\n>other\n{same.sequence}\n")
    arguments = {"relatives": False, "identity": 0.3, "coverage": 0.5, "sensitivity": 5.7}
    exclusion = Exclusion(file, tmp_path / "search", **arguments)
    outcomes = choose(records, tmp_path / "work", exclusion, num_train=None)
    reasons = {outcome.accession: outcome.reason for outcome in outcomes if not outcome.split}
    assert reasons == {named.accession: "evaluation protein: A00010", same.accession: "evaluation protein: other"}
    assert exclusion.num_proteins == 2


@pytest.mark.parametrize(
    ("accession", "bare"),
    [("UniRef50_Q6GZX4", "Q6GZX4"), ("UniRef90_P12345-2", "P12345"), ("P12345-11", "P12345"), ("x-y", "x-y")],
)
def test_bare_accessions(accession: str, bare: str) -> None:
    assert bare_accession(accession) == bare


def relatives_of(records: Sequence[Protein], rate: float, rng: np.random.Generator) -> list[Protein]:
    letters = np.array(list(STANDARD_RESIDUES))
    found = []
    for index, record in enumerate(records):
        text = np.array(list(record.sequence))
        text = np.where(rng.random(len(text)) < rate, rng.choice(letters, size=len(text)), text)
        found.append(Protein(f"R{index}", "", "".join(text), 10_000 + index))
    return found


def test_relatives_of_evaluation_proteins_are_kept_out_whatever_the_portions(tmp_path: Path) -> None:
    made = proteins(20, seed=9, low=120, high=160)
    evaluation = [replace(item, accession=f"E{index}") for index, item in enumerate(made)]
    relatives = relatives_of(evaluation, 0.3, np.random.default_rng(3))
    fragment = Protein("fragment", "", evaluation[0].sequence[:70], 20_000)
    containing = Protein(
        "containing", "", proteins(1, seed=77, low=400, high=401)[0].sequence + evaluation[1].sequence, 1
    )
    records = [*proteins(220, low=100, high=150), *relatives, fragment, containing]
    file = tmp_path / "evaluation.fasta"
    file.write_text("".join(f">{item.accession}\n{item.sequence}\n" for item in evaluation))

    def exclusion(name: str) -> Exclusion:
        return Exclusion(file, tmp_path / name, relatives=True, identity=0.3, coverage=0.5, sensitivity=5.7)

    whole = choose(records, tmp_path / "a", exclusion("search-a"), num_train=None)
    left_out = {outcome.accession: outcome.reason for outcome in whole if not outcome.split}
    assert set(left_out) == {*(item.accession for item in relatives), "fragment", "containing"}
    assert left_out["R7"] == "relative of an evaluation protein: E7"
    # What was left out is made up for, and the portions do not matter.
    part = choose(records, tmp_path / "b", exclusion("search-b"), num_train=150)
    chosen = [outcome for outcome in part if outcome.split]
    assert chosen == [outcome for outcome in whole if outcome.split][:190]
    assert len(chosen) < len(part)


def test_relatives_of_held_out_sequences_can_be_dropped(tmp_path: Path) -> None:
    founders = proteins(60, low=120, high=160)
    records = [*founders, *relatives_of(founders, 0.25, np.random.default_rng(3))]
    kept = splits(choose(records, tmp_path / "a", num_train=None, num_held_out=10))
    outcomes = choose(records, tmp_path / "b", num_train=None, num_held_out=10, drop_held_out_relatives=True, bucket=70)
    dropped = splits(outcomes)
    assert (kept["test"], kept["valid"]) == (dropped["test"], dropped["valid"])

    def family(name: str) -> int:
        return int(name.removeprefix("UniRef50_A").removeprefix("R"))

    held_out = {family(name) for name in [*kept["test"], *kept["valid"]]}
    assert any(family(name) in held_out for name in kept["train"])
    assert set(dropped["train"]) == {name for name in kept["train"] if family(name) not in held_out}
    reasons = {outcome.reason.partition(":")[0] for outcome in outcomes if not outcome.split}
    assert reasons == {"relative of a held-out sequence"}


def test_an_interrupted_selection_goes_on(tmp_path: Path) -> None:
    records = proteins(400)
    passes = []

    def stream() -> Iterator[Protein]:
        passes.append(1)
        return iter(records)

    def selection(folder: Path) -> CorpusSelection:
        plain = CorpusSettings(0, 30, 1022, 200, 20, False, 0.3, 0.5, 5.7)
        return CorpusSelection(stream, folder, plain, bucket_sequences=60)

    whole = list(selection(tmp_path / "a").outcomes())
    assert len(passes) == 2
    passes.clear()
    running = selection(tmp_path / "b").outcomes()
    for _ in range(150):
        next(running)
    running.close()
    resumed = selection(tmp_path / "b")
    assert list(resumed.outcomes()) == whole
    assert resumed.num_records == 400
    assert len(passes) == 2


def test_tables_and_work_units(tmp_path: Path) -> None:
    records = proteins(300)
    writer, counts = write_corpus(tmp_path, iter(choose(records, tmp_path / "work", num_train=130)), 50)
    table = read_sequences(tmp_path)
    assert table["split"].value_counts().to_dict() == {"train": 130, "test": 20, "valid": 20}
    by_name = {record.accession: record for record in records}
    for row in table.itertuples():
        assert (row.sequence, row.name) == (by_name[row.accession].sequence, by_name[row.accession].name)
        assert (row.offset, row.length, row.cluster) == (0, len(row.sequence), row.accession)
    assert (writer.num_units, writer.num_proteins["train"], counts["duplicate sequence"]) == (5, 130, 0)
    header, *units = [line.split("\t") for line in (tmp_path / "units.tsv").read_text().splitlines()]
    assert header == ["unit", "split", "first_row", "num_sequences", "num_residues", "sha256"]
    assert [unit[0] for unit in units] == [
        "test-000000",
        "valid-000000",
        "train-000000",
        "train-000001",
        "train-000002",
    ]
    file = pq.ParquetFile(tmp_path / "sequences.parquet")
    assert file.num_row_groups == len(units)
    for number, (_, split, first_row, num_sequences, num_residues, digest) in enumerate(units):
        part = file.read_row_group(number).to_pandas()
        assert part["accession"].tolist() == table["accession"][int(first_row) :][: len(part)].tolist()
        assert (len(part), part["length"].sum()) == (int(num_sequences), int(num_residues))
        assert set(part["split"]) == {split}
        text = "".join(
            f"{name}\t{sequence}\n" for name, sequence in zip(part["accession"], part["sequence"], strict=True)
        )
        assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_units_of_a_smaller_subset_are_those_of_a_larger_one(tmp_path: Path) -> None:
    records, units = proteins(300), []
    for number in (100, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_corpus(folder, iter(choose(records, folder / "work", num_train=number)), 50)
        units.append((folder / "units.tsv").read_text().splitlines())
    assert units[0] == units[1][: len(units[0])]


def test_an_accession_that_stands_twice_is_named(tmp_path: Path) -> None:
    outcomes = [Outcome("train", "", accession, "", "MKT") for accession in ("P0", "P1", "P2", "P1")]
    with pytest.raises(DataError, match="accession 'P1' stands twice, with different sequences"):
        write_corpus(tmp_path, outcomes, 2)


def test_mmseqs_that_fails_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho no space left\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("plmsae.proteins.homology.find_mmseqs", lambda: program)
    (tmp_path / "e.fasta").write_text(">a\nMKTAYIAK\n")
    with pytest.raises(UserError, match="MMseqs2 failed with exit status 1: no space left"):
        Exclusion(tmp_path / "e.fasta", tmp_path / "s", relatives=True, identity=0.3, coverage=0.5, sensitivity=5.7)


_MEASURE = """
import sys
from pathlib import Path
from plmsae.proteins.corpus import CorpusSelection, CorpusSettings
from plmsae.proteins.corpus_tables import write_corpus
from plmsae.proteins.fasta import read_fasta
folder = Path(sys.argv[1])
plain = CorpusSettings(0, 30, 1022, int(sys.argv[2]), 100, False, 0.3, 0.5, 5.7)
selection = CorpusSelection(lambda: read_fasta(folder / "c.fasta"), folder / "work", plain, bucket_sequences=4000)
writer, _ = write_corpus(folder, selection.outcomes(), 1000)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(writer.num_proteins["train"], selection.num_records, peak.split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
def test_memory_does_not_grow_with_corpus_or_subset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = np.frombuffer(STANDARD_RESIDUES.encode(), dtype=np.uint8)
    environment = {**os.environ, "PYTHONPATH": str(Path(plmsae.__file__).parents[1])}
    peaks = []
    for num in (20_000, 200_000):
        folder = tmp_path / str(num)
        folder.mkdir()
        text = rng.choice(letters, size=num * 60).tobytes().decode()
        with (folder / "c.fasta").open("w") as handle:
            handle.writelines(f">UniRef50_A{i:07d} n=1\n{text[i * 60 : i * 60 + 60]}\n" for i in range(num))
        command = [sys.executable, "-c", _MEASURE, str(folder), str(num // 2)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        num_train, num_records, peak = map(int, done.stdout.split())
        assert (num_train, num_records) == (num // 2, num)
        peaks.append(peak / 1024)
    # 180,000 more sequences in the corpus, 90,000 more in the subset; 8 bytes per chosen one are kept.
    assert peaks[1] - peaks[0] < 25, peaks
