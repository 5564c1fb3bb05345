"""ConfigMaps, Secrets, claims and accounts that the pods of a package name, and whether the namespace has them.

The cluster is asked only where `KUBECONFIG` names a file. Of a Secret only its name is asked for, never its contents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from plmsae.cluster.finding import Finding
from plmsae.cluster.package import Package
from plmsae.cluster.tasks import REGISTRY, SETTINGS_MAP
from plmsae.errors import TryAgainError, UserError

KUBECONFIG = "KUBECONFIG"
_DEFAULT_NAMESPACE = "kubeflow"
_TIMEOUT = (5.0, 10.0)
_NAME_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_FIX = {
    "configmaps": "kubectl apply -n {namespace} -k k8s/base",
    "secrets": "kubectl create secret generic {name} -n {namespace} --from-env-file=FILE (docs/how-to/kubeflow.md)",
    "persistentvolumeclaims": "kubectl apply -n {namespace} -k k8s/components/state, or correct --state-claim",
    "serviceaccounts": "kubectl apply -n {namespace} -k k8s/base, or correct --service-account",
}


@dataclass(frozen=True, order=True)
class Named:
    """An object that pods name.

    Attributes:
        kind: Plural of its kind, as in the API.
        name: Its name.
        required: Whether pods cannot start without it.
        keys: Keys of it that they cannot start without.
    """

    kind: str
    name: str
    required: bool
    keys: tuple[str, ...] = ()


def named_objects(package: Package) -> list[Named]:
    """What the pods of a package name, each object once."""
    _, *platforms = [item for item in yaml.safe_load_all(package.text) if item is not None]
    executors: dict[str, Any] = {}
    for platform in platforms:
        executors |= platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found: dict[tuple[str, str], Named] = {}

    def add(kind: str, name: str, required: bool, keys: tuple[str, ...] = ()) -> None:
        known = found.get((kind, name), Named(kind, name, False))
        both = tuple(sorted({*known.keys, *keys}))
        found[kind, name] = Named(kind, name, known.required or required, both)

    for settings in executors.values():
        for item in settings.get("configMapAsEnv", []):
            keys = tuple(entry["configMapKey"] for entry in item["keyToEnv"])
            needed = not item.get("optional", False)
            name = item.get("configMapName") or item["configMapNameParameter"]["runtimeValue"]["constant"]
            add("configmaps", name, needed, keys if needed else ())
        for item in settings.get("secretAsEnv", []):
            name = item.get("secretName") or item["secretNameParameter"]["runtimeValue"]["constant"]
            add("secrets", name, not item.get("optional", False))
        for item in settings.get("imagePullSecret", []):
            add("secrets", item.get("secretName") or item["secretNameParameter"]["runtimeValue"]["constant"], True)
        for item in settings.get("pvcMount", []):
            name = item.get("constant") or item.get("pvcNameParameter", {}).get("runtimeValue", {}).get("constant")
            if name:
                add("persistentvolumeclaims", name, True)
    return sorted(found.values())


def settings_findings(package: Package, namespace: str | None, service_account: str | None) -> Iterator[Finding]:
    """Whether the namespace of a run has what its pods name.

    Args:
        package: The compiled pipeline.
        namespace: The namespace; None takes that of the kubeconfig's context, or else `kubeflow`.
        service_account: Service account of the pods, if one is named.

    Raises:
        UserError: The kubeconfig cannot be used.
        TryAgainError: The cluster does not answer.
    """
    objects = named_objects(package)
    if not any(item.name == SETTINGS_MAP and REGISTRY in item.keys for item in objects):
        yield Finding(
            "settings",
            "warning",
            f"no task takes {REGISTRY} from ConfigMap {SETTINGS_MAP}: what is registered is lost with its pod",
            f"pipeline '{package.name}'",
            "in a pipeline of your own: pipelines.settings.configure(task, STAGE)",
        )
    if service_account:
        objects.append(Named("serviceaccounts", service_account, True))
    if not os.environ.get(KUBECONFIG):
        listed = ", ".join(f"{item.kind} {item.name}{'' if item.required else ' (optional)'}" for item in objects)
        yield Finding("settings", "not asked", f"{listed}: the cluster is asked where {KUBECONFIG} is set")
        return
    cluster = _Cluster(namespace)
    for item in objects:
        what = f"{item.kind} {item.name}"
        where = f"namespace {cluster.namespace} of {cluster.host}"
        answer = cluster.get(item)
        if answer is None:
            yield Finding("settings", "not asked", f"{what}: this account may not look", where)
            continue
        missing = [key for key in item.keys if answer and key not in (answer.get("data") or {})]
        if answer and not missing:
            yield Finding("settings", "ok", f"{what} is there", where)
        elif not answer and not item.required:
            yield Finding("settings", "ok", f"{what} is not there; pods start without it", where)
        else:
            problem = f"{what} has no key {', '.join(missing)}" if missing else f"{what} is not there"
            fix = _FIX[item.kind].format(name=item.name, namespace=cluster.namespace)
            yield Finding("settings", "failed", problem, where, fix, UserError.exit_code)


class _Cluster:
    """Kubernetes, as the kubeconfig of `KUBECONFIG` names it."""

    def __init__(self, namespace: str | None) -> None:
        import urllib3
        from kubernetes import client, config

        file = os.environ[KUBECONFIG]
        configuration = client.Configuration()
        try:
            config.load_kube_config(config_file=file, client_configuration=configuration, persist_config=False)
            _, context = config.list_kube_config_contexts(config_file=file)
        except (config.ConfigException, OSError, yaml.YAMLError) as error:
            raise UserError(
                f"the kubeconfig cannot be used: {' '.join(str(error).split())[:200]}",
                where=f"environment variable {KUBECONFIG} ({file})",
                fix="correct it, or unset it: then the cluster is not asked",
            ) from error
        configuration.retries = urllib3.Retry(0)
        self.namespace = namespace or context.get("context", {}).get("namespace") or _DEFAULT_NAMESPACE
        self.host = str(configuration.host)
        self._api = client.ApiClient(configuration)

    def get(self, item: Named) -> dict[str, Any] | None:
        """The object, an empty mapping if there is none, or None if one may not look."""
        import urllib3
        from kubernetes.client import ApiException

        try:
            answer, *_ = self._api.call_api(
                f"/api/v1/namespaces/{self.namespace}/{item.kind}/{item.name}",
                "GET",
                header_params={"Accept": "application/json" if item.keys else _NAME_ONLY},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
        except ApiException as error:
            if error.status == 404:
                return {}
            if error.status in (401, 403):
                return None
            raise self._silent(f"status {error.status}") from error
        except urllib3.exceptions.HTTPError as error:
            raise self._silent(str(getattr(error, "reason", None) or error)) from error
        found: dict[str, Any] = json.loads(answer.data)
        return found

    def _silent(self, why: str) -> TryAgainError:
        return TryAgainError(
            f"Kubernetes cannot be asked for what the pods name: {why[:200]}",
            where=self.host,
            fix=f"check {KUBECONFIG} and the network, or leave it out: --skip settings",
        )
