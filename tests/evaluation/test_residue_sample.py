from pathlib import Path

import numpy as np
import pytest
import torch

from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.residue_sample import sample_residues
from plmsae.plms.base import ProteinLM
from tests.evaluation.conftest import random_sae, saved


@pytest.fixture
def inputs(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> Inputs:
    return Inputs.load(sequences, store, saved(random_sae(plm, store), tmp_path), root=tmp_path)


def test_every_sampled_residue_is_where_the_table_says(inputs: Inputs, plm: ProteinLM) -> None:
    found = sample_residues(inputs, max_proteins=6, num_tokens=40, max_tokens=4096, threads=1, seed=3)
    proteins = inputs.split("test", 6, 3).set_index("accession")
    assert found.num_residues == int(proteins["length"].sum())
    assert len(found.x) == len(found.table) == 40
    assert not found.table.duplicated(["accession", "position"]).any()
    for number, row in enumerate(found.table.itertuples()):
        sequence = str(proteins.loc[row.accession, "sequence"])
        assert sequence[row.position - 1] == row.residue
        alone = plm.hidden(plm.tokenize([sequence]), inputs.sae.config.layer)[row.position - 1]
        torch.testing.assert_close(found.x[number], alone, rtol=1e-3, atol=1e-2)


def test_the_sample_depends_on_the_seed_alone(inputs: Inputs) -> None:
    settings = {"max_proteins": 6, "num_tokens": 40}
    first = sample_residues(inputs, **settings, max_tokens=256, threads=1, seed=3)  # type: ignore[arg-type]
    again = sample_residues(inputs, **settings, max_tokens=4096, threads=2, seed=3)  # type: ignore[arg-type]
    other = sample_residues(inputs, **settings, max_tokens=256, threads=1, seed=4)  # type: ignore[arg-type]
    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)


def test_where_there_are_fewer_residues_all_are_taken(inputs: Inputs) -> None:
    found = sample_residues(inputs, max_proteins=1, num_tokens=10**6, max_tokens=4096, threads=1, seed=0)
    assert len(found.table) == found.num_residues
    np.testing.assert_array_equal(found.table["position"], np.arange(1, found.num_residues + 1))
