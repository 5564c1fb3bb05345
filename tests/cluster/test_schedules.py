"""The file of schedules: every field, every refusal with its line, and the example that is committed."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plmsae.cluster.schedules import Schedule, read_schedules, refuse_examples
from plmsae.errors import UserError

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "schedules.yaml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def test_a_file_with_everything(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        nightly:
          pipeline: train
          cron: 0 2 * * *
        other-2:
          package: compiled/mine.yaml
          every: 2w
          set: {ingest.source: "s3://proteins/a.fasta", train_sae.k: 16, steer.accessions: [P12345], train_sae.x: null}
          experiment: layers
          service_account: plmsae-runner
          enabled: false
          catch_up: true
          max_concurrency: 3
          start: 2027-01-01T01:00:00+01:00
          end: "2027-12-31T00:00:00Z"
        """,
    )
    nightly, other = read_schedules(file).values()
    assert (nightly.experiment, nightly.enabled, nightly.catch_up, nightly.max_concurrency) == (
        "plmsae",
        True,
        False,
        1,
    )
    assert (nightly.shown, nightly.interval_seconds, nightly.overrides) == ("0 2 * * * UTC", None, [])
    assert (other.shown, other.interval_seconds) == ("every 2w", 14 * 24 * 3600)
    assert other.overrides == [
        'ingest.source="s3://proteins/a.fasta"',
        "train_sae.k=16",
        'steer.accessions=["P12345"]',
        "train_sae.x=null",
    ]
    assert (other.start, other.end) == (datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 12, 31, tzinfo=UTC))


@pytest.mark.parametrize(
    ("lines", "problem", "where"),
    [
        ("crons: 0 2 * * *", "unknown parameter 'nightly.crons'", "line 4"),
        ("cron: 0 2 * *", "cron has five fields", "line 4"),
        ("cron: 61 2 * * *", "minute 61 is not in 0-59", "line 4"),
        ("every: 7 days", "write a number and m, h, d or w", "line 4"),
        ("every: 0d", "write a number and m, h, d or w", "line 4"),
        ("experiment: plmsae", "give either 'cron' or 'every'", "nightly"),
        ("cron: 0 2 * * *\n          every: 7d", "give either 'cron' or 'every'", "nightly"),
        ("every: 7d\n          package: x.yaml", "give either 'pipeline' or 'package'", "nightly"),
        ("every: 7d\n          max_concurrency: 11", "less than or equal to 10", "line 5"),
        ("every: 7d\n          max_concurrency: 0", "greater than or equal to 1", "line 5"),
        ("every: 7d\n          enabled: yes please", "valid boolean", "line 5"),
        ("every: 7d\n          set: {k: 8}", "'k' is not SECTION.KEY", "line 5"),
        ("every: 7d\n          set: {ingest.release: 2026-01-01}", "quote a date", "line 5"),
        ("every: 7d\n          set: {train_sae.k: .nan}", "no text, number", "line 5"),
        ("every: 7d\n          start: 2027-01-01T00:00:00", "name the time zone", "line 5"),
        ("every: 7d\n          start: tomorrow", "tomorrow", "line 5"),
        ("every: 7d\n          start: 2027-01-01", "valid datetime", "line 5"),
        (
            "every: 7d\n          start: 2027-01-01T00:00:00Z\n          end: 2027-01-01T00:00:00Z",
            "'end' is not after 'start'",
            "nightly",
        ),
        ("every: 7d\n          every: 8d", "stands twice", "line 5"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, lines: str, problem: str, where: str) -> None:
    file = written(tmp_path, f"\n        nightly:\n          pipeline: train\n          {lines}\n")
    with pytest.raises(UserError, match=problem) as caught:
        read_schedules(file)
    assert where in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no schedule"),
        ("{}", "names no schedule"),
        ("- a", "not a mapping"),
        ("Nightly: {pipeline: train, every: 7d}", "'Nightly' is no name"),
        ("a_b: {pipeline: train, every: 7d}", "'a_b' is no name"),
        (f"{'a' * 64}: {{pipeline: train, every: 7d}}", "is no name"),
        ("nightly: train", "is not a section"),
        ("nightly: {pipeline: [", "not valid YAML"),
    ],
)
def test_what_is_no_file_of_schedules(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_schedules(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_schedules(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "value",
    ["s3://BUCKET/a.fasta", "https://example.org/a", "https://data.example.org/a", "models:/NAME@champion", 64 * "0"],
)
def test_the_example_s_own_values_are_refused(value: str) -> None:
    schedules = {"weekly": Schedule(pipeline="train", every="7d", set={"ingest.source": [value]})}
    with pytest.raises(UserError, match="weekly: ingest") as caught:
        refuse_examples(schedules, Path("file"))
    assert value in caught.value.problem


@pytest.mark.parametrize(
    "value", ["s3://bucket/a", "https://org/example.org", "models:/plmsae.x@champion", 64 * "a", "a: b", "http://[", 7]
)
def test_other_values_pass(value: object) -> None:
    refuse_examples({"weekly": Schedule(pipeline="train", every="7d", set={"ingest.source": value})}, Path("file"))


@pytest.mark.parametrize("value", ["https://me:word@host/a", "https://host/a?X-Amz-Signature=abc"])
def test_an_address_with_a_secret_is_refused_and_not_shown(value: str) -> None:
    schedules = {"weekly": Schedule(pipeline="train", every="7d", set={"ingest.source": value})}
    with pytest.raises(UserError, match="weekly: ingest") as caught:
        refuse_examples(schedules, Path("file"))
    assert value not in str(caught.value)
