"""Which residues and proteins are positive, and of which it is known, by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plmsae.errors import UserError
from plmsae.evaluation.probe_tasks import INTERPROT_CLASSES, Task, make_tasks, task_names
from plmsae.proteins.structure_tables import STRUCTURES_FILE, STRUCTURES_SCHEMA

PROTEINS = pd.DataFrame(
    [
        ("P1", 0, "MKTAYIAKQR"),
        ("P2", 0, "ACDEF"),
        ("P3", 0, "GHIKL"),
        ("P3", 3, "KLMNP"),  # a window that overlaps the one before
    ],
    columns=["accession", "offset", "sequence"],
).assign(length=lambda table: table["sequence"].str.len())
ANNOTATIONS = pd.DataFrame(
    [
        ("P1", 0, "Helix", 1, 4, "", ""),
        ("P1", 0, "Helix", 3, 5, "", ""),
        ("P1", 0, "Binding site", 2, 3, "", "ATP"),
        ("P1", 0, "Binding site", 6, 7, "", "Zn(2+)"),
        ("P2", 0, "Transmembrane", 0, 5, "Helical; Name=1", ""),
        ("P2", 0, "Motif", 1, 3, "Nuclear localization signal 2", ""),
        ("P3", 0, "Beta strand", 3, 5, "", ""),
        ("P3", 3, "Beta strand", 0, 3, "", ""),
        ("P3", 0, "Signal peptide", 0, 2, "", ""),
    ],
    columns=["accession", "offset", "type", "start", "end", "note", "ligand"],
)
RESIDUES = {"P1": slice(0, 10), "P2": slice(10, 15), "P3": slice(15, 20), "P3b": slice(20, 25)}


def task(name: str) -> Task:
    return make_tasks([name], ANNOTATIONS, PROTEINS, None, "negative", Path())[0]


def test_secondary_structure() -> None:
    found = task("secondary_structure")
    assert found.classes == ("Beta strand", "Helix")  # no turn is annotated at all
    targets, known = found.labels(PROTEINS)
    assert np.flatnonzero(targets[:, 1]).tolist() == [1, 2, 3, 4], "overlapping helices are one stretch"
    # Residues 3..5 of P3, in both windows (0-based 3, 4 in the first, 0, 1, 2 in the second).
    assert np.flatnonzero(targets[:, 0]).tolist() == [18, 19, 20, 21, 22]
    assert known[RESIDUES["P1"]].all()
    assert known[RESIDUES["P3"]].all()
    assert known[RESIDUES["P3b"]].all()
    assert not known[RESIDUES["P2"]].any(), "a protein without a structure says nothing"


def test_ligands_are_classes_of_their_own() -> None:
    found = task("ligand_binding")
    assert found.classes == ("Binding site: ATP", "Binding site: Zn(2+)", "Binding site: any")
    targets, known = found.labels(PROTEINS)
    assert [np.flatnonzero(column).tolist() for column in targets.T] == [[2], [6], [2, 6]]
    assert known.sum(axis=0).tolist() == [10, 10, 10]


def test_topology_and_signals_of_proteins() -> None:
    targets, known = task("topology").labels(PROTEINS)
    assert targets[RESIDUES["P2"]].all()
    assert known.sum() == targets.sum()
    signals = task("localisation_signals")
    assert signals.per_protein
    targets, known = signals.labels(PROTEINS)
    assert known.all(), "a protein without a signal is an example without one"
    number = signals.classes.index("Signal peptide")
    assert targets[:, number].tolist() == [False, False, True, False]


def test_interprot_knows_the_proteins_that_have_the_class() -> None:
    found = task("interprot")
    assert len(found.classes) == sum(map(len, INTERPROT_CLASSES.values())) == 41
    targets, known = found.labels(PROTEINS)
    motif, helix = found.classes.index("Motif: Nuclear localization signal"), found.classes.index("Helix")
    assert np.flatnonzero(targets[:, motif]).tolist() == [11, 12], "'signal 2' holds the name"
    assert np.flatnonzero(known[:, motif]).tolist() == list(range(10, 15))
    assert np.flatnonzero(known[:, helix]).tolist() == list(range(10))
    assert not known[:, found.classes.index("Domain: Protein kinase")].any()


def labelled(tmp_path: Path, text: str, unlisted: str = "negative") -> Task:
    (tmp_path / "x.csv").write_text(text)
    return make_tasks([], ANNOTATIONS, PROTEINS, tmp_path / "x.csv", unlisted, tmp_path)[0]


def test_a_label_table_of_residues(tmp_path: Path) -> None:
    text = "accession,position,label\nP1,2,a\nP1,3,\nP3,5,b\n"
    targets, known = labelled(tmp_path, text).labels(PROTEINS)
    assert [np.flatnonzero(column).tolist() for column in targets.T] == [[1], [19, 21]]
    assert known.sum(axis=0).tolist() == [20, 20]
    targets, known = labelled(tmp_path, text, "unknown").labels(PROTEINS)
    assert [np.flatnonzero(column).tolist() for column in targets.T] == [[1], [19, 21]]
    assert [np.flatnonzero(column).tolist() for column in known.T] == [[1, 2, 19, 21]] * 2


def test_a_label_table_of_proteins(tmp_path: Path) -> None:
    found = labelled(tmp_path, "accession,label\nP1,Nucleus\nP1,Cytoplasm\nP3,\n")
    assert (found.per_protein, found.classes) == (True, ("Cytoplasm", "Nucleus"))
    targets, known = found.labels(PROTEINS)
    assert targets.tolist() == [[True, True], [False, False], [False, False], [False, False]]
    assert known.all(axis=1).tolist() == [True, False, True, True]


def test_structures_say_where_helices_are_and_what_is_known(tmp_path: Path) -> None:
    """P1 has an ideal helix (1.5 Å rise, 100 degrees, 2.3 Å radius) on residues 2..9; residue 1 has no coordinates."""
    turn = np.radians(100) * np.arange(9)
    ca = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(9)], axis=1)
    columns = {
        "accession": ["P1"] * 9, "structure": ["x"] * 9, "chain": ["A"] * 9, "position": list(range(1, 10)),
        "residue": ["A"] * 9, "same_residue": [True] * 9, "x": ca[:, 0], "y": ca[:, 1], "z": ca[:, 2],
        "b_factor": [0.0] * 9,
    }  # fmt: skip
    with pytest.raises(UserError, match="no structures"):
        make_tasks(["structure"], ANNOTATIONS, PROTEINS, None, "negative", tmp_path)
    pq.write_table(pa.table(columns, schema=STRUCTURES_SCHEMA), tmp_path / STRUCTURES_FILE)
    found = make_tasks(["structure"], ANNOTATIONS, PROTEINS, None, "negative", tmp_path)[0]
    targets, known = found.labels(PROTEINS)
    assert found.classes == ("Helix", "Strand")
    assert np.flatnonzero(known[:, 0]).tolist() == np.flatnonzero(known[:, 1]).tolist() == list(range(1, 10))
    # Measures look three residues ahead: the last two residues have too few for a helix of their own.
    assert np.flatnonzero(targets[:, 0]).tolist() == list(range(2, 9))
    assert not targets[:, 1].any()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    assert "topology" in task_names()
    with pytest.raises(UserError, match="unknown task 'topolgy'") as error:
        make_tasks(["topolgy"], ANNOTATIONS, PROTEINS, None, "negative", tmp_path)
    assert error.value.fix == "did you mean 'topology'?"
    with pytest.raises(UserError, match="no task"):
        make_tasks([], ANNOTATIONS, PROTEINS, None, "negative", tmp_path)
    with pytest.raises(UserError, match="unlisted 'positive'"):
        labelled(tmp_path, "accession,label\nP1,a\n", "positive")
