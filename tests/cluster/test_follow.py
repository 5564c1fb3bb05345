"""A run is followed through restarts of the server to its end, and its failure names the task."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import kfp_server_api
import pytest

from plmsae.cluster import follow as follow_module
from plmsae.cluster.connection import connect
from plmsae.cluster.follow import Outcome, follow
from plmsae.errors import DataError, TryAgainError, UserError
from tests.cluster.kfp_server import Fault, KfpServer

TASKS = ("ingest", "validate")
URL = "http://host/#/runs/details/r"


class Clock:
    """Sleeps without waiting and remembers for how long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def followed(kfp: KfpServer, clock: Clock | None = None) -> Outcome:
    clock = clock or Clock()
    kfp.state.runs["r"] = {"run_id": "r"}
    with connect(kfp.host) as client:
        return follow(client, kfp.host, "r", TASKS, sleep=clock.sleep, clock=clock)


def test_a_line_for_every_change_and_only_then(kfp: KfpServer, caplog: pytest.LogCaptureFixture) -> None:
    ingesting = ("RUNNING", {"ingest": ("RUNNING", ""), "ingest-driver": ("SUCCEEDED", "")})
    kfp.state.course = [
        ("PENDING", {}),
        *[ingesting] * 12,
        ("RUNNING", {"ingest": ("SUCCEEDED", ""), "validate": ("RUNNING", "")}),
        ("SUCCEEDED", {"ingest": ("SKIPPED", ""), "validate": ("SUCCEEDED", "")}),
    ]
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="plmsae"):
        assert followed(kfp, clock) == Outcome("SUCCEEDED")
    assert caplog.messages == [
        "run state=PENDING done=0 total=2",
        "run state=RUNNING done=0 total=2 running=ingest",
        "run state=RUNNING done=1 total=2 running=validate",
        "run state=SUCCEEDED done=2 total=2",
    ]
    assert clock.sleeps[0] == follow_module.FIRST_SECONDS
    assert max(clock.sleeps) == follow_module.LONGEST_SECONDS


def test_a_failure_names_every_failed_task(kfp: KfpServer) -> None:
    kfp.state.course = [("FAILED", {"ingest": ("FAILED", "exit\n code 3"), "validate": ("SKIPPED", "")})]
    outcome = followed(kfp)
    assert outcome == Outcome("FAILED", (("ingest", "exit code 3"),))
    error = outcome.error(URL)
    assert isinstance(error, DataError)
    assert "task 'ingest' failed: exit code 3" in error.problem
    assert error.where == URL


def test_a_cancelled_run_is_worth_another_try(kfp: KfpServer) -> None:
    kfp.state.course = [("CANCELING", {}), ("CANCELED", {})]
    outcome = followed(kfp)
    assert not outcome.succeeded
    assert isinstance(outcome.error(URL), TryAgainError)


def test_a_server_that_restarts_is_waited_for(kfp: KfpServer) -> None:
    kfp.state.faults = [Fault("/runs/r", 503, times=5)]
    assert followed(kfp).succeeded


def test_a_server_that_stays_away_is_given_up_after_minutes(kfp: KfpServer) -> None:
    kfp.state.faults = [Fault("/runs/r", 503)]
    clock = Clock()
    with pytest.raises(TryAgainError, match="status 503"):
        followed(kfp, clock)
    assert follow_module.PATIENCE_SECONDS < clock.now < 2 * follow_module.PATIENCE_SECONDS


def test_a_token_that_expires_is_not_waited_for(kfp: KfpServer) -> None:
    kfp.state.faults = [Fault("/runs/r", 401)]
    clock = Clock()
    with pytest.raises(UserError, match="status 401"):
        followed(kfp, clock)
    assert clock.now == 0


def test_of_a_retried_task_the_last_attempt_counts() -> None:
    def attempt(state: str, hour: int) -> kfp_server_api.V2beta1PipelineTaskDetail:
        start = datetime(2026, 1, 1, hour, tzinfo=UTC)
        return kfp_server_api.V2beta1PipelineTaskDetail(display_name="ingest", state=state, start_time=start)

    details = kfp_server_api.V2beta1RunDetails(task_details=[attempt("RUNNING", 2), attempt("FAILED", 1)])
    run = kfp_server_api.V2beta1Run(state="RUNNING", run_details=details)
    outcome, line = follow_module._read(run, TASKS)
    assert outcome.failures == ()
    assert line == "run state=RUNNING done=0 total=2 running=ingest"
