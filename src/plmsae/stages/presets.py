"""Complete parameter files, `presets/NAME.yaml`, from what each of them sets, `presets/sources/NAME.yaml`.

A source holds only what its paper (or the demo) says, with the reason beside the value. `extends` names sources whose
values it takes over, later ones first; `params` is the `params.yaml` of the demo. What no source sets is the default
of the stage. The comment behind a value travels with it, so that the complete file still says what is published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plmsae.errors import UserError, did_you_mean
from plmsae.params import Params, ParamsFile, validate
from plmsae.stages.catalog import sections, stages

FOLDER = Path("presets")
SOURCES = FOLDER / "sources"
_DEMO = "params"
_EVERYTHING = "full-evaluation"  # also runs what is not part of `dvc repro`
_COMMENT = re.compile(r"\s#\s(.*)$")


@dataclass
class _Values:
    """Dotted parameter -> value, where it stands, and the comment behind it."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def take(self, other: _Values) -> None:
        """Let another one's values win, and their comments with them."""
        for name in other.values:
            self.comments.pop(name, None)
        self.values |= other.values
        self.places |= other.places
        self.comments |= other.comments


def preset_targets(generated: str, root: Path = Path()) -> dict[str, str]:
    """Relative path -> text of every complete preset below a folder; none where it has no sources.

    Args:
        generated: What the first line says about rendered files.
        root: The repository.

    Raises:
        UserError: A source that is not valid: an unknown section, parameter or value, or `extends` in a circle.
    """
    return {
        (FOLDER / path.name).as_posix(): _render(path, generated, root)
        for path in sorted((root / SOURCES).glob("*.yaml"))
    }


def _render(path: Path, generated: str, root: Path) -> str:
    found = _read(path, root, ())
    source = (SOURCES / path.name).as_posix()
    lines = [
        "# yaml-language-server: $schema=../params.schema.json",
        f"# {generated.replace('src/plmsae/stages', source)}",
        *_header(path),
        f"# To run: cp {FOLDER.as_posix()}/{path.name} params.yaml && {_command(path, found)}",
    ]
    open_section = ""
    for section, params in _models().items():
        prefix = section + "."
        own = {name.removeprefix(prefix): value for name, value in found.values.items() if name.startswith(prefix)}
        validate(params, own, section=section, where=lambda name: found.places.get(name, source))
        values = params().model_dump(mode="json") | own
        top, _, entry = section.partition(".")
        if top != open_section:
            lines += ["", f"{top}:"] if open_section else [f"{top}:"]
            open_section = top
        if entry:
            lines.append(f"  {entry}:")
        indent = "    " if entry else "  "
        for name in params.model_fields:
            first, *rest = _yaml(name, values[name])
            comment = found.comments.get(prefix + name)
            lines += [f"{indent}{first}" + (f"  # {comment}" if comment else ""), *(indent + line for line in rest)]
    return "\n".join(lines) + "\n"


def _models() -> dict[str, type[Params]]:
    """Section -> its model, of everything that `params.yaml` holds."""
    return {stage.section: stage.params for stage in stages().values()}


def _yaml(name: str, value: Any) -> list[str]:
    """A key with its value on one line; of nested mappings only the innermost are."""
    if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
        return [f"{name}:", *("  " + line for key, item in value.items() for line in _yaml(key, item))]
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**31, allow_unicode=True)
    return [f"{name}: {text.removesuffix('...' + chr(10)).strip()}"]


def _command(path: Path, found: _Values) -> str:
    """A corpus has no annotations, so what follows the training is evaluated on proteins that have some."""
    if path.stem == _EVERYTHING:
        return "dvc repro && dvc repro pipelines/evaluate/dvc.yaml"
    return "dvc repro train_sae" if found.values.get("ingest.mode") == "corpus" else "dvc repro"


def _header(path: Path) -> list[str]:
    """The comment that a source begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def _read(path: Path, root: Path, open_files: tuple[Path, ...]) -> _Values:
    """The values of a source on top of those that it extends."""
    if path in open_files:
        raise UserError(f"'{path}' extends itself", where=str(open_files[-1]), fix="break the circle")
    file = ParamsFile(path)
    extended = file.data.pop("extends", [])
    if not isinstance(extended, list):
        raise UserError("`extends` is not a list of names", where=file.where("extends"), fix="write [name, ...]")
    result = _Values()
    for name in extended:
        other = root / "params.yaml" if name == _DEMO else root / SOURCES / f"{name}.yaml"
        if not other.is_file():
            files = (root / SOURCES).rglob("*.yaml")
            known = [item.relative_to(root / SOURCES).with_suffix("").as_posix() for item in files]
            raise UserError(f"no source '{name}'", where=file.where("extends"), fix=did_you_mean(str(name), known))
        result.take(_read(other, root, (*open_files, path)))
    file.check_sections(sections())
    result.take(_own(file, path))
    return result


def _own(file: ParamsFile, path: Path) -> _Values:
    text = path.read_text(encoding="utf-8").splitlines()
    suites = {stage.name for stage in stages().values() if stage.entry}
    found = _Values()
    for section in file.data:
        deeper = file.section(section)
        inside = (
            {f"{section}.{entry}": file.section(f"{section}.{entry}") for entry in deeper}
            if section in suites
            else {section: deeper}
        )
        known = list(_models())
        for name, parameters in inside.items():
            if name not in known:
                raise UserError(f"unknown section '{name}'", where=file.where(name), fix=did_you_mean(name, known))
            for key, value in parameters.items():
                dotted = f"{name}.{key}"
                found.values[dotted], found.places[dotted] = value, file.where(dotted)
                line = file.lines.get(tuple(dotted.split(".")))
                comment = _COMMENT.search(text[line - 1]) if line else None
                if comment:
                    found.comments[dotted] = comment[1]
    return found
