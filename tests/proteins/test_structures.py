from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from plmsae.errors import DataError, UserError
from plmsae.proteins.structure_folder import read_structures
from plmsae.proteins.structure_mapping import acceptable, map_chain
from plmsae.proteins.structures import Chain, Reference, Residue, read_chains

FOLDER = Path(__file__).parents[1] / "fixtures" / "structures"
# SEQRES of 1A8O without its first residue, which is not of the virus: residues 283 to 351 of P12497.
CAPSID = "DIRQGPKEPFRDYVDRFYKTLRAEQASQEVKNWMTETLLVQNANPDCKTILKALGPGATLEEMMTACQG"
INSULIN = (
    "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN"
)
HPR = "MAQKTFKVTADSGIHARPATVLVQTASKYDADVNLEYNGKTVNLKSIMGVMSLGIAKGAEITISASGADENDALNALEETMKSEGLGE"


def made(letters: str, numbers: list[int] | None = None, references: list[Reference] | None = None) -> Chain:
    numbers = numbers or list(range(1, len(letters) + 1))
    residues = [
        Residue(letter, number, "", (0.0, 0.0, 0.0), 1.0) for letter, number in zip(letters, numbers, strict=True)
    ]
    return Chain("A", residues, references or [])


def biopython_ca(path: Path) -> tuple[str, np.ndarray, list[float]]:
    """Letters, coordinates and B factors of the first chain, by Biopython's own parser."""
    from Bio.PDB import MMCIFParser, PDBParser
    from Bio.SeqUtils import seq1

    parser = MMCIFParser(QUIET=True) if ".cif" in path.name else PDBParser(QUIET=True)
    with gzip.open(path, "rt") as handle:
        chain = next(parser.get_structure("x", handle)[0].get_chains())
    atoms = [(residue.resname, residue["CA"]) for residue in chain if "CA" in residue and residue.id[0] != "W"]
    letters = "".join(seq1(name, custom_map={"MSE": "M"}) for name, _ in atoms)
    return letters, np.array([atom.coord for _, atom in atoms]), [float(atom.bfactor) for _, atom in atoms]


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_chains_are_those_of_biopython(path: Path) -> None:
    (chain,) = read_chains(path)
    letters, places, b_factors = biopython_ca(path)
    assert chain.sequence == letters
    np.testing.assert_allclose([residue.place for residue in chain.residues], places, atol=1e-3)
    np.testing.assert_allclose([residue.b_factor for residue in chain.residues], b_factors, atol=1e-3)


@pytest.mark.parametrize("name", ["1A8O.cif.gz", "1A8O.pdb.gz"])
def test_a_construct_is_where_the_file_says(name: str) -> None:
    (chain,) = read_chains(FOLDER / name)
    protein = "A" * 282 + CAPSID + "G" * 50
    mapping = map_chain(chain, "P12497", protein)
    assert (mapping.method, mapping.identity, mapping.mismatches) == ("reference", 1.0, ())
    # The selenomethionine before it is a remnant of cloning and has no UniProt position.
    assert mapping.positions == (None, *range(282, 351))
    assert chain.sequence == "M" + CAPSID
    assert mapping.coverage == pytest.approx(69 / len(protein))
    without = map_chain(Chain(chain.name, chain.residues), "P12497", protein)
    assert (without.method, without.positions) == ("alignment", mapping.positions)


def test_a_reference_that_the_letters_contradict_is_not_believed() -> None:
    shifted = [Reference("P1", 1, 88, 4)]
    mapping = map_chain(made(HPR, references=shifted), "P1", HPR)
    assert (mapping.method, mapping.identity) == ("alignment", 1.0)
    assert mapping.positions == tuple(range(88))


def test_gaps_tags_and_insertions_are_aligned() -> None:
    observed = "GSHM" + HPR[5:30] + HPR[44:]  # a tag, five residues missing, a disordered loop
    mapping = map_chain(made(observed), "P1", HPR)
    assert mapping.positions == (None, None, None, None, *range(5, 30), *range(44, 88))
    assert mapping.identity == 1.0


def test_another_protein_is_not_acceptable() -> None:
    assert not acceptable(map_chain(made(INSULIN), "P1", HPR))
    assert not acceptable(map_chain(made(HPR[:5]), "P1", HPR))
    assert not acceptable(map_chain(made(""), "P1", HPR))


