"""Dimensions by name and by folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plmsae.errors import DataError, UserError
from plmsae.planning.models import known_names, transformer
from plmsae.plms import KNOWN

ESM = {
    "model_type": "esm", "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 100,
    "vocab_size": 33, "max_position_embeddings": 70,
}  # fmt: skip


def write(folder: Path, config: dict[str, Any] | str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_every_model_that_can_be_loaded_by_name_can_be_planned() -> None:
    assert set(KNOWN) <= set(known_names())


def test_a_folder_says_its_dimensions(tmp_path: Path) -> None:
    write(tmp_path / "mine", ESM)
    plm = transformer("mine", tmp_path)
    assert (plm.family, plm.layers, plm.d_model, plm.heads, plm.head_dim, plm.ffn) == ("esm", 4, 48, 6, 8, 100)
    assert (plm.vocabulary, plm.specials, plm.max_residues) == (33, 2, 66)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "esmc", "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6,
             "intermediate_size": 100, "vocab_size": 64, "max_position_embeddings": 50, "head_dim": None},
            ("esmc", 8, 48, 2, 48),
        ),
        (
            {"model_type": "t5", "d_model": 48, "num_layers": 4, "num_heads": 6, "d_kv": 16, "d_ff": 100,
             "vocab_size": 128, "feed_forward_proj": "relu"},
            ("t5", 16, 96, 1, 4096),
        ),
        (
            {"model_type": "progen", "n_embd": 48, "n_layer": 4, "n_head": 6, "n_inner": None, "vocab_size": 32,
             "n_positions": 100},
            ("progen", 8, 48, 1, 99),
        ),
    ],
)  # fmt: skip
def test_other_families(tmp_path: Path, config: dict[str, Any], expected: tuple[object, ...]) -> None:
    plm = transformer(str(write(tmp_path / "model", config)))
    assert (plm.family, plm.head_dim, plm.attention, plm.specials, plm.max_residues) == expected
    assert plm.gated == (plm.family == "esmc")


def test_a_control_has_the_dimensions_of_its_model() -> None:
    control = transformer("facebook/esm2_t6_8M_UR50D?permuted=42")
    assert control.name == "facebook/esm2_t6_8M_UR50D?permuted=42"
    assert (control.layers, control.d_model) == (6, 320)
    assert transformer("esm_small?random=1").layers == 5


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        transformer("facebook/esm2_t6_8M_UR50")
    assert "did you mean 'facebook/esm2_t6_8M_UR50D'?" in str(caught.value.fix)


def test_special_tokens_and_lengths_are_those_of_the_loaded_models() -> None:
    from plmsae.plms import batching, esm2, esmc, progen2, prot_t5

    assert transformer("facebook/esm2_t6_8M_UR50D").max_residues == 1026 - esm2.POSITIONS_NOT_RESIDUES
    assert transformer("biohub/ESMC-300M").max_residues == 2048 - esmc.SPECIALS
    assert transformer("Rostlab/prot_t5_xl_uniref50").max_residues == prot_t5.MAX_RESIDUES
    assert transformer("esm_small").specials == batching.SPECIALS_PER_SEQUENCE
    letters = progen2._ALPHABET
    assert transformer("hugohrban/progen2-small").specials == len(letters.before) + len(letters.after)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("{", DataError, "not valid"),
        ({"model_type": "esm"}, DataError, "hidden_size"),
        ({**ESM, "num_attention_heads": 0}, DataError, "not valid"),
        ({**ESM, "num_hidden_layers": 0}, DataError, "below 1"),
        ({**ESM, "hidden_size": "wide"}, DataError, "not valid"),
        ({**ESM, "model_type": "bert"}, UserError, "family 'bert'"),
        ({"model_type": "t5", "feed_forward_proj": "gated-gelu"}, DataError, "gated"),
        ("[]", DataError, "not valid"),
    ],
)
def test_a_bad_config_is_named(
    tmp_path: Path, config: dict[str, Any] | str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        transformer(str(write(tmp_path / "model", config)))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        transformer(str(tmp_path))
