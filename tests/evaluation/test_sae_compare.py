"""SAEs side by side: the numbers are those of other evaluations, and twins of an SAE are found to be twins."""

from typing import Any

import numpy as np
import pytest
import torch

from plmsae.evaluation.concepts import evaluate as evaluate_concepts
from plmsae.evaluation.inputs import Inputs, Proteins
from plmsae.evaluation.member_pass import Member
from plmsae.evaluation.sae_compare import Comparison, _moved, compare
from plmsae.evaluation.sae_compare_report import as_mapping, concept_table, latent_tables, lines, write
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from tests.evaluation.conftest import letter_sae, random_sae, sae_config, saved

SETTINGS: dict[str, Any] = {
    "max_proteins": 20,
    "min_instances": 5,
    "min_proteins": 3,
    "thresholds": [0.0, 0.5],
    "num_resamples": 60,
    "confidence": 0.95,
    "max_tokens": 1024,
    "threads": 1,
    "seed": 0,
}
MATCH: dict[str, Any] = {"match": True, "match_thresholds": [0.5, 0.9]}
ORDER = torch.from_numpy(np.random.default_rng(5).permutation(256))


def shuffled(sae: SparseAutoencoder, plm: ProteinLM) -> SparseAutoencoder:
    """The same SAE with its latents in another order."""
    twin = build(sae_config(plm, "topk", 3, 256, 16), seed=1).requires_grad_(False)
    for name in ("W_enc", "W_dec", "b_enc", "latent_max"):
        getattr(twin, name).copy_(getattr(sae, name)[ORDER])
    twin.b_dec.copy_(sae.b_dec)
    return twin


@pytest.fixture(scope="module")
def members(plm: ProteinLM, store: Any) -> list[Member]:
    first = random_sae(plm, store)
    control = load_plm("esm_small?permuted=0")
    other = build(sae_config(control, "topk", 2, 64, 8).replace(plm_revision=control.revision), seed=3)
    return [
        Member("first", first, plm),
        Member("shuffled", shuffled(first, plm), plm),
        Member("letters", letter_sae(plm), plm),
        Member("other model", other.requires_grad_(False), control),
    ]


@pytest.fixture(scope="module")
def found(sequences: Any, members: list[Member]) -> Comparison:
    return compare(Proteins(sequences), members, **SETTINGS, **MATCH)


def test_numbers_are_those_of_the_concept_evaluation(
    found: Comparison, sequences: Any, store: Any, members: list[Member], tmp_path: Any
) -> None:
    inputs = Inputs.load(sequences, store, saved(members[0].sae, tmp_path / "sae"), root=tmp_path)
    alone = evaluate_concepts(inputs, tmp_path, **SETTINGS, concepts_per_latent=1).metrics
    f1 = found.values[0]["mean_f1"]
    assert len(found.data.concepts) == alone["num_concepts"] > 3
    assert (f1.value, f1.low, f1.high) == (alone["mean_f1_sae"], alone["mean_f1_sae_low"], alone["mean_f1_sae_high"])


def test_every_sae_reads_its_own_place(found: Comparison, sequences: Any, members: list[Member]) -> None:
    """FVU, L0 and dead share by another route, for SAEs of two models and three layers."""
    assert found.measured == ["other model"]
    proteins = Proteins(sequences).split("test", 20, 0)
    for member, values in zip(members, found.values, strict=True):
        pieces = [
            member.plm.hidden(member.plm.tokenize([sequence]), *vars(member.place).values())
            for sequence in proteins["sequence"]
        ]
        x = torch.cat(pieces)
        z = member.sae.encode(x)
        error = (x.double() - member.sae.decode(z, x).double()).square().sum()
        assert values["fvu"].value == pytest.approx(float(error / (x - x.mean(0)).double().square().sum()), rel=1e-3)
        assert values["l0"].value == pytest.approx(float((z > 0).sum(1).double().mean()), rel=1e-3)
        assert values["dead"].value == pytest.approx(float((z > 0).any(0).logical_not().double().mean()), abs=0.02)
        for each in values.values():
            assert each.low <= each.high


