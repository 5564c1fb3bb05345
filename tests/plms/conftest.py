"""The bundled LM, small random ESM models, and the reference forward of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import EsmConfig, EsmForMaskedLM

import plmsae
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM, Tokens

BUNDLED_FOLDER = Path(plmsae.__file__).parent / "plms" / "small"
LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_checkpoint(folder: Path, *, token_dropout: bool = True, tied: bool = True, seed: int = 0) -> Path:
    """Save a random ESM model whose every tensor matters: large weights, biases and norms that are not trivial."""
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        position_embedding_type="rotary",
        token_dropout=token_dropout,
        emb_layer_norm_before=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=204,
        tie_word_embeddings=tied,
    )
    model = EsmForMaskedLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if name.lower().endswith(("norm.weight", "norm_after.weight")):
                parameter += 1  # so that queries and keys are large enough for attention to be far from uniform
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Pair:
    """A model of ours and the same checkpoint in transformers."""

    plm: ProteinLM
    reference: EsmForMaskedLM

    def expected(self, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """Hidden states of every layer and logits at the residue rows, through padding and attention masks."""
        lengths = tokens.lengths.tolist()
        ids = pad_sequence(tokens.ids.split(lengths), batch_first=True, padding_value=1)
        residues = pad_sequence(tokens.residues.split(lengths), batch_first=True)
        with torch.no_grad():
            out = self.reference(input_ids=ids, attention_mask=(ids != 1).long(), output_hidden_states=True)
        return [state[residues] for state in out.hidden_states], out.logits[residues]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", params=["esm_small", "tiny", "no_dropout_untied"])
def pair(request, tmp_path_factory, tiny_folder) -> Pair:
    if request.param == "esm_small":
        folder, plm = BUNDLED_FOLDER, load_plm("esm_small")
    elif request.param == "tiny":
        folder, plm = tiny_folder, load_plm(str(tiny_folder))
    else:
        folder = random_checkpoint(tmp_path_factory.mktemp("untied"), token_dropout=False, tied=False, seed=1)
        plm = load_plm(str(folder))
    return Pair(plm, EsmForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval())


def random_sequences(lengths: tuple[int, ...], seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(LETTERS), length)) for length in lengths]
