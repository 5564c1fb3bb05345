"""Atomic writes: a reader or a crash meets the old contents or the new ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plmsae.artifacts.atomic import swap_folder, write_bytes, write_text


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_swapping_replaces_the_whole_folder(tmp_path: Path) -> None:
    final, trash = tmp_path / "final", tmp_path / "trash"
    for round_number in range(2):
        new = tmp_path / "new"
        new.mkdir()
        (new / f"{round_number}.txt").write_text("x")
        swap_folder(new, final, trash)
    assert [path.name for path in final.iterdir()] == ["1.txt"]
    assert not trash.exists()
    assert not (tmp_path / "new").exists()


WRITER = """
import sys, itertools
from pathlib import Path
from plmsae.artifacts.atomic import write_bytes, swap_folder
root = Path(sys.argv[1])
print("ready", flush=True)
for i in itertools.count():
    write_bytes(root / "file", bytes([i % 256]) * 200_000)
    new = root / "new"
    new.mkdir(exist_ok=True)
    for name in "ab":
        (new / name).write_bytes(bytes([i % 256]) * 1000)
    swap_folder(new, root / "final", root / "trash")
"""


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.11, 0.17])
def test_a_kill_at_any_moment_leaves_whole_contents(tmp_path: Path, delay: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    file = tmp_path / "file"
    if file.exists():
        data = file.read_bytes()
        assert len(data) == 200_000
        assert len(set(data)) == 1
    final = tmp_path / "final"
    if final.exists():
        assert (final / "a").read_bytes() == (final / "b").read_bytes()
        assert len((final / "a").read_bytes()) == 1000
