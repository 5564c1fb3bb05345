"""Recurring runs of Kubeflow, made to be what a file of schedules says.

Kubeflow cannot change a recurring run, only its being enabled, and takes several of one name. So what is asked for is
created disabled, all others of that name that were made here are deleted, and then it is enabled: at no moment two of
a name start runs, and whatever is left where a process ends, the next one takes up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from plmsae.cluster.connection import translated
from plmsae.cluster.cron import parse_cron
from plmsae.cluster.package import Package
from plmsae.cluster.schedules import Schedule
from plmsae.cluster.uploads import equals, experiment_id, identifier, namespace_of, silent, upload
from plmsae.errors import TryAgainError, UserError
from plmsae.params import canonical_json
from plmsae.stages.executor_input import PARAMS

Action = Literal["create", "replace", "enable", "disable", "tidy", "unchanged"]
# Others who apply at the same time may undo a step; with each round one of them is done.
_ROUNDS = 3
_PAGE = 100
_MARK = re.compile(r"\[plmsae schedule ([0-9a-f]{16}) (\S+)\]")


@dataclass(frozen=True)
class Trigger:
    """When a recurring run starts runs: six fields of cron or seconds, and between which times."""

    cron: str | None
    seconds: int | None
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class Wanted:
    """A schedule of the file, with the package and the arguments that its runs get."""

    name: str
    schedule: Schedule
    package: Package
    arguments: Mapping[str, Any]

    @property
    def trigger(self) -> Trigger:
        """As Kubeflow takes it."""
        schedule = self.schedule
        cron = parse_cron(schedule.cron).six_fields if schedule.cron else None
        return Trigger(cron, schedule.interval_seconds, schedule.start, schedule.end)

    @property
    def settings(self) -> str:
        """Hash of everything but the package, and but its being enabled, which can be changed in place."""
        of_schedule = self.schedule.model_dump(
            mode="json", include={"start", "end", "catch_up", "max_concurrency", "experiment", "service_account"}
        )
        trigger = {"cron": self.trigger.cron, "seconds": self.trigger.seconds}
        text = canonical_json({**of_schedule, **trigger, "arguments": dict(self.arguments)})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def mark(self) -> str:
        """What its description ends with: by whom it was made, and from what."""
        return f"[plmsae schedule {self.settings} {self.package.version}]"


@dataclass(frozen=True)
class Recurring:
    """A recurring run of the server.

    Attributes:
        settings: `Wanted.settings` that it was made with; None for one that plmsae did not make.
        version: The package that it was made with.
    """

    id: str
    name: str
    enabled: bool
    created: datetime
    trigger: Trigger
    arguments: Mapping[str, Any]
    settings: str | None
    version: str

    def is_of(self, wanted: Wanted) -> bool:
        """Whether it is what the file asks for, enabled or not."""
        return (self.settings, self.version) == (wanted.settings, wanted.package.version)

    def differences(self, wanted: Wanted) -> list[str]:
        """What is other than the file asks for, in words."""
        found = []
        if self.version != wanted.package.version:
            found.append("package")
        if self.trigger != wanted.trigger:
            found.append("times")
        found += _different(self.arguments, wanted.arguments)
        return found or ([] if self.is_of(wanted) else ["settings"])


@dataclass(frozen=True)
class Change:
    """What is done for a schedule, and why."""

    name: str
    action: Action
    why: tuple[str, ...] = ()


def listed(client: Any, name: str | None = None) -> list[Recurring]:
    """The recurring runs of the client's namespace, of one name or all; from the oldest, and in a fixed order."""
    query = equals("display_name", name) if name else None
    found: list[Recurring] = []
    token = ""
    while True:
        answer = client.list_recurring_runs(
            page_token=token, page_size=_PAGE, namespace=namespace_of(client), filter=query
        )
        # One that the server cannot convert has an id and an error, and no name.
        found += [_recurring(item) for item in answer.recurring_runs or () if item.display_name]
        token = answer.next_page_token or ""
        if not token:
            return sorted(found, key=lambda item: (item.created, item.id))


def planned(wanted: Wanted, found: Sequence[Recurring]) -> Change:
    """What has to be done for a schedule.

    Args:
        wanted: The schedule.
        found: The recurring runs of its name.

    Raises:
        UserError: One of them was made by somebody else.
    """
    strangers = [item.id for item in found if item.settings is None]
    if strangers:
        raise UserError(
            f"a recurring run '{wanted.name}' is there that was not made by plmsae schedule ({', '.join(strangers)})",
            fix="give the schedule another name, or delete that one in the Kubeflow UI",
        )
    if not found:
        return Change(wanted.name, "create")
    same = next((item for item in found if item.is_of(wanted)), None)
    if same is None:
        return Change(wanted.name, "replace", tuple(found[-1].differences(wanted)))
    if len(found) > 1:
        return Change(wanted.name, "tidy", (f"{len(found)} of this name",))
    if same.enabled != wanted.schedule.enabled:
        return Change(wanted.name, "enable" if wanted.schedule.enabled else "disable")
    return Change(wanted.name, "unchanged")


