"""The same entries give the same proteins and features, whichever of UniProt's formats they come in."""

from __future__ import annotations

import gzip
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plmsae.proteins.feature_types import FEATURE_KEYS, KEY_OF_JSON, TYPES
from plmsae.proteins.flat_text import read_uniprot_text
from plmsae.proteins.formats import detect_format, read_proteins
from plmsae.proteins.records import Feature, Protein
from plmsae.proteins.uniprot import feature_columns, read_uniprot_tsv
from plmsae.proteins.uniprot_json import read_uniprot_json
from tests.proteins.renderings import CHANGES, KINDS, Entry, Item, flat, json_text, tsv

FIXTURES = Path(__file__).parents[1] / "fixtures"
TSV, FLAT, JSON = (
    FIXTURES / f"{name}.gz" for name in ("swissprot_tiny.tsv", "uniprot_entries.txt", "uniprot_entries.json")
)


def facts(protein: Protein) -> tuple[Any, ...]:
    """Everything but the line, and features in no order."""
    return (
        protein.accession,
        protein.name,
        protein.sequence,
        Counter(protein.features),
        protein.num_unknown_positions,
        protein.num_isoform_features,
    )


SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEV"
BY_HAND = Entry(
    "P12345",
    'Protein with "quotes", zinc-binding',
    SEQUENCE,
    [
        Item("BINDING", "5", "5", "catalytic", "Zn(2+)"),
        Item("BINDING", "7", "9", "", "(6S)-5,6,7,8-tetrahydrofolate derivative with a very-long-and-hyphenated name"),
        Item("DISULFID", "3", "9"),
        Item("DISULFID", "12", "12", "Interchain (with C-12)"),
        Item(
            "DOMAIN", "1", "<10", 'the "SH3" domain; DOMAIN 5..9; N- and C-terminal halves of it are alike; last "one"'
        ),
        Item("DOMAIN", ">60", ">69", "goes on"),
        Item("DOMAIN", "?", "20", "x"),
        Item("DOMAIN", "?3", "20", "x"),
        Item("DOMAIN", "4", "?", "x"),
        Item("DOMAIN", "1", "4", "x", isoform="P12345-2"),
        Item("DOMAIN", "?", "4", "x", isoform="P12345-2"),
        Item("SIGNAL", "1", "7"),
        Item("VARIANT", "8", "8", "in dbSNP:rs1", change=("K", ("R",))),
        Item("VARIANT", "8", "8", "", change=("K", ("R", "Q"))),
        Item("CONFLICT", "8", "9", "in Ref. 1; AAA1 and 2; AAA2", change=("KQ", ("RR", "QQ"))),
        Item("MUTAGEN", "10", "10", "Loses DNA AND RNA binding.", change=("R", ("A", "K"))),
        Item("MUTAGEN", "10", "12", "Loses it.", change=("RQI", ())),
        Item("VAR_SEQ", "10", "60", "in isoform 2", change=(SEQUENCE[9:60], (SEQUENCE[5:65],))),
        Item("VAR_SEQ", "10", "12", "in isoform 3", change=("", ())),
    ],
)
EXPECTED = [
    Feature("Binding site", 4, 5, "catalytic", "Zn(2+)"),
    Feature("Binding site", 6, 9, "", BY_HAND.items[1].ligand),
    Feature("Disulfide bond", 2, 9),
    Feature("Disulfide bond", 11, 12, "Interchain (with C-12)"),
    Feature("Domain", 0, 10, BY_HAND.items[4].note),
    Feature("Domain", 59, 69, "goes on"),
    Feature("Signal peptide", 0, 7),
    Feature("Natural variant", 7, 8, "K -> R (in dbSNP:rs1)"),
    Feature("Natural variant", 7, 8, "K -> R,Q"),
    Feature("Sequence conflict", 7, 9, "KQ -> RR or QQ (in Ref. 1; AAA1 and 2; AAA2)"),
    Feature("Mutagenesis", 9, 10, "R->A,K: Loses DNA AND RNA binding."),
    Feature("Mutagenesis", 9, 12, "Missing: Loses it."),
    Feature("Alternative sequence", 9, 60, f"{SEQUENCE[9:60]} -> {SEQUENCE[5:65]} (in isoform 2)"),
    Feature("Alternative sequence", 9, 12, "Missing (in isoform 3)"),
]


def write(folder: Path, entries: list[Entry]) -> dict[str, Path]:
    texts = {"tsv": tsv(entries), "flat": flat(entries)}
    texts |= {form: json_text(entries, form) for form in ("results", "list", "lines")}
    for name, text in texts.items():
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name in {"flat", "list"} else data)
    return {name: folder / name for name in texts}


def test_features_by_hand_in_every_format(tmp_path: Path) -> None:
    paths = write(tmp_path, [BY_HAND, Entry("Q1", "Other", "MK")])
    for name, path in paths.items():
        protein, other = read_proteins(path)
        assert protein.name == BY_HAND.name, name
        assert protein.sequence == SEQUENCE
        assert Counter(protein.features) == Counter(EXPECTED), name
        assert (protein.num_unknown_positions, protein.num_isoform_features) == (3, 2), name
        assert facts(other) == ("Q1", "Other", "MK", Counter(), 0, 0)
    lines = {name: next(iter(read_proteins(path))).line for name, path in paths.items()}
    assert lines == {"tsv": 2, "flat": 1, "results": 1, "list": 2, "lines": 1}
    assert {name: detect_format(path) for name, path in paths.items()} == {
        "tsv": "uniprot_tsv",
        "flat": "uniprot_text",
        **dict.fromkeys(("results", "list", "lines"), "uniprot_json"),
    }


