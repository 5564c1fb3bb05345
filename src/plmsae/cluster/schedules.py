"""The file of schedules: which pipelines Kubeflow starts by the clock, and with which parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from plmsae.cluster.cron import parse_cron
from plmsae.errors import UserError
from plmsae.params import Params, ParamsFile, validate

SCHEDULES_FILE = Path("pipelines/schedules.yaml")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KEY = re.compile(r"\w+(\.\w+)+")
_INTERVAL = re.compile(r"([1-9][0-9]*)([mhdw])")
# Unit of an interval -> its seconds, the longest first.
SECONDS = {"w": 7 * 24 * 3600, "d": 24 * 3600, "h": 3600, "m": 60}


def _moment(value: Any) -> Any:
    """A time with its zone, from what YAML makes of it."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError("name the time zone, e.g. 2027-01-01T00:00:00Z")
    return value.astimezone(UTC) if isinstance(value, datetime) else value


Moment = Annotated[datetime, BeforeValidator(_moment)]


class Schedule(Params):
    """What is started, when, and with what."""

    pipeline: str | None = Field(default=None, description="A pipeline of `pipelines/`, compiled when it is applied.")
    package: str | None = Field(default=None, description="A compiled pipeline, as it is; in place of `pipeline`.")
    cron: str | None = Field(default=None, description="Minute, hour, day of month, month, day of week; in UTC.")
    every: str | None = Field(default=None, description="An interval in place of `cron`: 30m, 12h, 7d, 2w.")
    set: dict[str, Any] = Field(default={}, description="SECTION.KEY: VALUE, as `--set`; the rest is `params.yaml`.")
    experiment: str = Field(default="plmsae", min_length=1, description="Experiment of the runs.")
    service_account: str | None = Field(default=None, description="Account of the pods; null for the installation's.")
    enabled: bool = Field(default=True, description="Whether it starts runs.")
    catch_up: bool = Field(default=False, description="Whether runs that were missed are started later, one by one.")
    max_concurrency: int = Field(default=1, ge=1, le=10, description="How many of its runs may go on at once.")
    start: Moment | None = Field(default=None, description="No run before this time; with its zone.")
    end: Moment | None = Field(default=None, description="No run after it.")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        if value is not None:
            parse_cron(value)
        return value

    @field_validator("every")
    @classmethod
    def _interval(cls, value: str | None) -> str | None:
        if value is not None and not _INTERVAL.fullmatch(value):
            raise ValueError("write a number and m, h, d or w, e.g. 12h or 7d")
        return value

    @field_validator("set")
    @classmethod
    def _overrides(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, item in value.items():
            if not _KEY.fullmatch(key):
                raise ValueError(f"'{key}' is not SECTION.KEY")
            try:
                json.dumps(item, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(f"the value of '{key}' is no text, number, list or mapping; quote a date") from None
        return value

    @model_validator(mode="after")
    def _whole(self) -> Schedule:
        for one, other in (("pipeline", "package"), ("cron", "every")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ValueError(f"give either '{one}' or '{other}'")
        if self.start and self.end and self.start >= self.end:
            raise ValueError("'end' is not after 'start'")
        return self

    @property
    def overrides(self) -> list[str]:
        """The parameters as `--set` takes them."""
        return [f"{key}={json.dumps(value)}" for key, value in self.set.items()]

    @property
    def interval_seconds(self) -> int | None:
        """Seconds of `every`."""
        found = _INTERVAL.fullmatch(self.every or "")
        return int(found[1]) * SECONDS[found[2]] if found else None

    @property
    def shown(self) -> str:
        """When, for people."""
        return f"{self.cron} UTC" if self.cron else f"every {self.every}"


def read_schedules(path: Path) -> dict[str, Schedule]:
    """Name -> schedule, of a file.

    Raises:
        UserError: No such file, a wrong or unknown field, or no schedule at all; names the line.
    """
    if not path.is_file():
        raise UserError(
            f"the file of schedules '{path}' does not exist",
            fix=f"write one like {SCHEDULES_FILE} of the repository; see docs/how-to/schedules.md",
        )
    file = ParamsFile(path)
    if not file.data:
        raise UserError("the file names no schedule", where=str(path), fix="to delete one: plmsae schedule delete NAME")
    found = {}
    for name in file.data:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"'{name}' is no name of a schedule",
                where=file.where(name),
                fix="use at most 63 small letters, digits and dashes, e.g. weekly-reevaluation",
            )
        found[name] = validate(Schedule, file.section(name), section=name, where=file.where)
    return found


def refuse_examples(schedules: dict[str, Schedule], path: Path) -> None:
    """Refuse values that the example file came with, and addresses with a password in them.

    Raises:
        UserError: Names every one.
    """
    secret = [f"{name}: {key}" for name, key, value in _texts(schedules) if _has_password(value)]
    if secret:
        raise UserError(
            f"an address with a user and a password or signature: {', '.join(secret)}",
            where=str(path),
            fix="leave secrets out of the file; the pods have theirs from the namespace (docs/how-to/kubeflow.md)",
        )
    found = [f"{name}: {key} = {value}" for name, key, value in _texts(schedules) if _is_example(value)]
    if found:
        raise UserError(
            f"the example's own values are still there: {'; '.join(found)}",
            where=str(path),
            fix="write yours in their place, or take the schedule out",
        )


def _texts(schedules: dict[str, Schedule]) -> Iterator[tuple[str, str, str]]:
    """Every text among the parameters: name of the schedule, key, text."""

    def below(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from below(item)

    for name, schedule in schedules.items():
        for key, value in schedule.set.items():
            for text in below(value):
                yield name, key, text


def _is_example(text: str) -> bool:
    parts = _parts(text)
    host = (parts.hostname or "") if parts else ""
    return (
        host == "example.org"
        or (parts is not None and parts.netloc == "BUCKET")
        or host.endswith(".example.org")
        or text.startswith("models:/NAME")
        or text in (64 * "0", "HEX")
    )


def _has_password(text: str) -> bool:
    parts = _parts(text)
    return parts is not None and (parts.password is not None or "signature=" in parts.query.lower())


def _parts(text: str) -> Any:
    try:
        parts = urlsplit(text)
        return parts if parts.netloc and parts.hostname else None
    except ValueError:
        return None