def test_a_twin_differs_in_nothing_and_matches_wholly(found: Comparison) -> None:
    gaps, matched = found.differences[0], found.matched[0]
    for name in ("fvu", "l0", "dead", "mean_f1"):
        assert gaps[name].value == pytest.approx(0, abs=1e-6), name
        assert gaps[name].low == pytest.approx(0, abs=1e-6), name
    for kind in ("of_other", "of_first", "one_to_one"):
        share = matched.shares[kind][1]
        assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0), kind
        assert matched.null[kind][1].value < 0.5, kind
    numbers = [each.number for each in matched.by_rate]
    assert sum(numbers) == matched.fired["of_other"].sum()
    assert sum(number > 0 for number in numbers) > 1
    for each in matched.by_rate:
        assert each.number == 0 or each.shares[1].value == 1.0
    weighted = sum(each.null_number * each.null[0].value for each in matched.by_rate)
    assert weighted / sum(each.null_number for each in matched.by_rate) == pytest.approx(
        matched.null["of_other"][0].value, abs=0.05
    )
    live = matched.fired["one_to_one"]
    assert (matched.partners["one_to_one"][live] == ORDER.numpy()[live]).all()
    assert matched.cosines is not None
    assert (matched.cosines[0] == ORDER.numpy()).all()
    assert matched.cosine_shares == [1.0, 1.0]
    assert matched.cosine_null == [0.0, 0.0]


def test_differences_are_paired(found: Comparison) -> None:
    """Letters fire once per residue: L0 is 1 in every resample, so the interval is that of the first SAE's L0 alone."""
    gap, first = found.differences[1]["l0"], found.values[0]["l0"]
    assert found.values[1 + 1]["l0"].value == pytest.approx(1.0)
    assert gap.value == pytest.approx(1 - first.value)
    assert (gap.low, gap.high) == pytest.approx((1 - first.high, 1 - first.low))


def test_reports(found: Comparison, tmp_path: Any) -> None:
    mapping = as_mapping(found)
    assert [each["name"] for each in mapping["saes"]] == ["first", "shuffled", "letters", "other model"]
    assert mapping["saes"][3]["latent_max_measured_here"]
    assert mapping["differences"][0]["minus"] == "first"
    assert mapping["matches"][0]["shares"][0]["cosine"] == 1.0
    text = "\n".join(lines(found, 0.95))
    assert "MINUS first" in text
    assert "esm_small?permuted=0" in text
    assert "measured on the validation proteins for: other model" in text
    assert write(found, tmp_path) == ["saes", "differences", "matches", "matches_by_rate", "latents", "concepts"]
    latents = latent_tables(found)
    assert len(latents) == 256 + 20 + 64
    assert latents["match_correlation_test"].max() == pytest.approx(1.0)
    assert concept_table(found)["f1 letters"].between(0, 1).all()


def test_threads_and_order_of_work_do_not_change_a_number(
    found: Comparison, sequences: Any, members: list[Member]
) -> None:
    again = compare(Proteins(sequences), members[:2], **{**SETTINGS, "threads": 2}, **MATCH)
    assert as_mapping(again)["matches"] == as_mapping(found)["matches"][:1]
    assert again.values == found.values[:2]
    assert again.differences == found.differences[:1]


def test_without_concepts_and_without_matching(sequences: Any, members: list[Member]) -> None:
    settings = {**SETTINGS, "min_instances": 10**6, "max_proteins": 4}
    alone = compare(Proteins(sequences), members[:1], **settings, match=False, match_thresholds=[])
    assert not alone.tested
    assert set(alone.values[0]) == {"fvu", "l0", "dead"}
    assert as_mapping(alone)["matches"] == as_mapping(alone)["differences"] == []
    assert "concept F1" not in "\n".join(lines(alone, 0.95))


def test_an_interval_of_moved_resamples_holds_the_estimate() -> None:
    """One resample of a hundred differs: its pull on the mean must not move the bounds off the estimate."""
    samples = np.array([0.0] * 99 + [0.5])
    found = _moved(0.0, samples, 0.9)
    assert (found.low, found.value, found.high) == (pytest.approx(-0.005), 0.0, 0.0)
