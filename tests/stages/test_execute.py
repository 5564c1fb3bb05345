"""The wrapper: verified inputs, whole outputs, locks, checkpoints, refusals. Driven with small real stages."""

from __future__ import annotations

import fcntl
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plmsae.artifacts.manifest import manifest_sha256, read_manifest, verify
from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.params import Params
from plmsae.stages.execute import execute
from plmsae.stages.spec import Input, Stage, StageContext, StageResult


class SourceParams(Params):
    """Parameters of the first stage."""

    source: str = "raw.txt"
    source_sha256: str | None = None
    repeat: int = 2


class SumParams(Params):
    """Parameters of the second stage."""

    fail: str = ""


def write_numbers(context: StageContext) -> StageResult:
    text = context.sources["source"].read_text() * context.params.repeat
    (context.output / "numbers.txt").write_text(text)
    return StageResult({"num_lines": text.count("\n")}, "Numbers.")


def sum_numbers(context: StageContext) -> StageResult:
    (context.output / "partial.txt").write_text("partial")
    (context.checkpoints / "state.txt").write_text("state")
    if context.params.fail == "error":
        raise DataError("bad number")
    numbers = (context.inputs["numbers"] / "numbers.txt").read_text().split()
    return StageResult({"total": float("nan") if context.params.fail == "nan" else sum(map(int, numbers))}, "Sum.")


HERE = "tests.stages.test_execute" if __name__.startswith("tests.") else __name__
WRITE = Stage(
    "write",
    "write numbers",
    SourceParams,
    "sequences",
    f"{HERE}:write_numbers",
    ("errors.py",),
    source_files=("source",),
)
SUM = Stage(
    "sum",
    "sum numbers",
    SumParams,
    "result",
    f"{HERE}:sum_numbers",
    ("errors.py",),
    inputs=(Input("numbers", "sequences", "write"),),
)


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    # The stages of this test have no module under plmsae/stages, whose file would be fingerprinted.
    monkeypatch.setattr("plmsae.stages.execute.code_sha256", lambda stage: "0" * 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw.txt").write_text("1\n2\n")
    execute(WRITE, SourceParams(), root=tmp_path)
    return tmp_path


def test_an_output_is_complete_and_says_where_it_comes_from(root: Path) -> None:
    result = execute(SUM, SumParams(), root=root)
    assert result.metrics == {"total": 6}
    manifest = verify(root / "outputs" / "sum")
    assert manifest.inputs == {"numbers": manifest_sha256(root / "outputs" / "write")}
    assert json.loads((root / "outputs" / "sum" / "metrics.json").read_text()) == {"total": 6}
    assert (root / "outputs" / "sum" / "summary.md").read_text() == "Sum.\n"
    first = read_manifest(root / "outputs" / "write")
    assert first.params == {"source": "raw.txt", "source_sha256": None, "repeat": 2}
    assert list(first.source_files) == ["source"]


def test_the_same_run_gives_the_same_bytes_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "raw.txt").write_text("1\n2\n")
    execute(WRITE, SourceParams(), root=other)
    assert manifest_sha256(other / "outputs" / "write") == manifest_sha256(root / "outputs" / "write")


@pytest.mark.parametrize("fail", ["error", "nan"])
def test_a_failure_keeps_the_old_output_and_leaves_nothing_half_written(root: Path, fail: str) -> None:
    execute(SUM, SumParams(), root=root)
    before = manifest_sha256(root / "outputs" / "sum")
    with pytest.raises(DataError):
        execute(SUM, SumParams(fail=fail), root=root)
    assert manifest_sha256(root / "outputs" / "sum") == before
    assert list((root / ".plmsae" / "staging").iterdir()) == []


def test_checkpoints_survive_a_failure_and_are_never_met_by_other_parameters(root: Path) -> None:
    with pytest.raises(DataError):
        execute(SUM, SumParams(fail="error"), root=root)
    kept = list((root / ".plmsae" / "checkpoints").iterdir())
    assert len(kept) == 1
    execute(SUM, SumParams(), root=root)
    assert list((root / ".plmsae" / "checkpoints").iterdir()) == kept


def test_an_output_of_more_files_than_before_replaces_the_old_one_whole(root: Path) -> None:
    (root / "outputs" / "write" / "leftover.txt").write_text("old")
    execute(WRITE, SourceParams(), root=root)
    assert not (root / "outputs" / "write" / "leftover.txt").exists()


def test_a_corrupted_input_is_named(root: Path) -> None:
    (root / "outputs" / "write" / "numbers.txt").write_text("1\n2\n1\n3\n")
    with pytest.raises(DataError, match=r"numbers\.txt.*corrupted"):
        execute(SUM, SumParams(), root=root)


def test_a_missing_input_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plmsae run write"):
        execute(SUM, SumParams(), root=tmp_path)


def test_an_input_of_another_kind_is_refused(root: Path) -> None:
    execute(SUM, SumParams(), root=root)
    with pytest.raises(UserError, match="must be of kind 'sequences', not 'result'"):
        execute(SUM, SumParams(), root=root, inputs={"numbers": root / "outputs" / "sum"})


def test_an_unknown_port_and_a_missing_raw_file_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="no input 'number'"):
        execute(SUM, SumParams(), root=root, inputs={"number": root})
    with pytest.raises(UserError, match=r"none\.txt"):
        execute(WRITE, SourceParams(source="none.txt"), root=root)


def test_a_pinned_raw_file_must_hold_the_bytes_that_were_meant(root: Path) -> None:
    right = hashlib.sha256((root / "raw.txt").read_bytes()).hexdigest()
    execute(WRITE, SourceParams(source_sha256=right), root=root, pinned=True)
    before = manifest_sha256(root / WRITE.output)
    with pytest.raises(DataError, match=f"has sha256 {right}, not 000"):
        execute(WRITE, SourceParams(source_sha256="0" * 64), root=root)
    with pytest.raises(UserError, match=f"sha256 of the file: {right}"):
        execute(WRITE, SourceParams(), root=root, pinned=True)
    assert manifest_sha256(root / WRITE.output) == before


def test_two_runs_of_one_stage_at_once_are_kept_apart(root: Path) -> None:
    lock = root / ".plmsae" / "locks" / "sum.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(TryAgainError, match="another process"):
            execute(SUM, SumParams(), root=root)
    execute(SUM, SumParams(), root=root)


KILLED = """
import os, signal, sys
from pathlib import Path
import plmsae.stages.execute as wrapper
from tests.stages.test_execute import SUM, SumParams
wrapper.code_sha256 = lambda stage: "0" * 64
target = sys.argv[2]
real = getattr(wrapper, target)
def die(*args, **kwargs):
    if sys.argv[3] == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(wrapper, target, die)
wrapper.execute(SUM, SumParams(), root=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["verify", "_write_result", "list_files", "write_manifest", "swap_folder"])
def test_a_kill_at_any_step_leaves_the_old_output_or_the_new_one(root: Path, step: str, when: str) -> None:
    execute(SUM, SumParams(), root=root)
    expected = {path.name: path.read_bytes() for path in (root / "outputs" / "sum").iterdir()}
    repository = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), step, when],
        cwd=repository,
        check=False,
        timeout=60,
        env={"PYTHONPATH": f"{repository}:{repository / 'src'}", "PATH": ""},
    )
    assert process.returncode == -signal.SIGKILL
    verify(root / "outputs" / "sum")
    execute(SUM, SumParams(), root=root)
    assert {path.name: path.read_bytes() for path in (root / "outputs" / "sum").iterdir()} == expected
