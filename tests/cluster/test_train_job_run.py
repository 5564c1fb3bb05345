"""TrainJobs against a server that really runs them: to the end, failing, stopped, taken up, refused, unreachable."""

from __future__ import annotations

import logging
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from plmsae.cluster import train_job_run
from plmsae.cluster.placement import Placement
from plmsae.cluster.train_job import KEY_ANNOTATION, job_name, torchrun, train_job
from plmsae.cluster.train_job_run import TrainJobRun
from plmsae.cluster.trainer_api import TrainJobs
from plmsae.errors import DataError, PlmsaeError, TryAgainError, UserError
from tests.cluster.test_connection import self_signed
from tests.cluster.test_train_job import settings
from tests.cluster.trainer_server import GROUP, NAMESPACE, TOKEN, Cluster, Fault, role_rules, trainer_server

KEY = 32 * "5a"
NAME = job_name(KEY)
FOREVER = "while true; do sleep 0.05; done"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with trainer_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_job_run, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(train_job_run, "LONGEST_SECONDS", 0.2)
    monkeypatch.setattr(train_job_run, "PATIENCE_SECONDS", 1.0)


def nothing() -> None:
    return None


def run_of(
    cluster: Cluster,
    script: str | list[str],
    *,
    forget: Callable[[], None] = nothing,
    failure: Callable[[], PlmsaeError | None] = nothing,
    finished: Callable[[], bool] = lambda: False,
    placement: Placement | None = None,
    **changes: Any,
) -> TrainJobRun:
    command = script if isinstance(script, list) else ["sh", "-c", script]
    given = settings(placement or Placement(gpu_type=None), **({"num_nodes": 2, "num_processes": 1} | changes))
    jobs = TrainJobs(NAMESPACE, cluster.configuration())
    return TrainJobRun(jobs, train_job(KEY, NAMESPACE, command, given), forget, failure, finished)


