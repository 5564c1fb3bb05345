"""Which letters each family takes, by the tokenizer of the library where there is one."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import EsmcTokenizer, T5Tokenizer
from transformers.models.esm.openfold_utils import residue_constants

from plmsae.errors import DataError
from plmsae.plms import load_plm
from tests.plms import tiny

TWENTY = "ACDEFGHIKLMNPQRSTVWY"


def load(family, folder):
    tiny.FAMILIES[family][0](folder)
    return load_plm(str(folder))


def refused(plm, letters):
    for letter in letters:
        with pytest.raises(DataError, match="is not a residue letter") as caught:
            plm.tokenize(["ACD", f"AC{letter}D"], ["P1", "P2"])
        assert caught.value.where == "P2, position 3"


def test_esm_c(tmp_path):
    plm = load("esmc", tmp_path)
    tokenizer = EsmcTokenizer()
    sequence = TWENTY + "XBUZO"
    assert plm.tokenize([sequence]).ids.tolist() == tokenizer(sequence)["input_ids"]
    assert {token: plm.vocabulary[token] for token in tokenizer.get_vocab()} == tokenizer.get_vocab()
    assert len(plm.vocabulary) == 64
    refused(plm, "Ja|.-*")


def test_esmfold_numbers_residues_as_the_library_does(tmp_path):
    library = tiny.esmfold(tmp_path)
    plm = load_plm(str(tmp_path))
    sequence = TWENTY + "XBJOUZ"
    onehot = residue_constants.sequence_to_onehot(
        sequence, residue_constants.restype_order_with_x, map_unknown_to_x=True
    )
    aatype = torch.from_numpy(onehot).argmax(dim=1)[None]
    expected = library.model.af2_idx_to_esm_idx(aatype, torch.ones_like(aatype))[0]
    tokens = plm.tokenize([sequence])
    assert plm.residue_ids(tokens).tolist() == expected.tolist()
    # Entry l of the stack that the folding trunk reads is the residual stream at l.
    library.model.esm.half()
    stack = library.model.float().compute_language_model_representations(expected[None])
    for layer in range(tiny.NUM_LAYERS + 1):
        assert torch.allclose(plm.hidden(tokens, layer), stack[0, :, layer], atol=1e-3)
    refused(plm, "a*-")


def test_prot_t5(tmp_path):
    plm = load("prot_t5", tmp_path)
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in tiny.T5_PIECES], extra_ids=1)
    sequence = TWENTY + "X"
    assert plm.tokenize([sequence]).ids.tolist() == tokenizer(" ".join(sequence))["input_ids"]
    rare, unknown = plm.tokenize(["AUCZDOEB"]), plm.tokenize(["AXCXDXEX"])
    assert torch.equal(rare.ids, unknown.ids)
    refused(plm, "Ja*-")


def test_progen2(tmp_path):
    plm = load("progen2", tmp_path)
    # tokenizer.json of salesforce/progen: byte-level pieces without merges.
    alphabet = "ABCDEFGHIKLMNOPQRSTUVWXYZ"
    pieces = {"<|pad|>": 0, "<|bos|>": 1, "<|eos|>": 2, "1": 3, "2": 4, **{c: 5 + i for i, c in enumerate(alphabet)}}
    tokenizer = Tokenizer(BPE(pieces, []))
    assert plm.tokenize([alphabet]).ids.tolist() == tokenizer.encode("1" + alphabet).ids
    assert {token: plm.vocabulary[token] for token in pieces} == pieces
    refused(plm, "Ja12*-")
