"""A guide as a script: the commands of its code blocks, and what each of them is said to print.

Commands stand in blocks indented by four spaces. A block fenced as `text` is what the command before it prints, where
`...` stands for anything. A command that ends with `# not checked here` is for the reader alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

NOT_CHECKED = "# not checked here"
_HEREDOC = re.compile(r"<<(\w+)")


@dataclass
class Command:
    """One command of the page.

    Attributes:
        text: As it stands there; a loop, a heredoc or a continued line is one command of several lines.
        checked: Whether it is to be checked.
        prints: Lines that it is said to print.
    """

    text: str
    checked: bool = True
    prints: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """On one line, without the `&` that sends it into the background."""
        return re.sub(r"\s*\\\n\s*", " ", self.text).removesuffix("&").rstrip()


def commands(page: str) -> list[Command]:
    """The commands of a page, in order."""
    found: list[Command] = []
    lines = iter(page.splitlines())
    for line in lines:
        if line == "```text":
            for printed in lines:
                if printed == "```":
                    break
                found[-1].prints.append(printed)
        elif line.startswith("    "):
            found.append(_command(line[4:], lines))
    return found


def _command(first: str, lines: Iterator[str]) -> Command:
    parts = [first]
    if heredoc := _HEREDOC.search(first):
        end = heredoc[1]
    elif first.startswith("for "):
        end = "done"
    else:
        end = ""
    while (parts[-1] != end) if end else parts[-1].endswith("\\"):
        parts.append(next(lines).removeprefix("    "))
    text = "\n".join(parts)
    shown = text.removesuffix(NOT_CHECKED).rstrip()
    return Command(shown, checked=shown == text)


def missing(said: list[str], printed: str) -> list[str]:
    """The lines that a page says and a command does not print, in this order."""
    rest = iter(printed.splitlines())
    return [line for line in said if not any(_is(line, found) for found in rest)]


def _is(said: str, found: str) -> bool:
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in said.split("..."))
    return re.fullmatch(pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*"), " ".join(found.split())) is not None
