from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plmsae.proteins.feature_cells import CellError, parse_cell


def parsed(text: str, key: str = "DOMAIN") -> list[tuple[int, int, dict[str, str]]]:
    return [(f.start, f.end, f.qualifiers) for f in parse_cell(text, key).features]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("DOMAIN 3", [(3, 3, {})]),
        (
            'DOMAIN 3..49; /note="F-box"; /evidence="ECO:0000255|PROSITE-ProRule:PRU00080"; '
            'DOMAIN 60..70; /note="SH3 1"',
            [
                (3, 49, {"note": "F-box", "evidence": "ECO:0000255|PROSITE-ProRule:PRU00080"}),
                (60, 70, {"note": "SH3 1"}),
            ],
        ),
        ('DOMAIN <3..>49; /note="x";', [(3, 49, {"note": "x"})]),
        ('DOMAIN 3..49; /evidence="a, b"; DOMAIN 5..6', [(3, 49, {"evidence": "a, b"}), (5, 6, {})]),
        ('DOMAIN 1..2; /note="a; DOMAIN 5..6; b"', [(1, 2, {"note": "a; DOMAIN 5..6; b"})]),
        ('DOMAIN 1..2; /note="5\'-""x"" end"; /id="y"', [(1, 2, {"note": '5\'-"x" end', "id": "y"})]),
        ('DOMAIN 1..2; /note="""all"""', [(1, 2, {"note": '"all"'})]),
        ('DOMAIN 1..2; /note=""; /id="y"', [(1, 2, {"note": "", "id": "y"})]),
        (r'DOMAIN 1..2; /note="a \"b\" c"; DOMAIN 4', [(1, 2, {"note": 'a "b" c'}), (4, 4, {})]),
        (r'DOMAIN 1..2; /note="ends with \"; /id="y"', [(1, 2, {"note": "ends with \\", "id": "y"})]),
        ('DOMAIN 1..2; /note="the "inner" one"; DOMAIN 4', [(1, 2, {"note": 'the "inner" one'}), (4, 4, {})]),
        ('DOMAIN 1..2; /note="Slash /note="', [(1, 2, {"note": "Slash /note="})]),
        ('DOMAIN 1..2 /note="old export" /id="y"', [(1, 2, {"note": "old export", "id": "y"})]),
        ("DOMAIN 1..2; /experimental; DOMAIN 4", [(1, 2, {"experimental": ""}), (4, 4, {})]),
    ],
)
def test_cells_by_hand(text: str, expected: list[tuple[int, int, dict[str, str]]]) -> None:
    assert parsed(text) == expected


def test_ligands() -> None:
    text = (
        'BINDING 161; /ligand="Fe cation"; /ligand_id="ChEBI:CHEBI:24875"; /ligand_label="1"; '
        '/ligand_note="catalytic; in form B"; /note="axial"; BINDING 12..14; /ligand="ATP"'
    )
    first, second = parsed(text, "BINDING")
    assert first[:2] == (161, 161)
    assert (first[2]["ligand"], first[2]["ligand_note"], first[2]["note"]) == (
        "Fe cation",
        "catalytic; in form B",
        "axial",
    )
    assert second == (12, 14, {"ligand": "ATP"})


def test_unknown_positions_and_other_isoforms_are_counted_not_kept() -> None:
    text = (
        'SIGNAL ?; /note="a"; SIGNAL 1..?; SIGNAL ?..22; SIGNAL ?1..22; /note="b"; '
        'SIGNAL P12345-2:3..5; /note="c"; SIGNAL 1..20; /note="kept"'
    )
    cell = parse_cell(text, "SIGNAL")
    assert (cell.num_unknown_positions, cell.num_isoform_features) == (4, 1)
    assert [(f.start, f.end, f.qualifiers) for f in cell.features] == [(1, 20, {"note": "kept"})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("MOTIF 3..5", "expected 'DOMAIN', not 'MOTIF'"),
        ("DOMAIN 9..5", "ends before it starts"),
        ("DOMAIN 3..x", "'3..x' is not a location"),
        ("DOMAIN 3-5", "is not a location"),
        ("DOMAIN", "expected a feature"),
        ("hello", "expected a feature"),
        ('DOMAIN 3..5; /note="never closed', "cannot read the qualifier"),
        ('DOMAIN 3..5; /note="a" trailing', "cannot read the qualifier"),
        ("DOMAIN 3..5; DOMAIN 7..8; junk", "expected a feature at character 27"),
    ],
)
def test_cells_outside_the_grammar(text: str, problem: str) -> None:
    with pytest.raises(CellError, match="") as error:
        parse_cell(text, "DOMAIN")
    assert problem in str(error.value)


# Anything printable, and often the characters that the grammar is made of.
notes = st.lists(
    st.one_of(
        st.sampled_from(['"', ";", "; ", "/note=", "DOMAIN 3..5", "a", "β", " ", "(", "..", "?", ":", "-2"]),
        st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="\\"),
    ),
    max_size=12,
).map("".join)
positions = st.tuples(st.integers(1, 5000), st.integers(0, 800)).map(lambda pair: (pair[0], pair[0] + pair[1]))
names = st.sampled_from(["note", "ligand", "ligand_id", "ligand_note", "evidence", "id"])
feature_lists = st.lists(st.tuples(positions, st.dictionaries(names, notes, max_size=4)), max_size=6)


def write_cell(features: list[tuple[tuple[int, int], dict[str, str]]], end: str) -> str:
    """The writer of UniProt's format: quotes inside a value are doubled."""
    parts = []
    for (start, stop), qualifiers in features:
        parts.append(f"DOMAIN {start}" if start == stop else f"DOMAIN {start}..{stop}")
        parts += ['/{}="{}"'.format(name, value.replace('"', '""')) for name, value in qualifiers.items()]
    return "; ".join(parts) + (end if parts else "")


@given(feature_lists, st.sampled_from(["", ";", "; "]))
@example([((1, 2), {"note": '"; DOMAIN 3..5'}), ((4, 4), {})], "")
@example([((1, 2), {"note": '";', "ligand": '";"'})], ";")
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read_back(features: list[tuple[tuple[int, int], dict[str, str]]], end: str) -> None:
    text = write_cell(features, end)
    assert parsed(text) == [(start, stop, qualifiers) for (start, stop), qualifiers in features]


@given(st.text('DOMAIN 0123.<>?;/="\\note:-', max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        cell = parse_cell(text, "DOMAIN")
    except CellError:
        return
    assert all(feature.start <= feature.end for feature in cell.features)


@pytest.mark.parametrize("unit", ['"', '""', '\\"', "\\", '"\\', '\\""', "/note=", '"; /note="', "; DOMAIN 1"])
def test_hostile_cells_take_linear_time(unit: str) -> None:
    start = time.perf_counter()
    with contextlib.suppress(CellError):
        parse_cell('DOMAIN 1; /note="' + unit * 20_000 + "!", "DOMAIN")
    assert time.perf_counter() - start < 2.0
