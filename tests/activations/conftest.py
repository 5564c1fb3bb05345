"""A small random model written without transformers, a table of sequences, and a store of known rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from plmsae.activations.metadata import Normaliser, StoreMetadata, write_metadata
from plmsae.activations.writer import write_chunks, write_index
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM

D_MODEL = 8


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_model(folder: Path, scale: float = 0.5) -> Path:
    """An ESM-2 checkpoint of two blocks, 8 wide; `scale` multiplies the embedding."""
    generator = torch.Generator().manual_seed(7)
    d, wide = D_MODEL, 16

    def random(*shape: int) -> torch.Tensor:
        return 0.5 * torch.randn(shape, generator=generator)

    tensors = {"esm.embeddings.word_embeddings.weight": random(33, d) * scale, "lm_head.bias": random(33)}
    linear = {"lm_head.dense": (d, d)}
    norms = ["esm.encoder.emb_layer_norm_after", "lm_head.layer_norm"]
    for block in ("esm.encoder.layer.0", "esm.encoder.layer.1"):
        linear |= {f"{block}.attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        linear |= {f"{block}.attention.output.dense": (d, d)}
        linear |= {f"{block}.intermediate.dense": (wide, d), f"{block}.output.dense": (d, wide)}
        norms += [f"{block}.attention.LayerNorm", f"{block}.LayerNorm"]
    for name, shape in linear.items():
        tensors |= {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}
    for name in norms:
        tensors |= {f"{name}.weight": 1 + random(d), f"{name}.bias": random(d)}
    config = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": d,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": wide,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 304,
        "token_dropout": True,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def huge_tryptophan(folder: Path) -> Path:
    """Let the embedding of W, and of no other residue, exceed what float16 holds."""
    tensors = load_file(folder / "model.safetensors")
    tensors["esm.embeddings.word_embeddings.weight"][22] = 2e5  # W is token 22 of ESM-2
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def plm(tmp_path_factory) -> ProteinLM:
    return load_plm(str(write_model(tmp_path_factory.mktemp("model") / "lm")))


@pytest.fixture(scope="session")
def sequences() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 120, 40)
    return pd.DataFrame(
        {
            "accession": [f"P{i:05d}" for i in range(40)],
            "sequence": ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWYX"), n)) for n in lengths],
            "split": ["train"] * 28 + ["valid"] * 6 + ["test"] * 6,
        }
    )


def write_store(
    folder: Path, parts: list[torch.Tensor], block_rows: int, dtype: str = "bfloat16", split: str = "train"
) -> Path:
    """A store of one split with the rows of each part in the order given."""
    (folder / split).mkdir(parents=True)
    indices = []
    for number, rows in enumerate(parts):
        index = write_chunks(folder / f"part{number}", rows, torch.arange(len(rows)), block_rows)
        for i, chunk in enumerate(index["chunks"]):
            (folder / f"part{number}" / chunk["filename"]).rename(folder / split / f"chunk-{number}-{i}.bin")
            chunk["filename"] = f"chunk-{number}-{i}.bin"
        (folder / f"part{number}").rmdir()
        indices.append(index)
    write_index(folder / split, indices)
    write_metadata(
        folder,
        StoreMetadata(
            plm="esm_small",
            plm_revision="sha256:0",
            layer=1,
            hook="residual",
            dtype=dtype,
            d_model=parts[0].shape[1],
            block_rows=block_rows,
            num_tokens={split: sum(len(rows) for rows in parts)},
            normaliser=Normaliser(scale=1.0),
            sequences_sha256="0" * 64,
        ),
    )
    return folder


def numbered_rows(start: int, stop: int, d_model: int = 3, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Rows that carry their number, exactly in any of the stored types: [n // 128, n % 128, -1, ...]."""
    numbers = torch.arange(start, stop)
    rows = torch.full((len(numbers), d_model), -1.0)
    rows[:, 0], rows[:, 1] = numbers // 128, numbers % 128
    return rows.to(dtype)


def numbers_of(rows: torch.Tensor) -> list[int]:
    """The inverse of `numbered_rows`."""
    return (rows[:, 0] * 128 + rows[:, 1]).long().tolist()
