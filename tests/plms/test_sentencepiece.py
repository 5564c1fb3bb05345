from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from plmsae.plms.sentencepiece import read_pieces
from tests.plms import tiny


@given(st.lists(st.text(max_size=20), min_size=1, max_size=12))
def test_pieces_come_back_in_order(tmp_path_factory, pieces):
    path = tmp_path_factory.getbasetemp() / "spiece.model"
    path.write_bytes(tiny.spiece_model(tuple(pieces)))
    assert read_pieces(path) == pieces


@pytest.mark.parametrize("damage", [b"", b"\x0a", b"\x0a\x05\x0a\x01", b"\xff" * 9, b"\x0a\x03\x0a\x01\xff", b"\x13"])
def test_other_files_are_refused(tmp_path, damage):
    path = tmp_path / "spiece.model"
    path.write_bytes(damage)
    with pytest.raises(DataError, match="not a SentencePiece model"):
        read_pieces(path)


def test_a_vocabulary_that_is_not_of_proteins(tmp_path):
    tiny.prot_t5(tmp_path)
    path = tmp_path / "spiece.model"
    path.write_bytes(tiny.spiece_model(("<pad>", "</s>", "\u2581A")))
    with pytest.raises(DataError, match="vocabulary lacks L, G, V"):
        load_plm(str(tmp_path))
    path.write_bytes(tiny.spiece_model((*tiny.T5_PIECES, "a", "b", "c", "d")))
    with pytest.raises(DataError, match="larger than the embedding"):
        load_plm(str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"holds no spiece.model"):
        load_plm(str(tmp_path))
