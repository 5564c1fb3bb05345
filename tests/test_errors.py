"""Errors: message form, exit codes, suggestions."""

from __future__ import annotations

import pytest

from plmsae import errors


def test_a_message_names_problem_place_and_fix() -> None:
    error = errors.DataError("letter 'J' is not a residue", where="a.fasta, line 3", fix="remove it")
    assert str(error) == "letter 'J' is not a residue\n  where: a.fasta, line 3\n  fix:   remove it"
    assert str(errors.UserError("short")) == "short"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(errors.UserError, 2), (errors.DataError, 3), (errors.GateError, 4), (errors.TryAgainError, 75)],
)
def test_exit_codes_are_those_of_the_design(kind: type[errors.PlmsaeError], code: int) -> None:
    assert kind("x").exit_code == code


def test_a_close_name_is_suggested_and_otherwise_all_are_listed() -> None:
    assert errors.did_you_mean("trian_sae", ["train_sae", "ingest"]) == "did you mean 'train_sae'?"
    assert errors.did_you_mean("zzz", ["b", "a"]) == "known: 'a', 'b'"
