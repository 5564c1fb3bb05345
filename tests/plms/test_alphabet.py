from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EsmTokenizer
from transformers.models.esm.configuration_esm import get_default_vocab_list

from plmsae.errors import DataError
from plmsae.plms.alphabet import ESM, ESM_LETTERS, ESM_TOKENS, ESM_VOCABULARY


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(get_default_vocab_list()), encoding="utf-8")
    return EsmTokenizer(str(file))


def test_alphabet_is_the_one_of_transformers():
    assert list(get_default_vocab_list()) == list(ESM_TOKENS)


def test_ids_equal_those_of_the_tokenizer_of_transformers(tokenizer):
    sequences = [ESM_LETTERS, "M", "WYXBUZO", ESM_LETTERS[::-1] * 7]
    ids, lengths, residues = ESM.encode(sequences)
    expected = [tokenizer(sequence)["input_ids"] for sequence in sequences]
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == expected
    assert residues.tolist() == [token not in (0, 2) for sequence in expected for token in sequence]


@given(st.lists(st.text(ESM_LETTERS, min_size=1, max_size=9), min_size=1, max_size=6))
def test_decoding_gives_the_sequences_back(sequences):
    ids, lengths, residues = ESM.encode(sequences)
    assert lengths.tolist() == [len(sequence) + 2 for sequence in sequences]
    assert "".join(ESM_TOKENS[i] for i in ids[residues]) == "".join(sequences)
    ends = np.cumsum(lengths)
    assert (ids[ends - 1] == ESM_VOCABULARY["<eos>"]).all()
    assert (ids[ends - lengths] == ESM_VOCABULARY["<cls>"]).all()


@pytest.mark.parametrize("letter", ["J", "a", "-", ".", "*", " ", "\n", "é", "中", "\ud800", "\U0001f600", "\x00"])
def test_other_characters_are_refused_with_their_position(letter):
    with pytest.raises(DataError) as caught:
        ESM.encode(["ACD", f"ACDE{letter}F", "A"], ["P1", "P2", "P3"])
    assert repr(letter) in caught.value.problem
    assert caught.value.where == "P2, position 5"
    assert caught.value.exit_code == 3


def test_an_empty_sequence_is_refused_by_name():
    with pytest.raises(DataError) as caught:
        ESM.encode(["ACD", ""])
    assert caught.value.where == "sequence 2"
