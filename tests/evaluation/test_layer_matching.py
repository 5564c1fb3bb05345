"""Neighbours matched in groups: the numbers of a comparison of each pair, whatever fits the memory."""

from typing import Any

import numpy as np
import pytest
import torch

from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.inputs import Proteins
from plmsae.evaluation.layer_matching import match_neighbours
from plmsae.evaluation.member_pass import Member
from plmsae.evaluation.sae_compare import compare
from plmsae.plms.base import ProteinLM
from plmsae.saes import build
from tests.evaluation.conftest import sae_config
from tests.evaluation.test_sae_compare import SETTINGS

SMALL: dict[str, Any] = {**SETTINGS, "max_proteins": 6, "num_resamples": 20}


@pytest.fixture(scope="module")
def members(plm: ProteinLM) -> list[Member]:
    found = []
    for layer in (3, 4, 5):
        sae = build(sae_config(plm, "topk", layer, 48, 8), seed=layer).requires_grad_(False)
        sae.latent_max.fill_(1.0)
        found.append(Member(f"layer{layer}", sae, plm))
    return found


def test_every_pair_is_that_of_a_comparison_of_two(members: list[Member], sequences: Any) -> None:
    how = Resampling(SMALL["num_resamples"], SMALL["confidence"], SMALL["seed"])
    means = [torch.zeros(member.plm.d_model) for member in members]
    pairs, data = [], None
    for place in (1, 2):
        each = compare(Proteins(sequences), members[place - 1 : place + 1], **SMALL, match=True, match_thresholds=[0.5])
        pairs.append(each.matched[0])
        data = each.data
    assert data is not None
    settings: dict[str, Any] = {"thresholds": [0.5], "how": how, "threads": 1}
    at_once = match_neighbours(members, means, data, **settings)
    one_by_one = match_neighbours(members, means, data, **settings, bytes_at_once=1)
    assert len(at_once) == len(one_by_one) == 2
    for ours, split, theirs in zip(at_once, one_by_one, pairs, strict=True):
        assert ours.shares == split.shares == theirs.shares
        assert ours.null == split.null
        for kind in theirs.partners:
            np.testing.assert_array_equal(ours.partners[kind], theirs.partners[kind])
            np.testing.assert_array_equal(split.correlations[kind], theirs.correlations[kind])


def test_one_has_no_neighbour(members: list[Member], sequences: Any) -> None:
    alone = compare(Proteins(sequences), members[:1], **SMALL, match=False, match_thresholds=[])
    how = Resampling(10, 0.95, 0)
    assert match_neighbours(members[:1], [], alone.data, thresholds=[0.5], how=how, threads=1) == []