WORDS = st.text(st.sampled_from('abcXYZ019-,.;:()[]/"=<>{}é'), min_size=1, max_size=24)
NOTES = st.lists(WORDS, max_size=12).map(" ".join)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    sequence = draw(st.text(st.sampled_from("ACDEFGHIKLMNPQRSTVWYXBZUO"), min_size=1, max_size=130))
    items = []
    for _ in range(draw(st.integers(0, 5))):
        first = draw(st.integers(1, len(sequence)))
        last = draw(st.integers(first, len(sequence)))
        start, end = (draw(st.sampled_from(["", "", "", "<", ">", "?"])) + str(place) for place in (first, last))
        start, end = (draw(st.sampled_from([place, place, place, "?"])) for place in (start, end))
        key = draw(st.sampled_from(sorted(KINDS)))
        change = None
        if key in CHANGES:
            letters = st.text(st.sampled_from("ACDEFGHIKLMNPQRSTVWY"), min_size=1, max_size=80)
            change = (draw(letters), tuple(draw(st.lists(letters, max_size=3))))
        note = draw(NOTES.filter(unambiguous))
        ligand = draw(NOTES.filter(unambiguous)) if key == "BINDING" else ""
        isoform = draw(st.sampled_from(["", "", "P1-2"]))
        items.append(Item(key, start, end, note, ligand, isoform, change))
    return Entry("P1", "Name of it", sequence, items)


def unambiguous(text: str) -> bool:
    """Whether the flat text can say it: a break after a hyphen hides whether a blank stood there, for one."""
    return (
        "- " not in text
        and " -" not in text
        and "/" not in text
        and not text.endswith(("-", '"'))
        and not text.startswith('"')
        and "--" not in text
    )


@settings(max_examples=150, deadline=None)
@given(entries())
@example(Entry("P1", "Name of it", "A", [Item("VARIANT", "1", "1", "", change=("AAAAA", ("A" * 42, "A" * 16)))]))
def test_random_entries_are_the_same_in_every_format(entry: Entry) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: [facts(p) for p in read_proteins(path)] for name, path in write(Path(folder), [entry]).items()}
    assert len(found["tsv"]) == 1
    for name in found:
        assert found[name] == found["tsv"], name


def test_real_flat_entries_agree_with_the_tsv_of_the_same_entries() -> None:
    """In the columns that the TSV has; its names begin with the recommended name."""
    table = {protein.accession: protein for protein in read_uniprot_tsv(TSV)}
    types = {TYPES[column] for column in feature_columns(TSV)}
    shared = [protein for protein in read_uniprot_text(FLAT) if protein.accession in table]
    assert len(shared) == 9
    for protein in shared:
        other = table[protein.accession]
        assert protein.sequence == other.sequence
        assert other.name.startswith(protein.name)
        features = Counter(feature for feature in protein.features if feature.type in types)
        assert features == Counter(other.features), protein.accession
        assert sum(features.values()) >= 5


def test_the_real_entry_in_both_agrees_in_everything() -> None:
    flat_entry, json_entry = (
        next(protein for protein in read(path) if protein.accession == "P10599")
        for read, path in ((read_uniprot_text, FLAT), (read_uniprot_json, JSON))
    )
    assert facts(flat_entry) == facts(json_entry)
    assert flat_entry.name == "Thioredoxin"
    assert len(flat_entry.features) == 44
    assert Feature("Alternative sequence", 43, 63, "Missing (in isoform 2)") in flat_entry.features


def test_every_type_of_the_tsv_is_known_by_its_name_in_the_json() -> None:
    assert sorted(KEY_OF_JSON.values()) == sorted(FEATURE_KEYS.values())
    for key, (column, name) in KINDS.items():
        assert KEY_OF_JSON[name] == key == FEATURE_KEYS[column]


@pytest.mark.parametrize(("path", "num_proteins", "num_features"), [(FLAT, 12, 306), (JSON, 6, 121)])
def test_real_fixtures_are_read_whole(path: Path, num_proteins: int, num_features: int) -> None:
    """Counted again with regular expressions over the text."""
    import json
    import re

    proteins = list(read_proteins(path))
    text = gzip.decompress(path.read_bytes()).decode()
    if path is FLAT:
        counts = [len(re.findall(r"^FT   [A-Z]", part, re.MULTILINE)) for part in text.split("\n//\n")[:-1]]
    else:
        counts = [len(entry["features"]) for entry in json.loads(text)["results"]]
    assert [len(p.features) + p.num_unknown_positions + p.num_isoform_features for p in proteins] == counts
    assert len(proteins) == num_proteins
    assert sum(counts) == num_features
    assert sum(p.num_unknown_positions for p in proteins) > 0
    if path is FLAT:
        assert sum(p.num_isoform_features for p in proteins) > 0
    cysteines = {
        protein.sequence[place]
        for protein in proteins
        for feature in protein.features
        if feature.type == "Disulfide bond"
        for place in (feature.start, feature.end - 1)
    }
    assert cysteines == {"C"}
