"""A batch for which the memory does not suffice is halved; the store is the same."""

from __future__ import annotations

import logging

import pytest
import torch

from plmsae.activations.blocks import BlockStore
from plmsae.activations.extract import extract
from plmsae.errors import UserError
from tests.activations.test_extract import SETTINGS, SHA256, contents


class Small:
    """A model on a machine that holds so many tokens and no more."""

    def __init__(self, plm, max_tokens, error):
        self.plm, self.max_tokens, self.error, self.sizes = plm, max_tokens, error, []

    def __getattr__(self, name):
        return getattr(self.plm, name)

    def hidden_at(self, tokens, places):
        if len(tokens.ids) > self.max_tokens:
            raise self.error
        self.sizes.append(len(tokens.ids))
        return self.plm.hidden_at(tokens, places)


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:130] data. DefaultCPUAllocator: can't allocate memory: you tried"),
]


def rows(folder):
    return torch.cat(list(BlockStore(folder, "train").rows(1000)))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_smaller_batches_until_it_fits(plm, sequences, tmp_path, caplog, error):
    small = Small(plm, 130, error)
    with caplog.at_level(logging.WARNING, logger="plmsae"):
        extract(small, sequences, tmp_path / "small", tmp_path / "a", SETTINGS, sequences_sha256=SHA256)
    extract(plm, sequences, tmp_path / "large", tmp_path / "b", SETTINGS, sequences_sha256=SHA256)
    assert "it goes on in halves" in caplog.text
    assert max(small.sizes) <= 130
    torch.testing.assert_close(rows(tmp_path / "small"), rows(tmp_path / "large"), atol=1e-6, rtol=2**-8)
    assert set(contents(tmp_path / "small")) == set(contents(tmp_path / "large"))


def test_one_sequence_that_does_not_fit_is_named(plm, sequences, tmp_path):
    longest = sequences.loc[sequences["sequence"].str.len()[sequences["split"] == "train"].idxmax()]
    small = Small(plm, len(longest["sequence"]), MemoryError())
    with pytest.raises(UserError) as caught:
        extract(small, sequences, tmp_path / "o", tmp_path / "c", SETTINGS, sequences_sha256=SHA256)
    assert f"one sequence of {len(longest['sequence'])} residues" in str(caught.value)
    assert caught.value.where == longest["accession"]


def test_other_errors_of_the_model_are_not_taken_for_it(plm, sequences, tmp_path):
    broken = Small(plm, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        extract(broken, sequences, tmp_path / "o", tmp_path / "c", SETTINGS, sequences_sha256=SHA256)
