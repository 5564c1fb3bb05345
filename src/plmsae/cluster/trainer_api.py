"""TrainJobs of one namespace and their pods, through Kubernetes' own client, and its errors in words.

The client speaks as the service account of the pod that it runs in, and reads the token again when it changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from plmsae.cluster.train_job import GROUP, NODE, PLURAL, VERSION
from plmsae.errors import TryAgainError, UserError

# (seconds to connect, seconds to answer)
TIMEOUT = (5.0, 60.0)
ROLE = "Role plmsae-trainer (k8s/components/trainer)"
_WAITING = {"PodInitializing", "ContainerCreating"}


@dataclass(frozen=True)
class Pod:
    """One node of a job.

    Attributes:
        name: Name of the pod.
        node: Number of the node, from 0; node 0 has rank 0.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        trouble: Why it does not run or how it ended, in Kubernetes' words; empty if all is well.
    """

    name: str
    node: int
    phase: str
    trouble: str


class TrainJobs:
    """The TrainJobs of a namespace.

    Args:
        namespace: Its name.
        configuration: A `kubernetes.client.Configuration`; by default that of the pod.

    Raises:
        UserError: This is no pod, or it mounts no token of its account.
    """

    def __init__(self, namespace: str, configuration: Any = None) -> None:
        import urllib3
        from kubernetes import client, config

        if configuration is None:
            configuration = client.Configuration()
            try:
                config.load_incluster_config(configuration)
            except config.ConfigException as error:
                raise UserError(
                    f"a training on several nodes is started from a pod of the cluster: {error}",
                    fix="plmsae submit train --set train_sae.num_nodes=N; the pod must mount its account's token",
                ) from error
        configuration.retries = urllib3.Retry(0)  # whoever calls repeats, and says so
        self.namespace = namespace
        self.host = str(configuration.host)
        api = client.ApiClient(configuration)
        self._jobs, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Create a job; False if one of this name is there already.

        Raises:
            UserError: Kubernetes refuses the object or the caller.
            TryAgainError: Kubernetes cannot be reached.
        """
        from kubernetes.client import ApiException

        with self._translated("create", PLURAL):
            try:
                self._jobs.create_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, dict(manifest), _request_timeout=TIMEOUT
                )
            except ApiException as error:
                if error.status == 409:
                    return False
                raise
        return True

    def get(self, name: str) -> dict[str, Any] | None:
        """The job with its status, or None if there is none.

        Raises:
            UserError: Kubernetes refuses.
            TryAgainError: Kubernetes cannot be reached.
        """
        from kubernetes.client import ApiException

        with self._translated("get", PLURAL):
            try:
                found: dict[str, Any] = self._jobs.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=TIMEOUT
                )
            except ApiException as error:
                # Without Trainer the server does not know the path and answers 404 in plain text.
                if error.status == 404 and _status(error).get("kind") == "Status":
                    return None
                raise
        return found

    def delete(self, name: str) -> None:
        """Delete a job and, by the cluster, its pods; nothing happens if it is gone.

        Raises:
            UserError: Kubernetes refuses.
            TryAgainError: Kubernetes cannot be reached.
        """
        from kubernetes.client import ApiException, V1DeleteOptions

        with self._translated("delete", PLURAL):
            try:
                self._jobs.delete_namespaced_custom_object(
                    GROUP,
                    VERSION,
                    self.namespace,
                    PLURAL,
                    name,
                    body=V1DeleteOptions(propagation_policy="Foreground"),
                    _request_timeout=TIMEOUT,
                )
            except ApiException as error:
                if error.status != 404:
                    raise

    def pods(self, name: str) -> list[Pod]:
        """The pods of a job, by node.

        Raises:
            UserError: Kubernetes refuses.
            TryAgainError: Kubernetes cannot be reached.
        """
        selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={NODE}"
        with self._translated("list", "pods"):
            answer = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, _request_timeout=TIMEOUT
            )
            items = json.loads(answer.data)["items"]
        return sorted((_pod(item) for item in items), key=lambda pod: (pod.node, pod.name))

    def log(self, pod: str, *, since_seconds: int | None = None, tail_lines: int | None = None) -> list[str]:
        """Lines of a pod's log, each `TIMESTAMP TEXT`; none before its container has started.

        Raises:
            UserError: Kubernetes refuses.
            TryAgainError: Kubernetes cannot be reached.
        """
        from kubernetes.client import ApiException

        with self._translated("get", "pods/log"):
            try:
                answer = self._core.read_namespaced_pod_log(
                    pod,
                    self.namespace,
                    container=NODE,
                    timestamps=True,
                    _preload_content=False,
                    _request_timeout=TIMEOUT,
                    **({"since_seconds": since_seconds} if since_seconds else {}),
                    **({"tail_lines": tail_lines} if tail_lines else {}),
                )
            except ApiException as error:
                if error.status in (400, 404):  # the container waits to start, or the pod is gone
                    return []
                raise
        text: str = answer.data.decode("utf-8", errors="replace")
        return text.splitlines()

    @contextmanager
    def _translated(self, verb: str, resource: str) -> Iterator[None]:
        """Turn the exceptions of the client and of the network into ours; anything else is a bug and passes."""
        import urllib3
        from kubernetes.client import ApiException

        try:
            yield
        except ApiException as error:
            raise self._refused(error, verb, resource) from error
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError, ValueError) as error:
            raise TryAgainError(
                f"the API of Kubernetes does not answer: {getattr(error, 'reason', None) or error}",
                where=self.host,
                fix="run it again: a job that runs goes on and is met again",
            ) from error

    def _refused(self, error: Any, verb: str, resource: str) -> UserError | TryAgainError:
        said = _status(error).get("message") or str(error.reason or "")
        said = " ".join(str(said).split())[:600]
        place = f"namespace '{self.namespace}'"
        if error.status == 429 or error.status >= 500:
            return TryAgainError(
                f"the API of Kubernetes answers {error.status}: {said}", where=self.host, fix="run it again later"
            )
        if error.status == 401:
            return UserError(
                f"Kubernetes does not accept the token of this pod: {said}",
                where=place,
                fix="its service account must exist; run the task again in a new pod",
            )
        if error.status == 403 and "admission webhook" not in said:
            group = f" of group {GROUP}" if resource == PLURAL else ""
            account = re.search(r'User "([^"]+)"', said)
            who = f"'{account[1]}'" if account else "the account of this pod"
            return UserError(
                f"{who} may not {verb} {resource}: {said}",
                where=f"{place}, {ROLE}",
                fix=f"the rule needs verb '{verb}' for '{resource}'{group}; kubectl apply -k an overlay with "
                "components: [../../components/trainer], and submit with --service-account plmsae-runner",
            )
        if error.status == 404 and not _status(error):
            return UserError(
                "this cluster does not know TrainJobs",
                where=self.host,
                fix="install Kubeflow Trainer 2.3 or later, or set train_sae.num_nodes to 1",
            )
        return UserError(
            f"Kubernetes refuses to {verb} {resource}: {said}",
            where=place,
            fix="correct the placement (docs/how-to/multi-node.md); the training runtime must exist",
        )


