from __future__ import annotations

import pandas as pd
import pytest


@pytest.fixture
def sequences() -> pd.DataFrame:
    rows = [
        ("P1", 0, "MKTAYIAKQRC", "P1", "train"),
        ("P2", 0, "MSTNPKPQRKTKR", "P2", "valid"),
        ("P3", 0, "MCCSNYTWLC", "P3", "test"),
        ("P4", 0, "MKTAYIAKQRW", "P1", "train"),
    ]
    frame = pd.DataFrame(rows, columns=["accession", "offset", "sequence", "cluster", "split"])
    frame.insert(3, "length", frame["sequence"].str.len().astype("int32"))
    frame["name"] = ""
    return frame


@pytest.fixture
def annotations() -> pd.DataFrame:
    rows = [
        ("P1", 0, "Helix", 0, 11, "", ""),
        ("P1", 0, "Initiator methionine", 0, 1, "Removed", ""),
        ("P2", 0, "Modified residue", 1, 2, "Phosphoserine; by CK2", ""),
        ("P2", 0, "Modified residue", 2, 3, "Phosphothreonine", ""),
        ("P3", 0, "Disulfide bond", 1, 10, "", ""),
        ("P3", 0, "Disulfide bond", 2, 3, "Interchain", ""),
        ("P3", 0, "Glycosylation", 4, 5, "N-linked (GlcNAc...) asparagine", ""),
        ("P3", 0, "Signal peptide", 0, 4, "", ""),
    ]
    frame = pd.DataFrame(rows, columns=["accession", "offset", "type", "start", "end", "note", "ligand"])
    return frame.astype({"start": "int32", "end": "int32", "offset": "int32"})