def test_a_folder_is_mapped_and_every_disagreement_is_named(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("no structure")
    found = {
        (item.structure, item.accession): item
        for item in read_structures(tmp_path, {"P08877": HPR, "sp-P12497": "A" * 282 + CAPSID, "P01308": INSULIN})
    }
    hpr = found["P08877__1KKL_H.pdb.gz", "P08877"]
    assert hpr.mapping is not None
    assert not hpr.problem
    shown = [f"{item.expected}{item.position}{item.found}" for item in hpr.mapping.mismatches]
    assert shown == ["G85R"]
    assert hpr.mapping.num_mapped == 86
    insulin = found["AF-P01308-F1-model.cif.gz", "P01308"]
    assert insulin.mapping is not None
    assert insulin.mapping.positions == tuple(range(110))
    assert found["notes.txt", ""].problem.startswith("not a structure")
    assert found["1A8O.cif.gz", ""].problem == "its proteins are not in the table: P12497"


def test_a_structure_of_another_sequence_is_left_out_with_examples(tmp_path: Path) -> None:
    (tmp_path / "1A8O.cif.gz").write_bytes((FOLDER / "1A8O.cif.gz").read_bytes())
    (item,) = read_structures(tmp_path, {"P12497": HPR * 4})
    assert "the sequences disagree" in item.problem
    assert item.accession == "P12497"


def cif(text: str) -> bytes:
    return gzip.compress(text.encode())


WHOLE = gzip.decompress((FOLDER / "1A8O.cif.gz").read_bytes()).decode()
PDB = gzip.decompress((FOLDER / "1A8O.pdb.gz").read_bytes()).decode()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.cif", b"", "not mmCIF"),
        ("a.cif", b"<html>busy</html>", "not mmCIF"),
        ("a.cif.gz", cif(WHOLE)[:3000], "truncated"),
        ("a.cif", b"data_x\n_entry.id X\n", "has no _atom_site"),
        ("a.cif", WHOLE[: WHOLE.index("_atom_site.label_atom_id") - 30].encode(), "has no _atom_site"),
        ("a.cif", WHOLE.replace("20.255", "twenty").encode(), "not a number"),
        ("a.cif", WHOLE.replace("20.255", "nan").encode(), "not a number"),
        ("a.cif", WHOLE[: WHOLE.index("20.613") + 3].encode(), "differ in length|cannot be read"),
        ("a.pdb", b"", "holds no atoms"),
        ("a.pdb", PDB.replace("20.613", "2o.613").encode(), "ATOM record cannot be read"),
        ("a.pdb", b"ATOM      2  CA  MET A   x      1.0 2.0 3.0\n", "ATOM record cannot be read"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_chains(tmp_path / name)
    assert name in str(caught.value.where)
    assert caught.value.fix


def test_alternative_places_models_and_calcium() -> None:
    import tempfile

    lines = [
        "MODEL        1",
        "ATOM      1  CA AGLY A   1      11.000   0.000   0.000  0.40 10.00           C",
        "ATOM      2  CA BGLY A   1      12.000   0.000   0.000  0.60 20.00           C",
        "HETATM    3  CA  MSE A   2      13.000   0.000   0.000  1.00 30.00           C",
        "ATOM      4  CA  SER A   2A     14.000   0.000   0.000  1.00 40.00           C",
        "HETATM    5 CA    CA A 101      15.000   0.000   0.000  1.00 50.00          CA",
        "ENDMDL",
        "MODEL        2",
        "ATOM      1  CA  GLY A   9      99.000   0.000   0.000  1.00 10.00           C",
        "ENDMDL",
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ent"
        path.write_text("\n".join(lines))
        (chain,) = read_chains(path)
    assert [(r.letter, r.number, r.insertion, r.place[0], r.b_factor) for r in chain.residues] == [
        ("G", 1, "", 12.0, 20.0),
        ("M", 2, "", 13.0, 30.0),
        ("S", 2, "A", 14.0, 40.0),
    ]


def test_an_empty_or_missing_folder(tmp_path: Path) -> None:
    for folder, problem in ((tmp_path, "is empty"), (tmp_path / "none", "does not exist")):
        with pytest.raises(UserError, match=problem):
            list(read_structures(folder, {"P1": HPR}))
