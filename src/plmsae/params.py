"""Typed parameters: frozen models, `params.yaml`, overrides, and messages that name field and line.

`params.yaml` has one section per stage; `evaluate` has one sub-section per evaluation. A section is validated
against the stage's model, which refuses unknown keys. `canonical_json` gives the one spelling of a section that
is hashed, stored in manifests and passed to Kubeflow (which turns ints inside dicts into floats).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from plmsae.errors import UserError, did_you_mean


class Params(BaseModel):
    """Base of every parameter model: immutable, refuses unknown keys, never coerces `"8"` or `8.5` to an int."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Params)


class _LineLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and remembers the line of each key."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.lines: dict[tuple[str, ...], int] = {}


def _mapping_with_lines(loader: _LineLoader, node: yaml.Node, path: tuple[str, ...]) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node))
        line = key_node.start_mark.line + 1
        if key in out:
            raise UserError(f"key '{key}' stands twice", where=f"line {line}", fix="keep one of them")
        loader.lines[(*path, key)] = line
        out[key] = _mapping_with_lines(loader, value_node, (*path, key))
    return out


class ParamsFile:
    """A parsed `params.yaml` with overrides applied and the line of every key."""

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(
                f"parameter file '{path}' does not exist",
                fix="run in the folder that holds params.yaml, or pass --params FILE",
            )
        loader = _LineLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            data = {} if node is None else _mapping_with_lines(loader, node, ())
        except yaml.YAMLError as error:
            raise UserError(f"not valid YAML: {_one_line(error)}", where=str(path), fix="mend the syntax") from error
        except UserError as error:
            raise UserError(error.problem, where=f"{path}, {error.where}", fix=error.fix) from error
        finally:
            loader.dispose()
        if not isinstance(data, dict):
            raise UserError("the file is not a mapping of sections", where=str(path), fix="write `section:` keys")
        self.data: dict[str, Any] = data
        self.lines = loader.lines
        for override in overrides:
            self._apply(override)

    def _apply(self, override: str) -> None:
        key, separator, text = override.partition("=")
        parts = key.split(".")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"the value of override '{override}' is not valid YAML", fix="quote it") from error
        # Without a key it is the whole section.
        if not separator or not all(parts) or (len(parts) < 2 and not isinstance(value, dict)):
            raise UserError(
                f"override '{override}' is not of the form section.key=value", fix="for example --set train_sae.k=64"
            )
        target = self.data
        for part in parts[:-1]:
            if not isinstance(target.setdefault(part, {}), dict):
                raise UserError(
                    f"'{part}' in override '{override}' is not a section", fix="name a key inside a section"
                )
            target = target[part]
        target[parts[-1]] = value
        for line in [line for line in self.lines if line[: len(parts)] == tuple(parts)]:
            del self.lines[line]

    def section(self, name: str) -> dict[str, Any]:
        """The raw mapping of a section; `a.b` names a sub-section.

        Raises:
            UserError: The section is missing or not a mapping.
        """
        value: Any = self.data
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                known = value.keys() if isinstance(value, dict) else ()
                raise UserError(f"no section '{name}'", where=str(self.path), fix=did_you_mean(part, known))
            value = value[part]
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise UserError(f"'{name}' is not a section", where=self.where(name), fix="write its keys indented below")
        return value

    def where(self, field: str) -> str:
        """`params.yaml, line 12` for a dotted field, or the file and `--set` where it has no line."""
        line = self.lines.get(tuple(field.split(".")))
        return f"{self.path}, line {line} ({field})" if line else f"{self.path} ({field})"

    def check_sections(self, known: Sequence[str]) -> None:
        """Refuse a top-level section that no stage reads: a typing error there would silently mean the defaults."""
        for name in self.data:
            if name not in known:
                raise UserError(f"unknown section '{name}'", where=self.where(name), fix=did_you_mean(name, known))

    def load(self, model: type[P], section: str) -> P:
        """Validate a section against its model."""
        return validate(model, self.section(section), section=section, where=self.where)


def validate(
    model: type[P], data: Mapping[str, Any], *, section: str, where: Callable[[str], str] = lambda field: field
) -> P:
    """Build a parameter model, turning pydantic's errors into one `UserError`.

    Args:
        model: The stage's parameter model.
        data: The raw mapping.
        section: Dotted name of the section, for messages.
        where: Maps a dotted field to text that says where it stands.

    Raises:
        UserError: Names every wrong field, its place, and the closest known key for an unknown one.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problems, places, fixes = [], [], []
        for item in error.errors():
            path = [str(part) for part in item["loc"]]
            field = ".".join([section, *path])
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown parameter '{field}'")
                fixes.append(did_you_mean(path[-1], _keys_at(model, path[:-1])))
            elif item["type"] == "missing":
                problems.append(f"parameter '{field}' is missing")
                fixes.append(f"add it under '{section}:'")
            else:
                message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
                shown = "" if item["type"] == "value_error" and not path else f" = {item['input']!r}"
                problems.append(f"parameter '{field}'{shown}: {message[:1].lower()}{message[1:]}")
                fixes.append("correct the value")
            places.append(where(field))
        raise UserError(
            "; ".join(problems), where="; ".join(dict.fromkeys(places)), fix="; ".join(dict.fromkeys(fixes))
        ) from error


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = model
    for part in path:
        field = current.model_fields.get(part)
        current = field.annotation if field is not None else None
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
    return list(current.model_fields)


def value_at(params: BaseModel | Mapping[str, Any], name: str) -> Any:
    """The value of a dotted parameter; None if a mapping on the way does not hold it."""
    value: Any = params
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
        if value is None:
            break
    return value


def canonical_json(params: BaseModel | Mapping[str, Any]) -> str:
    """Sorted keys, no spaces, ASCII, shortest float form: equal settings give equal text."""
    data = params.model_dump(mode="json") if isinstance(params, BaseModel) else params
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def params_sha256(params: BaseModel | Mapping[str, Any]) -> str:
    """Hex sha256 of `canonical_json`."""
    return hashlib.sha256(canonical_json(params).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
