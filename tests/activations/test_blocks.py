"""What is written is what LitData and we read back; what is broken is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plmsae.activations import writer
from plmsae.activations.blocks import BlockStore
from plmsae.activations.metadata import read_metadata
from plmsae.errors import DataError, UserError
from tests.activations.conftest import numbered_rows, numbers_of, write_store

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_litdata_and_we_read_the_blocks_that_were_written(tmp_path, monkeypatch, dtype):
    import litdata

    monkeypatch.setattr(writer, "CHUNK_BYTES", 200)  # a few blocks per chunk
    parts = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).to(DTYPES[dtype]) for n in (23, 8, 3)]
    folder = write_store(tmp_path / "store", parts, 4, dtype)
    expected = [block for part in parts for block in part.split(4)]
    dataset = litdata.StreamingDataset(str(folder / "train"), cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == len(expected) == 9
    for theirs, block in zip(dataset, expected, strict=True):
        assert theirs.dtype == DTYPES[dtype]
        assert torch.equal(theirs, block)
    assert torch.equal(dataset[4], expected[4])
    store = BlockStore(folder, "train")
    assert len({block.chunk for block in store.blocks}) > 3
    for block, wanted in zip(store.blocks, expected, strict=True):
        ours = torch.empty_like(wanted)
        store.read([block], ours)
        assert torch.equal(ours, wanted)
    assert torch.equal(torch.cat(list(store.rows(3))), torch.cat(parts).float())


def test_order_is_applied(tmp_path):
    order = torch.tensor([3, 0, 2, 1])
    index = writer.write_chunks(tmp_path / "part", numbered_rows(0, 4), order, 3)
    assert [chunk["chunk_size"] for chunk in index["chunks"]] == [2]
    data = (tmp_path / "part" / index["chunks"][0]["filename"]).read_bytes()
    values = torch.frombuffer(bytearray(data[4 * 4 + 20 : 4 * 4 + 20 + 18]), dtype=torch.bfloat16).view(3, 3)
    assert numbers_of(values) == [3, 0, 2]


def test_files_are_a_function_of_the_rows(tmp_path):
    for name in ("a", "b"):
        write_store(tmp_path / name, [numbered_rows(0, 50), numbered_rows(50, 70)], 8)
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in "ab"]
    assert files[0] == files[1]
    assert {str(file) for file in files[0]} == {"store.json", "train/index.json"} | {
        f"train/chunk-{part}-0.bin" for part in (0, 1)
    }
    for file in files[0]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    other = write_store(tmp_path / "c", [numbered_rows(0, 51)], 8)
    stamp = [json.loads((folder / "train/index.json").read_text())["updated_at"] for folder in (tmp_path / "a", other)]
    assert stamp[0] != stamp[1]


def test_writing_leaves_other_folders_alone(tmp_path):
    """LitData's `optimize` empties `data` and `chunks` under the temporary folder; nothing here may."""
    temporary, home = tmp_path / "tmp", tmp_path / "home"
    for folder in (temporary / "data", temporary / "chunks", home):
        folder.mkdir(parents=True)
        (folder / "precious").write_text("keep")
    program = (
        "from pathlib import Path; from tests.activations.conftest import numbered_rows, write_store; "
        f"write_store(Path({str(tmp_path / 'store')!r}), [numbered_rows(0, 50)], 8)"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        env={"TMPDIR": str(temporary), "HOME": str(home), "PYTHONPATH": ":".join(p for p in sys.path if p)},
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert (tmp_path / "store" / "train" / "index.json").is_file()
    for folder in (temporary / "data", temporary / "chunks", home):
        assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", [numbered_rows(0, 40), numbered_rows(40, 60)], 8)


def refused(folder, *words):
    with pytest.raises(DataError) as caught:
        list(BlockStore(folder, "train").rows(100))
    text = str(caught.value)
    for word in words:
        assert word in text
    assert "fix:" in text


def test_missing_chunk_is_named(store):
    (store / "train" / "chunk-1-0.bin").unlink()
    refused(store, "chunk 'chunk-1-0.bin' is missing")


@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_truncated_chunk_is_named(store, keep):
    path = store / "train" / "chunk-0-0.bin"
    path.write_bytes(path.read_bytes()[:keep])
    refused(store, "chunk 'chunk-0-0.bin' is corrupted", "bytes, not")


def test_chunk_truncated_after_opening_is_named(store):
    opened = BlockStore(store, "train")
    path = store / "train" / "chunk-0-0.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"'chunk-0-0.bin' is corrupted: it is shorter"):
        list(opened.rows(100))
    path.unlink()
    with pytest.raises(DataError, match=r"'chunk-0-0.bin' cannot be read"):
        list(opened.rows(100))


@pytest.mark.parametrize("byte", range(0, 48, 1))
def test_flipped_bits_in_tables_and_headers_are_noticed(store, byte):
    # 28 bytes of table (5 blocks) and the 20 bytes of the first block's header.
    path = store / "train" / "chunk-0-0.bin"
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x41
    path.write_bytes(bytes(data))
    refused(store, "chunk 'chunk-0-0.bin' is corrupted")


def test_block_of_another_width_or_type(store):
    metadata = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**metadata, "d_model": 4}))
    refused(store, "shape [8, 3], not [rows, 4]")
    (store / "store.json").write_text(json.dumps({**metadata, "dtype": "float16"}))
    refused(store, "broken block header")


def test_number_of_rows_disagrees(store):
    metadata = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**metadata, "num_tokens": {"train": 61}}))
    refused(store, "the chunks hold 60 rows, not 61")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"chunks": [{}], "config": {}}', '{"chunks": 3}'])
def test_broken_index(store, text):
    path = store / "train" / "index.json"
    path.unlink() if text is None else path.write_text(text)
    refused(store, "index of the chunks", "index.json")


def test_index_that_points_outside(store):
    path = store / "train" / "index.json"
    path.write_text(path.read_text().replace("chunk-1-0.bin", "../../secret.bin"))
    refused(store, "is missing")


def test_compressed_chunks_are_refused(store):
    path = store / "train" / "index.json"
    index = json.loads(path.read_text())
    index["config"]["compression"] = "zstd"
    path.write_text(json.dumps(index))
    refused(store, "plain tensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "newer than this plmsae reads"),
        ({"normaliser": {"kind": "rms", "scale": 0}}, "not valid"),
        ({"normaliser": {"kind": "rms", "scale": float("nan")}}, "not valid"),
        ({"dtype": "int4"}, "not valid"),
        ({"unknown": 1}, "not valid"),
    ],
)
def test_metadata_that_is_not_valid(store, change, words):
    data = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(DataError, match=words):
        read_metadata(store)


def test_no_store_and_no_split(store, tmp_path):
    with pytest.raises(DataError, match=r"not an activation store \(no store.json\)"):
        BlockStore(tmp_path, "train")
    with pytest.raises(UserError, match=r"no split 'tarin'(.|\n)*did you mean 'train'"):
        BlockStore(store, "tarin")