def make_so(client: Any, host: str, wanted: Wanted) -> str:
    """Leave exactly one recurring run of a name that plmsae made, the one that is asked for.

    Two who do this at once look again after they have created theirs, and so the later one sees both: of equal ones
    both keep the oldest, of different ones the later one its own.

    Returns:
        Its id.

    Raises:
        UserError: The server refuses.
        TryAgainError: The server fails or goes away, or somebody else changes the same schedule again and again.
    """
    with translated(host), silent():
        for _ in range(_ROUNDS):
            found = _ours(client, wanted.name)
            if not any(item.is_of(wanted) for item in found):
                _create(client, wanted)
                found = _ours(client, wanted.name)
            kept = next((item for item in found if item.is_of(wanted)), None)
            if kept is None:
                continue
            for other in found:
                if other.id != kept.id:
                    delete(client, other.id)
            if kept.enabled == wanted.schedule.enabled or _switch(client, kept.id, wanted.schedule.enabled):
                return kept.id
    raise TryAgainError(
        f"schedule '{wanted.name}' is being changed by somebody else at the same time",
        where=host,
        fix="apply again when they are done",
    )


def delete(client: Any, recurring_run_id: str) -> None:
    """Delete a recurring run; runs that it has started go on. One that is gone already is no error."""
    import kfp_server_api

    try:
        # Without it, Kubernetes deletes the runs as well (kubeflow/pipelines issue 12573). Servers to 2.15.0 do not
        # know it and delete them.
        client._recurring_run_api.recurring_run_service_delete_recurring_run(
            recurring_run_id=recurring_run_id, propagation_policy="ORPHAN"
        )
    except kfp_server_api.ApiException as error:
        if error.status != 404:
            raise


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of arguments that differ; of `ingest_params` and the like, which are JSON, the keys inside."""
    found = []
    for name in sorted({*one, *other}):
        if one.get(name) == other.get(name):
            continue
        before, after = _section(name, one.get(name)), _section(name, other.get(name))
        if before is None or after is None:
            found.append(name)
        else:
            found += [f"{name}.{key}" for key in _different(before, after)]
    return found


def _section(name: str, value: Any) -> Mapping[str, Any] | None:
    if not name.endswith(f"_{PARAMS}") or not isinstance(value, str):
        return None
    try:
        section = json.loads(value)
    except ValueError:
        return None
    return section if isinstance(section, dict) else None


def _ours(client: Any, name: str) -> list[Recurring]:
    return [item for item in listed(client, name) if item.settings is not None]


def _create(client: Any, wanted: Wanted) -> None:
    schedule, trigger = wanted.schedule, wanted.trigger
    pipeline_id, version_id, _ = upload(client, wanted.package)
    client.create_recurring_run(
        experiment_id=experiment_id(client, schedule.experiment),
        job_name=wanted.name,
        description=f"Made by plmsae schedule apply from a file, and replaced when it changes. {wanted.mark}",
        start_time=_text(trigger.start),
        end_time=_text(trigger.end),
        interval_second=trigger.seconds,
        cron_expression=trigger.cron,
        max_concurrency=schedule.max_concurrency,
        no_catchup=not schedule.catch_up,
        params=dict(wanted.arguments),
        pipeline_id=pipeline_id,
        version_id=version_id,
        enabled=False,
        service_account=schedule.service_account,
    )


def _switch(client: Any, recurring_run_id: str, enabled: bool) -> bool:
    """Enable or disable it; False if it is gone."""
    import kfp_server_api

    try:
        (client.enable_recurring_run if enabled else client.disable_recurring_run)(recurring_run_id)
    except kfp_server_api.ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


def _recurring(item: Any) -> Recurring:
    mark = _MARK.search(item.description or "")
    trigger = item.trigger
    by = (trigger.cron_schedule or trigger.periodic_schedule) if trigger else None
    seconds = getattr(by, "interval_second", None)
    return Recurring(
        id=identifier(item, "recurring_run_id"),
        name=item.display_name,
        enabled=item.mode == "ENABLE",
        created=_utc(item.created_at) or datetime.min.replace(tzinfo=UTC),
        trigger=Trigger(
            getattr(by, "cron", None),
            int(seconds) if seconds else None,
            _utc(getattr(by, "start_time", None)),
            _utc(getattr(by, "end_time", None)),
        ),
        arguments=(item.runtime_config.parameters if item.runtime_config else None) or {},
        settings=mark[1] if mark else None,
        version=mark[2] if mark else "",
    )


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _text(moment: datetime | None) -> str | None:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
