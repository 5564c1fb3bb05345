"""The cap holds at every instant, blocks that are needed soon stay, and a kill or a damaged file costs nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from plmsae.activations.cache import BlockCache
from plmsae.artifacts.checksums import sha256_bytes


def block(number: int, num_bytes: int = 100) -> tuple[str, bytes]:
    data = np.random.default_rng(number).bytes(num_bytes)
    return sha256_bytes(data), data


def keep(cache: BlockCache, number: int, *, ahead: bool = False) -> bool:
    name, data = block(number)
    if cache.claim(name, len(data), ahead=ahead):
        cache.put(name, data, ahead=ahead)
        return True
    return False


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def held(cache: BlockCache, numbers: range) -> list[int]:
    return [number for number in numbers if (cache.folder / block(number)[0]).is_file()]


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 1000)
    name, data = block(0)
    assert cache.get(name) is None
    assert keep(cache, 0)
    assert cache.get(name) == data
    assert not cache.claim(name, 100)  # it is there
    assert cache.num_bytes == on_disk(cache.folder) == 100


def test_what_was_read_last_goes_first_and_what_was_fetched_ahead_stays(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 400)
    for number in range(3):
        keep(cache, number)
    assert keep(cache, 3, ahead=True)
    cache.get(block(0)[0])  # 0 is now the last read
    assert keep(cache, 4)
    assert held(cache, range(5)) == [1, 2, 3, 4]
    for number in (5, 6, 7):
        assert keep(cache, number, ahead=True)
    assert held(cache, range(8)) == [3, 5, 6, 7]
    assert not keep(cache, 8)  # everything in it is still to be read
    assert keep(cache, 9, ahead=True)  # but what was fetched ahead long ago gives way
    assert held(cache, range(10)) == [5, 6, 7, 9]
    assert not cache.claim("0" * 64, 401)


def test_a_share_of_every_epoch_comes_from_the_disk(tmp_path: Path) -> None:
    """A cache of 40 % of the blocks serves nearly 40 % of each later epoch, as the best policy would."""
    cache = BlockCache(tmp_path / "blocks", 40 * 100)
    for epoch in range(6):
        hits = 0
        for number in np.random.default_rng(epoch).permutation(100):
            hits += cache.get(block(number)[0]) is not None
            keep(cache, int(number))
        assert epoch == 0 or hits >= 36


def test_claimed_room_counts_and_comes_back(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 250)
    first, second, third = (block(number)[0] for number in range(3))
    assert cache.claim(first, 100)
    assert cache.claim(second, 100)
    assert not cache.claim(first, 100)  # on its way
    assert not cache.claim(third, 100)
    cache.give_up(second)
    assert cache.claim(third, 100)
    cache.put(third, block(2)[1])
    assert cache.num_bytes == 200


def test_a_killed_run_leaves_its_blocks_to_the_next(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 1000)
    for number in range(5):
        keep(cache, number, ahead=number == 4)
    (cache.folder / f"{block(9)[0]}.tmp").write_bytes(b"half")
    again = BlockCache(tmp_path / "blocks", 300)
    assert again.num_bytes == on_disk(again.folder) == 300
    assert sum(again.get(block(number)[0]) == block(number)[1] for number in range(5)) == 3


def test_a_damaged_file_is_not_believed(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 1000)
    keep(cache, 0)
    keep(cache, 1)
    (cache.folder / block(0)[0]).write_bytes(b"x" * 100)
    (cache.folder / block(1)[0]).unlink()
    assert cache.get(block(0)[0]) is None
    assert cache.get(block(1)[0]) is None
    assert cache.num_bytes == on_disk(cache.folder) == 0


def test_a_disk_that_cannot_be_written_costs_only_speed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = BlockCache(tmp_path / "file" / "blocks", 1000)
    name, data = block(0)
    assert cache.claim(name, 100)
    cache.put(name, data)
    assert cache.get(name) is None
    assert cache.num_bytes == 0


def test_leaving_waits_for_writers_and_lets_no_other_in(tmp_path: Path) -> None:
    with BlockCache(tmp_path / "blocks", 1000) as cache:
        name, data = block(0)
        cache.claim(name, 100)
        writer = threading.Timer(0.2, cache.put, (name, data))
        writer.start()
    assert cache.num_bytes == on_disk(cache.folder) == 100
    assert not cache.claim(block(1)[0], 100)


@pytest.mark.parametrize("max_bytes", [100, 450, 2000])
def test_threads_never_exceed_the_cap(tmp_path: Path, max_bytes: int) -> None:
    cache = BlockCache(tmp_path / "blocks", max_bytes)
    stop, seen, wrong = threading.Event(), [0], []

    def watch() -> None:
        while not stop.is_set():
            try:
                seen.append(on_disk(cache.folder))
            except FileNotFoundError:
                continue

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(150):
            number = int(generator.integers(30))
            data = cache.get(block(number)[0])
            if data is not None and data != block(number)[1]:
                wrong.append(number)
            keep(cache, number, ahead=bool(generator.integers(2)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert not wrong
    assert max(seen) <= max_bytes
    assert cache.num_bytes == on_disk(cache.folder) <= max_bytes
