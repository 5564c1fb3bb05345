"""The pipelines as plain manifests of Argo Workflows 3.6 or later, for clusters without Kubeflow.

Every stage is a pod of our image that runs `plmsae run STAGE` in one volume, the working folder of the run: what
`dvc repro` does on a laptop, in the order that the stages' ports give. The parameters are a ConfigMap named by its
content; the knobs are arguments of the workflow. Exit codes count: only what may succeed a second time is repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.sources import is_remote
from plmsae.cluster.argo_graph import Graph, graph
from plmsae.cluster.argo_tasks import EXIT, PARAMS_FILE, exit_template, task, template
from plmsae.cluster.compile import check_image
from plmsae.cluster.placement import Placement
from plmsae.cluster.ranks import num_gpus, on_gpu, ranks
from plmsae.cluster.sections import pipeline_arguments
from plmsae.cluster.tasks import USER
from plmsae.errors import UserError
from plmsae.params import ParamsFile
from plmsae.stages.catalog import sections

GROUP = "argoproj.io/v1alpha1"
ACCOUNT = "plmsae-runner"
_DAY = 24 * 3600
_WEEK = 7 * _DAY
_CRON = re.compile(r"(\S+ ){4}\S+|@(hourly|daily|weekly|monthly|yearly)")
AccessMode = Literal["ReadWriteOnce", "ReadWriteMany"]


def argo_manifests(
    pipeline: str,
    file: ParamsFile,
    *,
    image: str,
    gpu_image: str | None = None,
    allow_tag: bool = False,
    placement: Placement | None = None,
    storage: str = "100Gi",
    access_mode: AccessMode = "ReadWriteMany",
    schedule: str | None = None,
) -> list[dict[str, Any]]:
    """The objects of a pipeline: its parameters, its template, and with a schedule what starts it by the clock.

    Args:
        pipeline: One of `plmsae.cluster.argo_graph.PIPELINES`.
        file: The parameters.
        image: Image of the tasks, by digest.
        gpu_image: Image of the tasks that ask for a GPU, by default the same.
        allow_tag: Accept images by tag.
        placement: Where tasks with a GPU run, by default `Placement()`.
        storage: Size of the volume of a run.
        access_mode: `ReadWriteOnce` where one node runs everything.
        schedule: Five fields of cron, in UTC.

    Raises:
        UserError: An unknown pipeline; a wrong parameter, image or schedule; a training on several nodes; a schedule
            without a file that is named by its checksum.
    """
    chosen = graph(pipeline)
    file.check_sections(sections())
    for reference in (image, gpu_image or image):
        check_image(reference, allow_tag=allow_tag)
    sizes = ranks(file)
    asked = on_gpu(file)
    gpus = {key: num_gpus(stage, asked) for key, stage in chosen.stages.items()}
    name = f"plmsae-{pipeline}"
    text = params_text(file)
    params = f"{name}-params-{sha256_bytes(text.encode())[:8]}"
    arguments = _arguments(file, chosen)
    place = placement or Placement()
    spec = {
        "entrypoint": "main",
        "onExit": EXIT,
        "serviceAccountName": ACCOUNT,
        "arguments": {"parameters": arguments},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "params", "configMap": {"name": params}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": place.shared_memory}},
        ],
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "workspace"},
                "spec": {"accessModes": [access_mode], "resources": {"requests": {"storage": storage}}},
            }
        ],
        # What is worth keeping is in the registry then; after a failure `argo retry` goes on in the same volume.
        "volumeClaimGC": {"strategy": "OnWorkflowSuccess"},
        "ttlStrategy": {"secondsAfterSuccess": _WEEK},
        **(
            {"imagePullSecrets": [{"name": item} for item in place.image_pull_secrets]}
            if place.image_pull_secrets
            else {}
        ),
        "templates": [
            {"name": "main", "dag": {"tasks": [task(stage, chosen) for stage in chosen.stages.values()]}},
            *(
                template(stage, chosen, gpu_image or image if gpus[key] else image, gpus[key], sizes, place)
                for key, stage in chosen.stages.items()
            ),
            exit_template(chosen, image),
        ],
    }
    labels = {"app.kubernetes.io/part-of": "plmsae"}
    found: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": params, "labels": labels},
            "immutable": True,
            "data": {PARAMS_FILE: text},
        },
        {
            "apiVersion": GROUP,
            "kind": "WorkflowTemplate",
            "metadata": {"name": name, "labels": labels},
            "spec": spec,
        },
    ]
    if schedule is not None:
        found.append(_by_the_clock(name, schedule, arguments, labels))
    return found


def params_text(file: ParamsFile) -> str:
    """The parameters of a file, as a pod finds them in a ConfigMap."""
    text: str = yaml.safe_dump(file.data, sort_keys=False, width=120)
    return text


def argo_text(manifests: list[dict[str, Any]], made_by: str = "`plmsae compile --argo`") -> str:
    """The objects as one YAML file."""
    # Through JSON: objects that are equal would become YAML's references otherwise.
    plain = json.loads(json.dumps(manifests))
    texts = [yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=120) for item in plain]
    return f"# GENERATED by {made_by}; do not edit.\n" + "---\n".join(texts)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _arguments(file: ParamsFile, chosen: Graph) -> list[dict[str, str]]:
    """The knobs; a raw file that no cluster can read has no default, so a run without one is refused."""
    knobs = {stage_id: chosen.knobs(stage) for stage_id, stage in chosen.stages.items()}
    named = {name for names in knobs.values() for name in names}
    # A stage that is given its knobs need not agree with the others.
    found = pipeline_arguments(file, [name for name, stage in chosen.stages.items() if knobs[name] or not stage.knobs])
    values = {name: value for name, value in found.items() if name in named}
    if "source_sha256" in values:
        if not (is_remote(values["source"]) and values["source_sha256"]):
            values["source"] = values["source_sha256"] = None
    elif not is_remote(values["source"]):
        values["source"] = None  # the newest data, which nothing pins
    return [
        {"name": name}
        if value is None
        else {"name": name, "value": value if isinstance(value, str) else json.dumps(value)}
        for name, value in values.items()
    ]


def _by_the_clock(
    name: str, schedule: str, arguments: list[dict[str, str]], labels: Mapping[str, str]
) -> dict[str, Any]:
    if not _CRON.fullmatch(schedule):
        raise UserError(f"'{schedule}' is no schedule", where="--schedule", fix='five fields of cron, e.g. "0 2 * * 0"')
    if missing := [item["name"] for item in arguments if "value" not in item]:
        raise UserError(
            f"a schedule asks nobody for {' and '.join(missing)}",
            where="--schedule",
            fix="--set ingest.source=s3://BUCKET/KEY --set ingest.source_sha256=HEX"
            if len(missing) > 1
            else "--set reevaluate.source=s3://BUCKET/KEY",
        )
    return {
        "apiVersion": GROUP,
        "kind": "CronWorkflow",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "schedules": [schedule],
            "timezone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            # A run that waits for room for ever would keep all others from starting.
            "workflowSpec": {"workflowTemplateRef": {"name": name}, "activeDeadlineSeconds": _WEEK - _DAY},
        },
    }
