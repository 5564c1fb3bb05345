"""The plan of a small extraction against the one that really happens."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pandas as pd
import torch

from plmsae.activations.extract import extract
from plmsae.activations.plan import Settings
from plmsae.planning import formulas
from plmsae.planning.lengths import Lengths
from plmsae.plms import load_plm

RESIDUES = "MKVLAWTREQGSHPDNIYFC"


def test_rows_parts_and_bytes_are_those_of_the_disk(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    lengths = [20 + 7 * number % 60 for number in range(60)]
    table = pd.DataFrame(
        {
            "accession": [f"P{number}" for number in range(60)],
            "offset": 0,
            "sequence": [(RESIDUES * 4)[:length] for length in lengths],
            "length": lengths,
            "split": ["train"] * 45 + ["valid"] * 15,
        }
    )
    settings = Settings(layer=1, block_rows=64, shuffle_pool_rows=500, max_tokens_per_batch=512)
    extract(load_plm("esm_small"), table, tmp_path / "store", tmp_path / "work", settings, sequences_sha256="0" * 64)
    for split, group in table.groupby("split"):
        planned = Lengths(group["length"].value_counts().to_dict())
        size, parts, blocks, files = formulas.store_size(
            planned.residues, 256, settings.dtype, block_rows=64, part_rows=500
        )
        chunks = sorted((tmp_path / "store" / str(split)).glob("*.bin"))
        assert parts == ceil(group["length"].sum() / 500)
        assert len(chunks) == files == parts  # a part of 500 rows fits into one file
        # Proteins are not cut, so parts differ a little in size: a block more or less in each.
        on_disk = sum(path.stat().st_size for path in chunks)
        assert abs(on_disk - size) <= 24 * parts
        assert abs(on_disk - size) / size < 1e-3
        assert blocks >= parts
