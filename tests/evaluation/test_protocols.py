"""What is fed and what is scored, position by position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plmsae.errors import DataError
from plmsae.evaluation.protocols import Batch, masked_rows, one_at_a_time, protocols_of, single_rows, together
from plmsae.plms.base import ProteinLM
from tests.evaluation.conftest import LETTERS


def test_masking_depends_on_the_name_and_the_seed_alone() -> None:
    scored = np.ones(60, dtype=bool)
    scored[[3, 33]] = False
    together = masked_rows(["a", "b"], scored, np.array([0, 30, 60]), 0.15, 0)
    alone = masked_rows(["b"], scored[30:], np.array([0, 30]), 0.15, 0)
    np.testing.assert_array_equal(together[together >= 30] - 30, alone)
    assert len(together) == 2 * 4
    assert not np.isin([3, 33], masked_rows(["a", "b"], scored, np.array([0, 30, 60]), 1.0, 0)).any()
    assert not np.array_equal(together, masked_rows(["a", "b"], scored, np.array([0, 30, 60]), 0.15, 1))
    assert len(masked_rows(["c"], np.ones(2, dtype=bool), np.array([0, 2]), 0.15, 0)) == 1


def test_residues_that_are_masked_alone_are_another_draw_by_name_and_seed() -> None:
    scored = np.ones(60, dtype=bool)
    scored[[3, 33]] = False
    starts = np.array([0, 30, 60])
    both = single_rows(["a", "b"], scored, starts, 6, 0)
    assert len(both) == 12
    assert not np.isin([3, 33], single_rows(["a", "b"], scored, starts, 99, 0)).any()
    assert len(single_rows(["a", "b"], scored, starts, 99, 0)) == 58
    np.testing.assert_array_equal(both[both >= 30] - 30, single_rows(["b"], scored[30:], np.array([0, 30]), 6, 0))
    assert set(single_rows(["a", "b"], scored, starts, 4, 0)) < set(both)
    assert not np.array_equal(both, single_rows(["a", "b"], scored, starts, 6, 1))
    assert not np.array_equal(both, masked_rows(["a", "b"], scored, starts, 6 / 29, 0))


def test_every_copy_has_its_residue_masked_and_no_other(plm: ProteinLM) -> None:
    sequences = ["MKTAYXIA", "ACDEFGHIKLMN", "WW"]
    batch = Batch.of(plm, sequences, ["a", "b", "c"])
    passes = list(one_at_a_time(plm, batch, count=5, max_tokens=30, seed=0))
    assert (
        sorted(np.concatenate([case.scored for case in passes]))
        == single_rows(["a", "b", "c"], batch.scored, batch.starts, 5, 0).tolist()
    )
    assert len(passes) > 2
    for case in passes:
        assert len(case.tokens.ids) <= 30
        original = batch.targets[torch.from_numpy(case.sources)]
        found = case.tokens.residue_ids()
        changed = (found != original).nonzero()[:, 0]
        assert torch.equal(changed, case.rows)
        assert (found[changed] == plm.mask_id).all()
        np.testing.assert_array_equal(case.sources[case.rows], case.scored)
        copies = batch.owners[case.sources]
        assert len(case.rows) == len(case.tokens.lengths)
        assert [len(sequences[owner]) for owner in batch.owners[case.scored]] == (case.tokens.lengths - 2).tolist()
        assert set(copies) == set(batch.owners[case.scored])


def test_a_causal_model_scores_each_residue_by_the_row_before_it() -> None:
    causal = causal_model()
    batch = Batch.of(causal, ["AXCD", "WA"], ["a", "b"])
    case = together(causal, batch, "causal", masked_share=0.15, seed=0)
    assert case.scored.tolist() == [2, 3, 5]  # C and D; A: neither a first residue nor an X
    assert case.rows.tolist() == [1, 2, 4]
    assert [LETTERS[batch.letters[row]] for row in case.scored] == ["C", "D", "A"]
    assert case.tokens is batch.tokens


def test_protocols_of_masked_and_causal_models(plm: ProteinLM) -> None:
    assert protocols_of(plm, 0) == ("masked", "unmasked")
    assert protocols_of(plm, 3) == ("masked", "single", "unmasked")
    assert protocols_of(causal_model(), 3) == ("causal",)


def test_a_sequence_of_which_nothing_can_be_scored_is_refused(plm: ProteinLM) -> None:
    with pytest.raises(DataError, match="none of the 20 amino acids cannot") as caught:
        Batch.of(plm, ["MKV", "XXX"], ["good", "bad"])
    assert caught.value.where == "bad"
    with pytest.raises(DataError, match="none of the 20 amino acids after its first residue"):
        Batch.of(causal_model(), ["MKV", "MXX"], ["good", "bad"])


def causal_model() -> Any:
    """The tokens of a causal model: a begin token, then letters numbered as in the alphabet."""
    vocabulary = {letter: number for number, letter in enumerate(f"1{LETTERS}X")}

    def tokenize(sequences: list[str], _names: object = None) -> Any:
        ids = torch.tensor([vocabulary[letter] for sequence in sequences for letter in sequence])
        return SimpleNamespace(residue_ids=lambda: ids)

    return SimpleNamespace(
        objective="causal",
        mask_id=None,
        vocabulary=vocabulary,
        tokenize=tokenize,
        residue_ids=lambda tokens: tokens.residue_ids(),
    )
