"""How the recurring runs of a server stand against a file of schedules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from plmsae.cluster.connection import translated
from plmsae.cluster.cron import parse_cron
from plmsae.cluster.recurring import Recurring, Wanted
from plmsae.cluster.schedules import SECONDS, Schedule
from plmsae.cluster.uploads import equals, namespace_of


@dataclass(frozen=True)
class Status:
    """One name of the file or the server.

    Attributes:
        name: Name of the schedule.
        pipeline: Package that the server runs, or the pipeline of the file.
        times: When it starts runs.
        enabled: Whether it does; None if the server has none.
        last_run: When the newest run was started, and how it stands.
        next_run: When the next is due, computed from the times.
        drift: What is other than in the file; None if there is no file to compare with.
    """

    name: str
    pipeline: str
    times: str
    enabled: bool | None
    last_run: str | None
    next_run: str | None
    drift: tuple[str, ...] | None

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def statuses(
    client: Any,
    host: str,
    schedules: Mapping[str, Schedule] | None,
    wanted: Mapping[str, Wanted],
    found: Sequence[Recurring],
    *,
    packages: Collection[str],
    now: datetime | None = None,
) -> list[Status]:
    """One line for every schedule of the file, and for every recurring run that plmsae made.

    Args:
        client: From `connect`.
        host: The address, for messages.
        schedules: The file; None if there is none.
        wanted: Its schedules with packages and arguments.
        found: The recurring runs of the namespace.
        packages: Names of those whose package is what would be applied; of others it is not compared.
        now: The present, by default the clock's.
    """
    moment = now or datetime.now(UTC)
    of_name: dict[str, list[Recurring]] = {name: [] for name in schedules or {}}
    for item in found:
        if item.settings is not None or item.name in of_name:
            of_name.setdefault(item.name, []).append(item)
    lines = []
    for name, items in sorted(of_name.items()):
        drift = None if schedules is None else tuple(_drift(wanted.get(name), items, package=name in packages))
        if not items:
            schedule = wanted[name].schedule
            lines.append(Status(name, wanted[name].package.name, schedule.shown, None, None, None, drift))
        for item in items:
            with translated(host):
                run = _last_run(client, item.id)
            lines.append(
                Status(
                    name=name,
                    pipeline=item.version,
                    times=_times(item, wanted.get(name)),
                    enabled=item.enabled,
                    last_run=f"{_text(run.created_at)} {str(run.state or 'PENDING').lower()}" if run else None,
                    next_run=_text(_next(item, run, moment)) if item.enabled else None,
                    drift=drift,
                )
            )
    return lines


def _drift(wanted: Wanted | None, items: Sequence[Recurring], *, package: bool) -> list[str]:
    if wanted is None:
        return ["not in the file"]
    if not items:
        return ["not on the server"]
    if any(item.settings is None for item in items):
        return ["made by somebody else"]
    found = [f"{len(items)} of this name"] if len(items) > 1 else []
    differences = items[-1].differences(wanted)
    found += [item for item in differences if package or item != "package"]
    if items[-1].enabled != wanted.schedule.enabled:
        found.append("enabled on the server" if items[-1].enabled else "disabled on the server")
    return found


def _times(item: Recurring, wanted: Wanted | None) -> str:
    """In the words of the file if they mean the same."""
    if wanted and item.trigger == wanted.trigger:
        return wanted.schedule.shown
    if item.trigger.cron:
        return f"{item.trigger.cron} UTC"
    seconds = item.trigger.seconds or 0
    unit = next((unit for unit, size in SECONDS.items() if seconds % size == 0), None)
    return f"every {seconds // SECONDS[unit]}{unit}" if unit else f"every {seconds} seconds"


def _last_run(client: Any, recurring_run_id: str) -> Any | None:
    """The newest run that a recurring run has started; None if there is none, or the server cannot look it up."""
    import kfp_server_api

    try:
        answer = client.list_runs(
            page_size=1,
            sort_by="created_at desc",
            namespace=namespace_of(client),
            filter=equals("recurring_run_id", recurring_run_id),
        )
    except kfp_server_api.ApiException as error:
        if error.status != 400:
            raise
        return None
    return answer.runs[0] if answer.runs else None


def _next(item: Recurring, run: Any | None, now: datetime) -> datetime | None:
    """When the next run is due; the present if that is past."""
    trigger = item.trigger
    if trigger.cron:
        seconds, _, five = trigger.cron.partition(" ")
        try:
            after = max(now, trigger.start - timedelta(microseconds=1)) if trigger.start else now
            due = parse_cron(five).next_after(after) if seconds == "0" else None
        except ValueError:
            due = None
    else:
        # As the backend counts: from the last run, or else from the start or the creation.
        last = (run.scheduled_at or run.created_at) if run else None
        first = trigger.start or item.created
        due = (last or first) + timedelta(seconds=trigger.seconds or 0)
    if due is None or (trigger.end and due > trigger.end):
        return None
    return max(due, now)


def _text(moment: datetime | None) -> str | None:
    return moment.strftime("%Y-%m-%d %H:%M") if moment else None
