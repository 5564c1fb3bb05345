from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from pathlib import Path

import pytest

from plmsae.errors import DataError
from plmsae.proteins.feature_types import FEATURE_KEYS, TYPES
from plmsae.proteins.records import Feature
from plmsae.proteins.uniprot import feature_columns, read_uniprot_tsv

# Counted with grep over the decompressed file.
GOLDEN = {"Helix": 483, "Binding site": 434, "Disulfide bond": 46, "Modified residue": 343}
TINY = Path(__file__).parents[1] / "fixtures" / "swissprot_tiny.tsv.gz"
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEK"


def table(tmp_path: Path, rows: list[dict[str, str]], name: str = "in.tsv", quote: bool = False) -> Path:
    path = tmp_path / name
    columns = list(rows[0])
    lines = ["\t".join(columns)]
    for row in rows:
        cells = [row[column] for column in columns]
        if quote:
            cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        lines.append("\t".join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**cells: str) -> dict[str, str]:
    return {"Entry": "P12345", "Length": str(len(SEQUENCE)), "Sequence": SEQUENCE, **cells}


@pytest.mark.parametrize("quote", [False, True])
def test_features_by_hand(tmp_path: Path, quote: bool) -> None:
    cells = {
        "Protein names": 'Protein "X" (EC 1.1.1.1)',
        "Binding site": 'BINDING 5; /ligand="Zn(2+)"; /ligand_id="ChEBI:CHEBI:29105"; /note="catalytic"',
        "Disulfide bond": 'DISULFID 3..9; DISULFID 12; /note="Interchain (with C-12)"',
        "Domain [FT]": 'DOMAIN 1..<10; /note="SH3 1"; DOMAIN ?..20; /note="x"; DOMAIN P12345-2:1..4',
        "Signal peptide": "SIGNAL 1..7",
        "Not a feature": "DOMAIN 1..999",
    }
    (protein,) = read_uniprot_tsv(table(tmp_path, [row(**cells)], quote=quote))
    assert protein.name == 'Protein "X" (EC 1.1.1.1)'
    assert (protein.num_unknown_positions, protein.num_isoform_features) == (1, 1)
    assert sorted(protein.features) == sorted(
        [
            Feature("Binding site", 4, 5, "catalytic", "Zn(2+)"),
            Feature("Disulfide bond", 2, 9),
            Feature("Disulfide bond", 11, 12, "Interchain (with C-12)"),
            Feature("Domain", 0, 10, "SH3 1"),
            Feature("Signal peptide", 0, 7),
        ]
    )


def test_the_fixture_agrees_with_another_reading_of_it() -> None:
    """Counts by regular expressions over csv cells, and golden numbers."""
    proteins = list(read_uniprot_tsv(TINY))
    with gzip.open(TINY, "rt", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [protein.accession for protein in proteins] == [entry["Entry"] for entry in rows]
    assert [protein.sequence for protein in proteins] == [entry["Sequence"] for entry in rows]

    features = [(protein.accession, feature) for protein in proteins for feature in protein.features]
    others: Counter[tuple[str, str, int, int]] = Counter()
    for entry in rows:
        for column, key in FEATURE_KEYS.items():
            for start, end in re.findall(rf"\b{key} (\d+)(?:\.\.(\d+))?(?=;|$)", entry.get(column) or ""):
                others[entry["Entry"], TYPES[column], int(start) - 1, int(end or start)] += 1
    assert Counter((accession, f.type, f.start, f.end) for accession, f in features) == others

    counts = Counter(feature.type for _, feature in features)
    assert (len(proteins), len(features)) == (120, 2577)
    assert {name: counts[name] for name in GOLDEN} == GOLDEN
    assert counts.keys() == {TYPES[column] for column in feature_columns(TINY)}
    # The peers' parsers find no binding site and no signal peptide: the one has /ligand and the other no /note.
    zinc = sum(feature.ligand == "Zn(2+)" for _, feature in features)
    assert zinc == sum(entry["Binding site"].count('/ligand="Zn(2+)"') for entry in rows) > 0


def test_disulfides_of_the_fixture_join_cysteines() -> None:
    ends = Counter(
        protein.sequence[position]
        for protein in read_uniprot_tsv(TINY)
        for feature in protein.features
        if feature.type == "Disulfide bond"
        for position in (feature.start, feature.end - 1)
    )
    assert ends.keys() == {"C"}


@pytest.mark.parametrize(
    ("cells", "problem", "where"),
    [
        ({"Domain [FT]": "DOMAIN 50..60"}, "DOMAIN 50..60 of 'P12345' is outside its sequence of 53", "'Domain [FT]'"),
        ({"Site": "SITE 54"}, "SITE 54 of 'P12345' is outside", "column 'Site'"),
        ({"Site": "SITE 0"}, "SITE 0 of 'P12345' is outside", "column 'Site'"),
        ({"Site": "MOTIF 3"}, "expected 'SITE', not 'MOTIF'", "entry 'P12345', column 'Site'"),
        ({"Site": 'SITE 3; /note="'}, "cannot read the qualifier", "line 2"),
        ({"Length": "52"}, "'P12345' has 53 residues but its Length is '52'", "line 2"),
        ({"Sequence": "MK1", "Length": "3"}, "illegal residue '1' at position 3 of 'P12345'", "line 2"),
        ({"Entry": ""}, "a record has no name", "line 2"),
    ],
)
def test_bad_rows(tmp_path: Path, cells: dict[str, str], problem: str, where: str) -> None:
    path = table(tmp_path, [row(**cells)])
    with pytest.raises(DataError) as error:
        list(read_uniprot_tsv(path))
    assert problem in error.value.problem
    assert error.value.where is not None
    assert str(path) in error.value.where
    assert where in error.value.where
    assert error.value.fix


def test_missing_columns_are_named_with_the_nearest_there_is(tmp_path: Path) -> None:
    path = table(tmp_path, [{"Entry": "P1", "Sequenc": "MK"}])
    with pytest.raises(DataError, match="missing column 'Sequence'") as error:
        list(read_uniprot_tsv(path))
    assert "did you mean 'Sequenc'?" in str(error.value.fix)
    path = table(tmp_path, [{"a": "P1", "b": "MK"}])
    with pytest.raises(DataError, match="missing columns 'Entry', 'Sequence'"):
        list(read_uniprot_tsv(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        ("Entry\tSequence\n", "no rows"),
        ("Entry\tSequence\nP1\n", "the row has 1 cells, the header 2"),
        ("Entry\tSequence\tEntry\nP1\tMK\tP1\n", "column 'Entry' stands twice"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "in.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        list(read_uniprot_tsv(path))
