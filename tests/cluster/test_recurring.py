"""Recurring runs of Kubeflow: one of each name, wherever a process ends and whoever else applies at the same time."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from plmsae.cluster.connection import connect
from plmsae.cluster.package import Package, parse_package
from plmsae.cluster.recurring import Change, Wanted, delete, listed, make_so, planned
from plmsae.cluster.schedule_status import statuses
from plmsae.cluster.schedules import Schedule
from plmsae.errors import TryAgainError, UserError
from tests.cluster.kfp_server import Fault, KfpServer

NAME = "nightly"
START = datetime(2027, 1, 1, tzinfo=UTC)


def package(command: str = "train") -> Package:
    """A pipeline of one task, as small as KFP takes it."""
    spec = {
        "pipelineInfo": {"name": "plmsae-small"},
        "schemaVersion": "2.1.0",
        "sdkVersion": "kfp-2.17.0",
        "root": {
            "dag": {"tasks": {"one": {"componentRef": {"name": "comp-one"}, "taskInfo": {"name": "one"}}}},
            "inputDefinitions": {
                "parameters": {"k": {"parameterType": "NUMBER_INTEGER"}, "source": {"parameterType": "STRING"}}
            },
        },
        "components": {"comp-one": {"executorLabel": "exec-one"}},
        "deploymentSpec": {"executors": {"exec-one": {"container": {"image": "a/b", "command": [command]}}}},
    }
    return parse_package(yaml.safe_dump(spec).encode(), where="test")


PACKAGE, CHANGED_PACKAGE = package(), package("train-better")


def wanted(k: int = 8, *, of: Package = PACKAGE, **changes: Any) -> Wanted:
    times = {} if "every" in changes else {"cron": "30 3 * * sun"}
    schedule = Schedule(**{"pipeline": "small", **times, **changes})
    return Wanted(NAME, schedule, of, {"k": k, "source": "s3://a/b"})


OLD, NEW, OTHER = wanted(8), wanted(16), wanted(32)


@pytest.fixture
def client(kfp: KfpServer) -> Iterator[Any]:
    with connect(kfp.host) as found:
        yield found


def recurring(kfp: KfpServer) -> list[dict[str, Any]]:
    return list(kfp.state.recurring.values())


def at_most_one_enabled(kfp: KfpServer) -> bool:
    return all(count <= 1 for counts in kfp.state.enabled for count in counts.values())


def is_what(kfp: KfpServer, asked: Wanted) -> bool:
    """Whether exactly this is there, enabled."""
    (item,) = recurring(kfp)
    return (
        item["display_name"] == NAME
        and item["mode"] == ("ENABLE" if asked.schedule.enabled else "DISABLE")
        and item["runtime_config"]["parameters"] == asked.arguments
        and kfp.state.packages[item["pipeline_version_reference"]["pipeline_version_id"]] == asked.package.text
    )


def test_everything_that_is_asked_for_reaches_the_server(kfp: KfpServer, client: Any) -> None:
    asked = wanted(
        start=START,
        end=datetime(2028, 1, 1, tzinfo=UTC),
        catch_up=True,
        max_concurrency=3,
        experiment="layers",
        service_account="plmsae-runner",
    )
    made = make_so(client, kfp.host, asked)
    (item,) = recurring(kfp)
    assert item["recurring_run_id"] == made
    assert item["trigger"] == {
        "cron_schedule": {
            "cron": "0 30 3 * * 0",
            "start_time": "2027-01-01T00:00:00Z",
            "end_time": "2028-01-01T00:00:00Z",
        }
    }
    assert (item["no_catchup"], item["max_concurrency"], item["service_account"]) == (False, "3", "plmsae-runner")
    assert kfp.state.experiments[item["experiment_id"]]["display_name"] == "layers"
    assert item["description"].endswith(asked.mark)
    assert is_what(kfp, asked)
    (found,) = listed(client)
    assert found.trigger == asked.trigger
    assert found.is_of(asked)
    assert found.differences(asked) == []


def test_an_interval_is_in_seconds_and_catching_up_is_off(kfp: KfpServer, client: Any) -> None:
    make_so(client, kfp.host, wanted(every="12h", enabled=False))
    (item,) = recurring(kfp)
    assert int(item["trigger"]["periodic_schedule"]["interval_second"]) == 43200
    assert (item["no_catchup"], item["mode"]) == (True, "DISABLE")
    assert listed(client)[0].trigger == wanted(every="12h").trigger
    for seconds, shown in (("43200", "every 12h"), ("1209600", "every 2w"), ("90", "every 90 seconds")):
        item["trigger"]["periodic_schedule"]["interval_second"] = seconds
        (line,) = statuses(client, kfp.host, None, {}, listed(client), packages=())
        assert line.times == shown


def test_what_is_unchanged_is_left_alone_and_what_is_changed_is_replaced(kfp: KfpServer, client: Any) -> None:
    first = make_so(client, kfp.host, OLD)
    kfp.state.requests.clear()
    assert planned(OLD, listed(client)) == Change(NAME, "unchanged")
    assert make_so(client, kfp.host, OLD) == first
    assert {method for method, _ in kfp.state.requests} == {"GET"}
    # The same in other words is no change.
    assert make_so(client, kfp.host, wanted(cron="30  3 * * 7")) == first

    assert planned(NEW, listed(client)) == Change(NAME, "replace", ("k",))
    second = make_so(client, kfp.host, NEW)
    assert second != first
    assert is_what(kfp, NEW)
    better = wanted(16, of=CHANGED_PACKAGE)
    assert planned(better, listed(client)) == Change(NAME, "replace", ("package",))
    make_so(client, kfp.host, better)
    assert is_what(kfp, better)
    assert planned(wanted(16, of=CHANGED_PACKAGE, cron="30 4 * * sun"), listed(client)).why == ("times",)
    assert planned(wanted(16, of=CHANGED_PACKAGE, experiment="other"), listed(client)).why == ("settings",)
    assert at_most_one_enabled(kfp)


@pytest.mark.parametrize(
    "changes",
    [
        {"catch_up": True},
        {"max_concurrency": 2},
        {"service_account": "a"},
        {"start": START},
        {"end": START},
        {"every": "7d"},
    ],
)
def test_every_setting_counts(changes: dict[str, Any]) -> None:
    assert wanted(**changes).settings != OLD.settings
    assert wanted(enabled=False).settings == OLD.settings


def test_being_enabled_is_changed_in_place(kfp: KfpServer, client: Any) -> None:
    first = make_so(client, kfp.host, OLD)
    off = wanted(enabled=False)
    assert planned(off, listed(client)).action == "disable"
    assert make_so(client, kfp.host, off) == first
    assert is_what(kfp, off)
    assert planned(OLD, listed(client)).action == "enable"
    assert make_so(client, kfp.host, OLD) == first
    assert is_what(kfp, OLD)


WRITES = 4  # of a replacement: upload, create, delete, enable


@pytest.mark.parametrize("after", [False, True], ids=["before the request", "after it"])
@pytest.mark.parametrize("spared", range(WRITES))
def test_a_process_that_ends_anywhere_is_healed_by_the_next(
    kfp: KfpServer, client: Any, spared: int, after: bool
) -> None:
    """The server goes away for ever at one of the requests that write, having done what it asks or not."""
    make_so(client, kfp.host, OLD)
    asked = wanted(16, of=CHANGED_PACKAGE)
    kfp.state.faults = [Fault("", 503, methods=("POST", "DELETE"), spared=spared, after=after)]
    with pytest.raises(TryAgainError):
        make_so(client, kfp.host, asked)
    kfp.state.faults = []
    make_so(client, kfp.host, asked)
    assert is_what(kfp, asked)
    assert at_most_one_enabled(kfp)
    assert len(kfp.state.versions) == 2


def test_all_the_writes_of_a_replacement_are_cut(kfp: KfpServer, client: Any) -> None:
    make_so(client, kfp.host, OLD)
    kfp.state.faults = [Fault("", 503, methods=("POST", "DELETE"), spared=WRITES)]
    make_so(client, kfp.host, wanted(16, of=CHANGED_PACKAGE))


def test_a_process_that_ends_never_leaves_a_schedule_without_its_old_run_before_the_new_one_is_there(
    kfp: KfpServer, client: Any
) -> None:
    make_so(client, kfp.host, OLD)
    for path in ("upload_version", "recurringruns"):
        kfp.state.faults = [Fault(path, 503, methods=("POST",))]
        with pytest.raises(TryAgainError):
            make_so(client, kfp.host, wanted(16, of=CHANGED_PACKAGE))
        assert is_what(kfp, OLD)


def at_each_request(kfp: KfpServer, act: Callable[[], None], then: Callable[[], None]) -> Iterator[int]:
    """Run `then` again and again, letting `act` happen before its first request, its second, and so on."""
    for place in range(100):
        seen = 0
        acted = False

        def before(*_: str, place: int = place) -> None:
            nonlocal seen, acted
            if not acted and seen == place:
                acted = True
                act()
            seen += 1

        kfp.state.before = before
        then()
        kfp.state.before = lambda *_: None
        if not acted:
            return
        yield place


@pytest.mark.parametrize("theirs", [NEW, OTHER], ids=["the same", "another"])
@pytest.mark.parametrize("there", [None, OLD], ids=["nothing there", "an old one"])
def test_two_who_apply_at_once_leave_one(kfp: KfpServer, client: Any, there: Wanted | None, theirs: Wanted) -> None:
    """A second process does all its work between any two requests of the first."""

    def second() -> None:
        with connect(kfp.host) as another:
            make_so(another, kfp.host, theirs)

    def first() -> None:
        for held in (kfp.state.recurring, kfp.state.pipelines, kfp.state.versions, kfp.state.experiments):
            held.clear()
        if there:
            item = {"mode": "ENABLE", **_record(kfp, client, there)}
            kfp.state.recurring[item["recurring_run_id"]] = item
        kfp.state.enabled.clear()
        make_so(client, kfp.host, NEW)

    places = 0
    for _ in at_each_request(kfp, second, first):
        places += 1
        (item,) = recurring(kfp)
        assert item["mode"] == "ENABLE"
        assert item["runtime_config"]["parameters"] in (NEW.arguments, theirs.arguments)
        assert at_most_one_enabled(kfp)
    assert places >= 10
    make_so(client, kfp.host, NEW)
    assert is_what(kfp, NEW)


class Turns:
    """Lets one of several clients make one request at a time, in an order that is drawn."""

    def __init__(self, seed: int, *names: str) -> None:
        self._random, self._changed = random.Random(seed), threading.Condition()
        self._running, self._waiting, self._next = set(names), set[str](), ""

    def wait(self, _method: str, _path: str, authorization: str) -> None:
        name = authorization.removeprefix("Bearer ")
        with self._changed:
            self._waiting.add(name)
            while self._next != name:
                if not self._next and self._waiting == self._running:
                    self._next = self._random.choice(sorted(self._waiting))
                    self._changed.notify_all()
                else:
                    assert self._changed.wait(60)
            self._waiting.remove(name)
            self._next = ""

    def leave(self, name: str) -> None:
        with self._changed:
            self._running.remove(name)
            self._changed.notify_all()


@pytest.mark.parametrize("seed", range(12))
def test_two_who_apply_request_by_request_leave_one(
    kfp: KfpServer, client: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    make_so(client, kfp.host, OLD)
    turns = Turns(seed, "one", "other")
    given_up: list[str] = []

    def work(name: str, theirs: Any, asked: Wanted) -> None:
        try:
            make_so(theirs, kfp.host, asked)
        except TryAgainError as error:
            given_up.append(error.problem)
        finally:
            turns.leave(name)

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # both silence it at once
    with contextlib.ExitStack() as stack:
        threads = []
        for name, asked in (("one", NEW), ("other", NEW if seed % 2 else OTHER)):
            monkeypatch.setenv("KFP_TOKEN", name)
            theirs = stack.enter_context(connect(kfp.host))
            threads.append(threading.Thread(target=work, args=(name, theirs, asked)))
        kfp.state.before = turns.wait
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        kfp.state.before = lambda *_: None
    assert at_most_one_enabled(kfp)
    assert all("changed by somebody else" in problem for problem in given_up)
    assert len(given_up) < 2
    (item,) = recurring(kfp)
    assert item["mode"] == "ENABLE"
    make_so(client, kfp.host, NEW)
    assert is_what(kfp, NEW)


def _record(kfp: KfpServer, client: Any, asked: Wanted) -> dict[str, Any]:
    """A recurring run as the server would hold it, without a request."""
    return {
        "recurring_run_id": kfp.state.new_id("old"),
        "display_name": asked.name,
        "description": asked.mark,
        "trigger": {"cron_schedule": {"cron": asked.trigger.cron}},
        "runtime_config": {"parameters": dict(asked.arguments)},
        "created_at": "2025-01-01T00:00:00Z",
    }


def test_doubles_are_removed_by_the_next_who_applies(kfp: KfpServer, client: Any) -> None:
    """Both were created at once by an older plmsae, by hand, or by a server that answered too late."""
    first = make_so(client, kfp.host, OLD)
    for created in ("2025-12-31T00:00:00Z", "2025-12-30T00:00:00Z", "2025-12-30T00:00:00Z"):
        twin = {**kfp.state.recurring[first], "recurring_run_id": kfp.state.new_id("twin"), "created_at": created}
        kfp.state.recurring[twin["recurring_run_id"]] = twin
    # Whoever looks keeps the same one, in whatever order the server lists them.
    oldest = min(item["recurring_run_id"] for item in recurring(kfp) if "12-30" in item["created_at"])
    assert planned(OLD, listed(client)) == Change(NAME, "tidy", ("4 of this name",))
    assert make_so(client, kfp.host, OLD) == oldest
    assert is_what(kfp, OLD)


def test_one_who_never_stops_to_undo_it_is_given_up(kfp: KfpServer, client: Any) -> None:
    def undo(method: str, path: str, _: str) -> None:
        if path.endswith(":enable"):
            kfp.state.recurring.clear()

    kfp.state.before = undo
    with pytest.raises(TryAgainError, match="changed by somebody else"):
        make_so(client, kfp.host, OLD)


def test_what_others_made_is_never_touched(kfp: KfpServer, client: Any) -> None:
    mine = make_so(client, kfp.host, OLD)
    theirs = {**kfp.state.recurring[mine], "recurring_run_id": "theirs", "description": "by hand"}
    kfp.state.recurring["theirs"] = dict(theirs)
    with pytest.raises(UserError, match=r"was not made by plmsae schedule \(theirs\)"):
        planned(NEW, listed(client))
    make_so(client, kfp.host, NEW)
    assert kfp.state.recurring["theirs"] == theirs


def test_a_run_that_goes_on_is_not_ended_with_what_started_it(kfp: KfpServer, client: Any) -> None:
    made = make_so(client, kfp.host, OLD)
    kfp.state.runs["run"] = {"run_id": "run", "recurring_run_id": made, "state": "RUNNING"}
    make_so(client, kfp.host, NEW)
    assert kfp.state.runs["run"]["state"] == "RUNNING"


def test_pages_are_read_to_the_last(kfp: KfpServer, client: Any) -> None:
    first = make_so(client, kfp.host, OLD)
    for number in range(7):
        copy = {**kfp.state.recurring[first], "recurring_run_id": f"copy-{number}"}
        kfp.state.recurring[copy["recurring_run_id"]] = copy
    kfp.state.recurring["broken"] = {"recurring_run_id": "broken", "error": {"code": 13}}
    kfp.state.max_page_size = 3
    assert len(listed(client)) == 8
    make_so(client, kfp.host, NEW)
    del kfp.state.recurring["broken"]
    assert is_what(kfp, NEW)


def test_deleting_what_is_gone_is_no_error_and_other_failures_are(kfp: KfpServer, client: Any) -> None:
    delete(client, "none")
    made = make_so(client, kfp.host, OLD)
    kfp.state.faults = [Fault("recurringruns", 500, methods=("DELETE",))]
    with pytest.raises(TryAgainError):
        make_so(client, kfp.host, NEW)
    assert made in kfp.state.recurring
    kfp.state.faults = [Fault(":enable", 403, methods=("POST",))]
    with pytest.raises(UserError, match="refuses access"):
        make_so(client, kfp.host, NEW)


def test_the_server_s_refusals_are_told(kfp: KfpServer, client: Any) -> None:
    asked = Wanted(NAME, OLD.schedule, PACKAGE, {"k": "eight", "source": "s3://a/b"})
    with pytest.raises(UserError, match="input parameter k requires type"):
        make_so(client, kfp.host, asked)
    assert recurring(kfp) == []


def test_status_names_drift_and_when_it_ran_and_will(kfp: KfpServer, client: Any) -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

    def of(asked: Wanted | None, *, packages: tuple[str, ...] = (NAME,)) -> Any:
        schedules = {} if asked is None else {NAME: asked.schedule}
        found = {} if asked is None else {NAME: asked}
        return statuses(client, kfp.host, schedules, found, listed(client), packages=packages, now=now)

    (line,) = of(OLD)
    assert (line.enabled, line.drift, line.next_run) == (None, ("not on the server",), None)
    made = make_so(client, kfp.host, OLD)
    (line,) = of(OLD)
    assert (line.enabled, line.drift, line.last_run, line.next_run) == (True, (), None, "2026-11-22 03:30")
    assert of(wanted(9, of=CHANGED_PACKAGE))[0].drift == ("package", "k")
    assert of(wanted(9, of=CHANGED_PACKAGE), packages=())[0].drift == ("k",)
    assert of(None)[0].drift == ("not in the file",)
    assert statuses(client, kfp.host, None, {}, listed(client), packages=())[0].drift is None
    json.dumps(line.record())

    for number, state in ((20, "SUCCEEDED"), (21, "RUNNING")):
        at = f"2026-11-{number}T03:30:05Z"
        kfp.state.runs[at] = {"run_id": at, "recurring_run_id": made, "state": state, "created_at": at}
    assert of(OLD)[0].last_run == "2026-11-21 03:30 running"
    kfp.state.faults = [Fault("v2beta1/runs", 400)]  # a server that knows no such filter
    assert of(OLD)[0].last_run is None
    kfp.state.faults = []

    kfp.state.recurring[made]["mode"] = "DISABLE"
    (line,) = of(OLD)
    assert (line.enabled, line.drift, line.next_run) == (False, ("disabled on the server",), None)
    kfp.state.recurring["theirs"] = {**kfp.state.recurring[made], "recurring_run_id": "theirs", "description": ""}
    assert of(OLD)[0].drift == ("made by somebody else",)


@pytest.mark.parametrize(
    ("changes", "run_at", "expected"),
    [
        ({"every": "7d"}, None, "2026-11-28 12:00"),  # it was created now
        ({"every": "7d"}, "2026-11-20T10:00:00Z", "2026-11-27 10:00"),
        ({"every": "1d"}, "2026-11-01T10:00:00Z", "2026-11-21 12:00"),  # overdue
        ({"every": "7d", "end": datetime(2026, 11, 22, tzinfo=UTC)}, None, None),
        ({"start": START}, None, "2027-01-03 03:30"),
        ({"cron": "0 0 1 1 *", "start": START}, None, "2027-01-01 00:00"),
        ({"end": datetime(2026, 11, 22, tzinfo=UTC)}, None, None),
    ],
)
def test_the_next_run_is_computed_as_the_backend_does(
    kfp: KfpServer, client: Any, changes: dict[str, Any], run_at: str | None, expected: str | None
) -> None:
    asked = wanted(**changes)
    made = make_so(client, kfp.host, asked)
    kfp.state.recurring[made]["created_at"] = "2026-11-21T12:00:00Z"
    if run_at:
        kfp.state.runs["a"] = {"run_id": "a", "recurring_run_id": made, "created_at": run_at}
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    (line,) = statuses(client, kfp.host, None, {}, listed(client), packages=(), now=now)
    assert line.next_run == expected
