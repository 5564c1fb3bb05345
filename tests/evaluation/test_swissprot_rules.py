"""From a table as UniProt gives it to labels: every rule by which an annotation becomes residues of a concept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plmsae.evaluation import concept_data
from plmsae.evaluation.concept_data import ConceptData
from plmsae.proteins.rows import build_rows
from plmsae.proteins.uniprot import read_uniprot_tsv

CELLS = {
    # "SH3 1", "SH3 2" are one concept, two instances that share residues 7 to 9. Along another isoform, or with an
    # end that is not known: left out. `<` and `>`: the stated numbers.
    "Domain [FT]": 'DOMAIN 3..9; /note="SH3 1"; DOMAIN 7..12; /note="SH3 2"; DOMAIN P1-2:20..25; /note="SH3 3"; '
    'DOMAIN ?..30; /note="SH3 4"; DOMAIN <31..>34; /note="SH3 5"; DOMAIN 36; /note="PH"',
    # The ligand names the site, with or without a note; two ions of one kind at one residue are one instance.
    "Binding site": 'BINDING 5; /ligand="ATP"; /note="via amide nitrogen"; BINDING 15..16; /ligand="Zn(2+)"; '
    '/ligand_label="1"; BINDING 15; /ligand="Zn(2+)"; /ligand_label="1"; BINDING 15; /ligand="Zn(2+)"; '
    '/ligand_label="2"',
    "Signal peptide": 'SIGNAL 1..4; /evidence="ECO:0000255"',  # no note
    "Active site": "ACT_SITE 8",  # no note
    "Transmembrane": 'TRANSMEM 37..40; /note="Helical; Name=1"; TRANSMEM 18..19; /note="Beta stranded"',
    "Disulfide bond": "DISULFID 10..14",  # its two ends
    "Cofactor": "COFACTOR: Name=Mg(2+); Xref=ChEBI:CHEBI:18420;",  # has no residues
    "Chain": 'CHAIN 5..40; /note="Protein kinase"',  # book-keeping
}
# 1-based residues; number of instances.
EXPECTED = {
    "Active site: any": ([8], 1),
    "Binding site: ATP": ([5], 1),
    "Binding site: Zn(2+)": ([15, 16], 2),
    "Binding site: any": ([5, 15, 16], 3),
    "Disulfide bond": ([10, 14], 1),
    "Domain: PH": ([36], 1),
    "Domain: SH3": ([3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 31, 32, 33, 34], 3),
    "Domain: any": ([3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 31, 32, 33, 34, 36], 4),
    "Signal peptide": ([1, 2, 3, 4], 1),
    "Transmembrane: Beta stranded": ([18, 19], 1),
    "Transmembrane: Helical": ([37, 38, 39, 40], 1),
    "Transmembrane: any": ([18, 19, 37, 38, 39, 40], 2),
}


@pytest.fixture
def data(tmp_path: Path) -> ConceptData:
    path = tmp_path / "two.tsv"
    lines = ["\t".join(("Entry", "Sequence", *CELLS))]
    lines += ["\t".join((name, letter * 40, *CELLS.values())) for name, letter in (("P1", "A"), ("P2", "C"))]
    path.write_text("\n".join(lines) + "\n")
    proteins = list(read_uniprot_tsv(path))
    assert [(p.num_isoform_features, p.num_unknown_positions) for p in proteins] == [(1, 1)] * 2
    names = [p.accession for p in proteins]
    splits = {"P1": "valid", "P2": "test"}
    rows = build_rows(proteins, dict(zip(names, names, strict=True)), splits, policy="drop", max_residues=100)  # type: ignore[arg-type]
    sequences = pd.DataFrame(rows.sequences)
    parts = {name: sequences[sequences["split"] == name].reset_index(drop=True) for name in ("valid", "test")}
    return concept_data.build(pd.DataFrame(rows.annotations), parts, 1, 1, 100)


def test_concepts_residues_and_instances(data: ConceptData) -> None:
    for split in (data.valid, data.test):
        dense = split.labels.residues.toarray()
        found = {
            concept.name: ((np.flatnonzero(dense[:, place]) + 1).tolist(), int(number))
            for place, (concept, number) in enumerate(zip(data.concepts, split.labels.num_instances_of(), strict=True))
        }
        assert found == EXPECTED
        assert set(np.unique(dense)) == {0, 1}
    assert data.left_out.empty
