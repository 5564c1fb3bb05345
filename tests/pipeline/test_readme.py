"""README tells the truth: its Python runs, its commands run, its numbers come from the committed results."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys

import pytest

from tests.pipeline.conftest import Finished
from tests.workspace import BIN, ROOT, call

README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.timeout(900)


@pytest.mark.slow
def test_the_five_lines_of_python_name_the_latents_of_a_protein(finished: Finished, champion: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code, count = re.subn(r'"models:/[^"]+"', f'"{champion}"', code)
    assert count == 1
    lines = call(finished.root, str(BIN / "python"), "-c", code).stdout.splitlines()
    assert lines[0].split() == ["position", "residue", "latent", "activation", "concept"]
    assert lines[1].split()[1:3] == ["1", "M"]


@pytest.mark.slow
def test_the_features_command_gives_every_residue_as_csv(finished: Finished, champion: str) -> None:
    (command,) = re.findall(r"^    (plmsae features .*)$", README, re.MULTILINE)
    words = command.replace(re.findall(r"models:/\S+", command)[0], champion).split()
    rows = list(csv.DictReader(io.StringIO(call(finished.root, *words).stdout)))
    sequence = words[2]
    assert "".join({int(row["position"]): row["residue"] for row in rows}.values()) == sequence


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("script", ["readme_tables.py", "evaluation_tables.py"])
def test_the_tables_are_those_of_the_committed_results(script: str) -> None:
    process = subprocess.run([sys.executable, f"scripts/{script}", "--check"], cwd=ROOT, check=False)
    assert process.returncode == 0


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("install", "run", "test", "test-all", "test-long", "lint", "render", "bench", "reproduce"):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