def once(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def processes(cluster: Cluster) -> list[int]:
    return [node.process.pid for node in cluster.nodes.get(NAME, ())]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_nodes_of_two_processes_make_one_group(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    module = Path(__file__).parent / "ranks_of_a_job.py"
    given = settings(Placement(gpu_type=None), num_nodes=2, num_processes=2)
    command = torchrun(f"tests.cluster.{module.stem}", ["given"], given)
    with caplog.at_level(logging.INFO, "plmsae"):
        run_of(cluster, command, num_processes=2).run()
    # 0 + 1 + 2 + 3, and the line of rank 0, which is on node 0.
    assert "node 0 | rank 0 of 4: sum 6, argument given" in caplog.text
    assert cluster.jobs[NAME]["status"]["conditions"][0]["type"] == "Complete"


def test_what_the_first_node_writes_is_shown_once_and_in_order(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "plmsae"):
        run_of(cluster, 'for i in 1 2 3 4 5 6; do echo "line $i of $PET_NODE_RANK"; sleep 0.1; done').run()
    shown = [record.getMessage() for record in caplog.records if " | " in record.getMessage()]
    assert shown == [f"node 0 | line {number} of 0" for number in range(1, 7)]
    states = [record.getMessage() for record in caplog.records if "state=" in record.getMessage()]
    assert states[-1].endswith("state=Complete nodes=2 succeeded=2")


def test_bucket_and_keys_come_from_the_settings_of_the_namespace(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.values = {"plmsae": {"AWS_ENDPOINT_URL": "http://store"}, "plmsae-s3": {"AWS_ACCESS_KEY_ID": "id"}}
    with caplog.at_level(logging.INFO, "plmsae"):
        run_of(cluster, 'echo "$AWS_ENDPOINT_URL $AWS_ACCESS_KEY_ID ${AWS_DEFAULT_REGION:-none}"').run()
    assert "node 0 | http://store id none" in caplog.text


def test_a_job_that_fails_without_a_word_shows_the_end_of_every_log(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.runtimes["plmsae-torch"]["spec"]["template"]["spec"].pop("failurePolicy")
    script = 'if [ $PET_NODE_RANK = 1 ]; then echo "illegal instruction"; exit 7; fi; sleep 60'
    with caplog.at_level(logging.INFO, "plmsae"), pytest.raises(TryAgainError, match="failed") as raised:
        run_of(cluster, script).run()
    assert "node 1: exit code 7" in raised.value.problem
    assert raised.value.where == f"TrainJob team/{NAME}"
    assert "node 1 | illegal instruction" in caplog.text


def test_a_node_that_is_lost_starts_all_anew(cluster: Cluster, tmp_path: Path) -> None:
    script = f"echo x >> {tmp_path}/$PET_NODE_RANK; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"

    def lose() -> None:
        once(lambda: len(processes(cluster)) == 2)
        once(lambda: [path.read_text() for path in tmp_path.iterdir()] == ["x\n", "x\n"])
        cluster.lose_node(NAME, 1)
        once(lambda: (tmp_path / "0").read_text() == "x\nx\n")
        (tmp_path / "go").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    run_of(cluster, script).run()
    thread.join()
    assert (tmp_path / "1").read_text() == "x\nx\n"


def test_what_a_rank_says_of_its_failure_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    def said() -> PlmsaeError | None:
        return DataError("the training diverged", fix="lower the rate") if (tmp_path / "said").exists() else None

    with pytest.raises(DataError, match="diverged"):
        run_of(cluster, f"touch {tmp_path}/said; {FOREVER}", failure=said).run()
    assert cluster.jobs == {}
    assert len(cluster.created) == 1


def test_what_may_be_tried_again_is_left_to_the_runtime(cluster: Cluster, tmp_path: Path) -> None:
    def said() -> PlmsaeError | None:
        return TryAgainError("stopped by SIGTERM at step 7") if (tmp_path / "0").exists() else None

    tries = f"echo x >> {tmp_path}/$PET_NODE_RANK; sleep 0.2; "
    run_of(cluster, tries + f'[ "$(cat {tmp_path}/$PET_NODE_RANK)" != x ]', failure=said).run()
    assert len(cluster.created) == 1
    (tmp_path / "0").unlink()
    cluster.delete(NAME)
    once(lambda: not cluster.jobs)
    with pytest.raises(TryAgainError, match=r"node 0: exit code 1.*a rank said: stopped by SIGTERM at step 7"):
        run_of(cluster, tries + "exit 1", failure=said).run()


def test_a_new_job_does_not_meet_the_failure_of_the_one_before(cluster: Cluster, tmp_path: Path) -> None:
    failed = tmp_path / "failed"

    def said() -> PlmsaeError | None:
        return DataError("diverged") if failed.exists() else None

    with pytest.raises(DataError):
        run_of(cluster, f"touch {failed}; {FOREVER}", forget=lambda: failed.unlink(missing_ok=True), failure=said).run()
    assert failed.exists()
    run_of(cluster, "true", forget=lambda: failed.unlink(missing_ok=True), failure=said).run()


def test_sigterm_deletes_the_job_and_its_processes(cluster: Cluster) -> None:
    pids: list[int] = []

    def stop() -> None:
        once(lambda: len(processes(cluster)) == 2)
        pids.extend(processes(cluster))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(TryAgainError, match="stopped by SIGTERM; the TrainJob is deleted"):
        run_of(cluster, FOREVER).run()
    thread.join()
    once(lambda: not cluster.jobs)
    assert not any(alive(pid) for pid in pids)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_deletes_the_job(cluster: Cluster) -> None:
    def stop() -> None:
        once(lambda: len(processes(cluster)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_of(cluster, FOREVER).run()
    thread.join()
    once(lambda: not cluster.jobs)


def test_a_stop_that_cannot_delete_says_how_to(cluster: Cluster) -> None:
    cluster.allowed = role_rules() - {(GROUP, "trainjobs", "delete")}

    def stop() -> None:
        once(lambda: len(processes(cluster)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(TryAgainError, match=f"goes on.*kubectl delete trainjob {NAME}"):
        run_of(cluster, FOREVER).run()
    thread.join()
    assert NAME in cluster.jobs


def test_a_job_ends_at_its_time_limit(cluster: Cluster) -> None:
    with pytest.raises(TryAgainError, match="did not end within"):
        run_of(cluster, FOREVER, timeout_seconds=1).run()


def test_a_job_that_the_cluster_never_ends_is_deleted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.hold = True
    monkeypatch.setattr(train_job_run, "SLACK_SECONDS", 0.0)
    with pytest.raises(TryAgainError, match=r"has not ended.*is deleted"):
        run_of(cluster, FOREVER, timeout_seconds=1).run()
    once(lambda: not cluster.jobs)


def test_a_repeated_task_takes_up_the_running_job(cluster: Cluster, tmp_path: Path) -> None:
    first = run_of(cluster, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo done")
    assert first.jobs.create(first.manifest)
    once(lambda: len(processes(cluster)) == 2)
    second = run_of(cluster, "exit 1")
    threading.Timer(0.3, (tmp_path / "go").touch).start()
    second.run()
    assert len(cluster.created) == 1


def test_a_complete_job_is_not_run_again_if_its_result_is_there(cluster: Cluster) -> None:
    run_of(cluster, "true").run()
    run_of(cluster, "exit 1", finished=lambda: True).run()
    assert len(cluster.created) == 1


@pytest.mark.parametrize("earlier", ["true", "exit 3"])
def test_the_job_of_an_earlier_attempt_that_ended_makes_room(cluster: Cluster, earlier: str) -> None:
    cluster.runtimes["plmsae-torch"]["spec"]["template"]["spec"].pop("failurePolicy")
    first = run_of(cluster, earlier)
    first.jobs.create(first.manifest)
    once(lambda: "status" in cluster.jobs[NAME])
    run_of(cluster, "true").run()
    assert len(cluster.created) == 2


def test_a_job_that_somebody_deletes_is_told(cluster: Cluster) -> None:
    thread = threading.Thread(target=lambda: (once(lambda: len(processes(cluster)) == 2), cluster.delete(NAME)))
    thread.start()
    with pytest.raises(TryAgainError, match="deleted by somebody else"):
        run_of(cluster, FOREVER).run()
    thread.join()


def test_a_job_of_the_same_name_that_is_not_ours_is_left_alone(cluster: Cluster) -> None:
    other = run_of(cluster, FOREVER)
    metadata = dict(other.manifest["metadata"]) | {"annotations": {KEY_ANNOTATION: "other"}}
    other.jobs.create(dict(other.manifest) | {"metadata": metadata})
    with pytest.raises(UserError, match="not of this work"):
        run_of(cluster, "true").run()
    assert NAME in cluster.jobs


@pytest.mark.parametrize("verb", ["get", "create"])
def test_a_right_that_is_missing_is_named_with_its_rule(cluster: Cluster, verb: str) -> None:
    cluster.allowed = role_rules() - {(GROUP, "trainjobs", verb)}
    with pytest.raises(UserError) as raised:
        run_of(cluster, "true").run()
    assert f"plmsae-runner' may not {verb} trainjobs" in raised.value.problem
    assert "Role plmsae-trainer" in str(raised.value.where)
    assert f"verb '{verb}' for 'trainjobs' of group trainer.kubeflow.org" in str(raised.value.fix)
    assert cluster.created == []


@pytest.mark.parametrize("right", [("", "pods", "list"), ("", "pods/log", "get")])
def test_without_a_right_to_look_the_job_still_runs(
    cluster: Cluster, right: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.allowed = role_rules() - {right}
    with caplog.at_level(logging.INFO, "plmsae"):
        run_of(cluster, "sleep 0.3").run()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"may not {right[2]} {right[1]}" in warnings[0]


def test_the_role_holds_what_is_asked_for_and_nothing_more(cluster: Cluster) -> None:
    cluster.runtimes["plmsae-torch"]["spec"]["template"]["spec"].pop("failurePolicy")
    with pytest.raises(TryAgainError):
        run_of(cluster, "exit 1").run()
    run_of(cluster, "true").run()
    assert set(cluster.requests) == role_rules()


def test_a_wrong_runtime_is_a_refusal_of_the_object_and_not_of_the_account(cluster: Cluster) -> None:
    with pytest.raises(UserError, match='"torch-nowhere" not found') as raised:
        run_of(cluster, "true", placement=Placement(gpu_type=None, runtime="torch-nowhere")).run()
    assert "placement" in str(raised.value.fix)
    assert "may not" not in raised.value.problem


def test_a_cluster_without_trainer_is_told(cluster: Cluster) -> None:
    cluster.faults.append(Fault("/apis/trainer.kubeflow.org", 404, b"404 page not found\n"))
    with pytest.raises(UserError, match="does not know TrainJobs") as raised:
        run_of(cluster, "true").run()
    assert "install Kubeflow Trainer" in str(raised.value.fix)


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_faults_that_pass_are_waited_out(cluster: Cluster, status: int) -> None:
    cluster.faults.append(Fault("/trainjobs", status, b"busy", times=3))
    run_of(cluster, "true").run()
    assert len(cluster.created) == 1


def test_a_server_that_is_away_means_try_again(cluster: Cluster) -> None:
    configuration = cluster.configuration()
    configuration.host = "http://127.0.0.1:9"
    run = replace(run_of(cluster, "true"), jobs=TrainJobs(NAMESPACE, configuration))
    with pytest.raises(TryAgainError, match="does not answer"):
        run.run()


def test_outside_a_cluster_the_way_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="started from a pod") as raised:
        TrainJobs(NAMESPACE)
    assert "plmsae submit" in str(raised.value.fix)


def test_in_a_pod_the_token_and_the_authority_are_those_of_its_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, token = self_signed(tmp_path), tmp_path / "token"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    token.write_text(TOKEN)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    with trainer_server(context) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.host.rpartition(":")[2])
        assert TrainJobs(NAMESPACE).get("none") is None
        token.write_text("another")
        with pytest.raises(UserError, match="does not accept the token"):
            TrainJobs(NAMESPACE).get("none")
