"""Helices and strands of ideal and of real chains."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from plmsae.proteins.secondary_structure import assign_secondary_structure

FIXTURES = Path(__file__).parents[1] / "fixtures" / "structures"


def helix(length: int) -> NDArray[np.float64]:
    """1.5 Å rise and 100 degrees per residue, radius 2.3 Å."""
    turn = np.radians(100) * np.arange(length)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(length)], axis=1)


def strand(length: int) -> NDArray[np.float64]:
    """A flat zigzag with 3.3 Å rise."""
    return np.stack([0.95 * (np.arange(length) % 2 * 2 - 1), np.zeros(length), 3.3 * np.arange(length)], axis=1)


def letters(ca: NDArray[np.float64], positions: NDArray[np.int64] | None = None) -> str:
    found = assign_secondary_structure(ca, np.arange(len(ca)) if positions is None else positions)
    return "".join(found)


def test_ideal_chains() -> None:
    assert letters(helix(12)) == "-" + "H" * 10 + "-"
    assert letters(strand(12)) == "-" + "E" * 9 + "--"
    assert letters(helix(12) * [1, -1, 1]) == "-" + "H" * 9 + "--", "by its distances a left-handed one passes too"
    assert letters(np.cumsum(np.full((8, 3), 3.8 / np.sqrt(3)), axis=0)) == "-" * 8, "a straight line is neither"
    assert letters(np.zeros((0, 3))) == ""
    assert letters(np.zeros((3, 3))) == "---"


def test_a_rigid_motion_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    ca = np.concatenate([helix(10), strand(9) + np.array([30, 0, 0])])
    positions = np.concatenate([np.arange(10), np.arange(50, 59)])
    assert letters(ca @ rotation.T + [5, -7, 100], positions) == letters(ca, positions)


def test_nothing_is_measured_across_a_gap() -> None:
    whole = letters(helix(14))
    split = letters(helix(14), np.concatenate([np.arange(7), np.arange(20, 27)]))
    assert whole.count("H") == 12
    assert split == letters(helix(7)) + letters(helix(14)[7:])


def chain_of(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    with gzip.open(FIXTURES / name, "rt") as file:
        rows = [
            line for line in file if line[12:16] == " CA " and line[16] in " A" and line[:6] in ("ATOM  ", "HETATM")
        ]
    ca = np.array([[float(row[start : start + 8]) for start in (30, 38, 46)] for row in rows])
    return ca, np.array([int(row[22:26]) for row in rows])


@pytest.mark.parametrize(("name", "expected"), [
    ("1A8O.pdb.gz", "----------HHHHHHHHHHHHHHH---HHHHHHHHH--------HHHHHHHHH------HHHHHHHH--"),
    ("P08877__1KKL_H.pdb.gz", "-EEEEE-------HHHHHHHHHHHH---EEEEEE----------HHHHHHH-----EEEEEEEE---HHHHHHHHHHHHHHH----"),
])  # fmt: skip
def test_real_chains_are_those_of_biotite(name: str, expected: str) -> None:
    """`annotate_sse` of biotite 1.6.0; its a, b, c are H, E, - here."""
    ca, numbers = chain_of(name)
    assert (np.diff(numbers) == 1).all()
    assert letters(ca, numbers) == expected
