"""Every command of docs/how-to/dvc.md is one that this DVC knows, with these options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from dvc.cli import parse_args

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "dvc.md"


def test_dvc_knows_every_command_of_the_guide() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    inline = re.findall(r"`(dvc [^`]+)`", text)
    parts = [part.strip() for line in [*lines, *inline] for part in line.split("&&")]
    commands = [part for part in parts if part.startswith("dvc ")]
    assert len(commands) > 25
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        assert parse_args(words).func is not None, command