def _status(error: Any) -> Mapping[str, Any]:
    """The Status object in the body of a refusal; empty if it is something else."""
    try:
        found = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pod(item: Mapping[str, Any]) -> Pod:
    metadata, status = item["metadata"], item.get("status", {})
    labels = metadata.get("labels", {})
    troubles = [
        f"{condition.get('reason', '')}: {condition['message']}"
        for condition in status.get("conditions", ())
        if condition["type"] in ("PodScheduled", "DisruptionTarget")
        and condition["status"] == ("False" if condition["type"] == "PodScheduled" else "True")
        and condition.get("message")
    ]
    for container in status.get("containerStatuses", ()):
        state = container.get("state", {})
        if "waiting" in state and state["waiting"].get("reason") not in _WAITING:
            troubles.append(f"{state['waiting'].get('reason')}: {state['waiting'].get('message', '')}")
        if state.get("terminated", {}).get("exitCode"):
            ended = state["terminated"]
            troubles.append(f"exit code {ended['exitCode']} ({ended.get('reason', 'Error')})")
    return Pod(
        name=metadata["name"],
        node=int(labels.get("batch.kubernetes.io/job-completion-index", 0)),
        phase=str(status.get("phase", "Unknown")),
        trouble=" ".join("; ".join(troubles).split())[:300],
    )
