"""Features: each row against a plain loop over residues, the order, and every kind of bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import plmsae
from plmsae.errors import DataError, UserError
from plmsae.interpretation.features import COLUMNS, iterate
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.saes.base import SparseAutoencoder
from tests.registry.outputs import small_sae

PROTEINS = {"P1": "MKTAYIAKQRQISFVKSHFSRQ", "P2": "GSHMXAUWW", "P3": "M"}


@pytest.fixture(scope="module")
def plm() -> ProteinLM:
    torch.set_num_threads(1)
    return load_plm("esm_small")


@pytest.fixture
def sae() -> SparseAutoencoder:
    return small_sae()


def by_hand(proteins: dict[str, str], sae: SparseAutoencoder, plm: ProteinLM) -> list[tuple[object, ...]]:
    """One protein, one residue, one latent at a time, from the dense encoding."""
    rows: list[tuple[object, ...]] = []
    for accession, sequence in proteins.items():
        z = sae.encode(plm.hidden(plm.tokenize([sequence]), sae.config.layer))
        for place, letter in enumerate(sequence):
            active = [(float(value), latent) for latent, value in enumerate(z[place]) if value > 0]
            for value, latent in sorted(active, key=lambda item: (-item[0], item[1])):
                rows.append(
                    (accession, place + 1, letter, latent, value, value / float(sae.latent_max[latent] or np.nan))
                )
    return rows


def test_features_are_what_a_plain_loop_finds(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    table = plmsae.features(PROTEINS, sae, plm)
    assert tuple(table.columns) == COLUMNS
    expected = pd.DataFrame(by_hand(PROTEINS, sae, plm), columns=list(COLUMNS[:-1]))
    assert len(table) == len(expected) > 100
    for column in ("accession", "position", "residue", "latent"):
        assert table[column].tolist() == expected[column].tolist(), column
    np.testing.assert_allclose(table["activation"], expected["activation"], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(table["normalised_activation"], expected["normalised_activation"], rtol=2e-4, atol=1e-5)
    assert set(table["concept"]) == {""}


def test_one_sequence_needs_no_more_than_itself(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    table = plmsae.features(PROTEINS["P1"], sae)
    pd.testing.assert_frame_equal(table, plmsae.features({"query": PROTEINS["P1"]}, sae, plm))
    pd.testing.assert_frame_equal(table, plmsae.features(f" {PROTEINS['P1'].lower()}\n", sae, plm))


def test_the_strongest_latents_of_each_residue(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    whole = plmsae.features(PROTEINS, sae, plm)
    expected = whole.groupby(["accession", "position"], sort=False).head(2).reset_index(drop=True)
    pd.testing.assert_frame_equal(plmsae.features(PROTEINS, sae, plm, top=2), expected)


def test_a_latent_without_a_scale_has_no_normalised_activation(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    sae.latent_max.zero_()
    sae.latent_max[:32] = 2.0
    table = plmsae.features(PROTEINS, sae, plm)
    measured = table["latent"] < 32
    assert measured.any()
    assert not measured.all()
    assert table.loc[~measured, "normalised_activation"].isna().all()
    np.testing.assert_allclose(table.loc[measured, "normalised_activation"] * 2, table.loc[measured, "activation"])


def test_concepts_come_with_the_sae_or_are_given(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    latent = int(plmsae.features(PROTEINS, sae, plm)["latent"].mode()[0])
    sae.concepts = {latent: "Zinc finger"}
    table = plmsae.features(PROTEINS, sae, plm)
    assert set(table.loc[table["latent"] == latent, "concept"]) == {"Zinc finger"}
    assert set(table.loc[table["latent"] != latent, "concept"]) == {""}
    given = plmsae.features(PROTEINS, sae, plm, concepts={latent: "mine"})
    assert set(given["concept"]) == {"mine", ""}


def test_pieces_put_together_are_the_whole(
    sae: SparseAutoencoder, plm: ProteinLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plmsae.interpretation import features as module

    whole = plmsae.features(PROTEINS, sae, plm)
    monkeypatch.setattr(module, "MAX_TOKENS", 14)
    pieces = list(iterate(PROTEINS, sae, plm))
    assert len(pieces) == 2
    joined = pd.concat(pieces, ignore_index=True)
    assert joined[["accession", "position", "latent"]].equals(whole[["accession", "position", "latent"]])
    np.testing.assert_allclose(joined["activation"], whole["activation"], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("proteins", "where"),
    [({"P1": "MKV", "P2": "MK1V"}, "P2, position 3"), ({"P1": "MKV", "P2": " "}, "P2"), ("MK*", "query, position 3")],
)
def test_an_illegal_sequence_is_named_with_its_position(
    proteins: dict[str, str] | str, where: str, sae: SparseAutoencoder, plm: ProteinLM
) -> None:
    with pytest.raises(DataError) as caught:
        plmsae.features(proteins, sae, plm)
    assert caught.value.where == where


def test_a_sequence_longer_than_the_plm_takes_is_refused(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    with pytest.raises((UserError, DataError), match=str(plm.max_residues)):
        plmsae.features({"long": "M" * (plm.max_residues + 1)}, sae, plm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plm_revision": "sha256:other"}, "plm_revision sha256:other"),
        ({"plm": "esm_big"}, "plm esm_big"),
        ({"layer": 99}, "has no layer 99"),
        ({"hook": "head"}, "has no hook 'head'"),
        ({"normaliser": {"kind": "rms", "scale": 2.0, "folded": False}}, "divided by 2"),
    ],
)
def test_a_sae_of_another_origin_is_refused_naming_both_sides(
    changes: dict[str, object], message: str, plm: ProteinLM
) -> None:
    with pytest.raises(UserError) as caught:
        plmsae.features("MKV", small_sae(**changes), plm)
    assert message in str(caught.value)


def test_weights_of_another_revision_are_refused_when_loading() -> None:
    with pytest.raises(UserError, match="sha256:other"):
        plmsae.features("MKV", small_sae(plm_revision="sha256:other"))


@pytest.mark.parametrize("top", [0, -1])
def test_top_must_be_positive(top: int, sae: SparseAutoencoder, plm: ProteinLM) -> None:
    with pytest.raises(UserError, match="top"):
        plmsae.features("MKV", sae, plm, top=top)


def test_no_sequence_is_refused(sae: SparseAutoencoder, plm: ProteinLM) -> None:
    with pytest.raises(UserError, match="no sequence"):
        plmsae.features({}, sae, plm)
