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
from plmsae.cluster.compile import check_image
from plmsae.cluster.placement import Placement
from plmsae.cluster.ranks import ranks
from plmsae.cluster.sections import pipeline_arguments
from plmsae.cluster.tasks import REGISTRY, RETRIES, SECRETS, SETTINGS, SETTINGS_MAP, USER
from plmsae.errors import UserError, did_you_mean
from plmsae.params import ParamsFile
from plmsae.stages.catalog import sections, stages_of
from plmsae.stages.components import task_name
from plmsae.stages.executor_input import knob_type
from plmsae.stages.render import after_sweep, run_options
from plmsae.stages.spec import Pipeline, Stage

PIPELINES: tuple[Pipeline, ...] = ("train", "sweep")
GROUP = "argoproj.io/v1alpha1"
ACCOUNT = "plmsae-runner"
PARAMS_FOLDER, PARAMS_FILE = "/etc/plmsae", "params.yaml"
WORKSPACE = "/workspace"
# What a second attempt cannot mend: a user's error, invalid data, a gate (`plmsae.errors`).
_FINAL = (2, 3, 4)
_WEEK = 7 * 24 * 3600
_CRON = re.compile(r"(\S+ ){4}\S+|@(hourly|daily|weekly|monthly|yearly)")
AccessMode = Literal["ReadWriteOnce", "ReadWriteMany"]


def argo_stages(pipeline: str) -> dict[str, Stage]:
    """Stage id -> stage, of a pipeline that starts from proteins.

    Raises:
        UserError: There is none of that name.
    """
    train = stages_of("train")
    if pipeline == "train":
        return train
    if pipeline == "sweep":
        before = [stage for stage in train.values() if stage.name in ("ingest", "validate", "extract_activations")]
        return {stage.id: stage for stage in (*before, *stages_of("sweep").values(), *after_sweep())}
    raise UserError(f"no Argo manifest of '{pipeline}'", fix=did_you_mean(pipeline, PIPELINES))


def argo_manifests(
    pipeline: Pipeline,
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
        pipeline: `train` or `sweep`.
        file: The parameters.
        image: Image of the tasks, by digest.
        gpu_image: Image of the tasks that ask for a GPU, by default the same.
        allow_tag: Accept images by tag.
        placement: Where tasks with a GPU run, by default `Placement()`.
        storage: Size of the volume of a run.
        access_mode: `ReadWriteOnce` where one node runs everything.
        schedule: Five fields of cron, in UTC.

    Raises:
        UserError: A wrong parameter, image or schedule; a training on several nodes; a schedule without a file that is
            named by its checksum.
    """
    chosen = argo_stages(pipeline)
    file.check_sections(sections())
    for reference in (image, gpu_image or image):
        check_image(reference, allow_tag=allow_tag)
    sizes = ranks(file)
    name = f"plmsae-{pipeline}"
    text = yaml.safe_dump(file.data, sort_keys=False, width=120)
    params = f"{name}-params-{sha256_bytes(text.encode())[:8]}"
    arguments = _arguments(file, chosen)
    place = placement or Placement()
    spec = {
        "entrypoint": "main",
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
            {"name": "main", "dag": {"tasks": [_task(stage, chosen) for stage in chosen.values()]}},
            *(
                _template(stage, pipeline, gpu_image or image if stage.resources.gpu else image, sizes, place)
                for stage in chosen.values()
            ),
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


def argo_text(manifests: list[dict[str, Any]]) -> str:
    """The objects as one YAML file."""
    # Through JSON: objects that are equal would become YAML's references otherwise.
    plain = json.loads(json.dumps(manifests))
    texts = [yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=120) for item in plain]
    return "# GENERATED by `plmsae compile --argo`; do not edit.\n" + "---\n".join(texts)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _arguments(file: ParamsFile, chosen: Mapping[str, Stage]) -> list[dict[str, str]]:
    """The knobs; a raw file that no cluster can read has no default, so a run without one is refused."""
    knobs = {name for stage in chosen.values() for name in stage.knobs}
    values = {name: value for name, value in pipeline_arguments(file, list(chosen)).items() if name in knobs}
    if not (is_remote(values["source"]) and values["source_sha256"]):
        values["source"] = values["source_sha256"] = None
    return [
        {"name": name}
        if value is None
        else {"name": name, "value": value if isinstance(value, str) else json.dumps(value)}
        for name, value in values.items()
    ]


def _task(stage: Stage, chosen: Mapping[str, Stage]) -> dict[str, Any]:
    """A node of the graph; in a sweep the SAE is the best of the sweep."""
    sources = [port.source if port.source in chosen else "sweep" for port in stage.inputs]
    before = [task_name(chosen[source]) for source in dict.fromkeys(sources)]
    task = {"name": task_name(stage), "template": task_name(stage)}
    return {**task, "dependencies": before} if before else task


def _template(
    stage: Stage,
    pipeline: Pipeline,
    image: str,
    sizes: Mapping[str, tuple[int, int]],
    place: Placement,
) -> dict[str, Any]:
    need = stage.resources
    num_nodes, num_processes = sizes.get(stage.section, (1, 1))
    if num_nodes > 1:
        raise UserError(
            f"'{stage.id}' on {num_nodes} nodes is a TrainJob, which needs the Kubeflow pipeline",
            where=f"{stage.section}.num_nodes",
            fix="set it to 1, or compile without --argo",
        )
    amounts = {"cpu": str(need.cpu * num_processes), "memory": f"{need.memory_gib * num_processes}Gi"}
    on_gpu = need.gpu > 0
    if on_gpu and place.gpu_type is not None:
        amounts[place.gpu_type] = str(need.gpu * num_processes)
    environment = _environment()
    if stage.side_effects:
        environment.append({"name": "PLMSAE_IMAGE_REF", "value": image})
    mounts = {"params": PARAMS_FOLDER, "workspace": WORKSPACE, "tmp": "/tmp", **({"shm": "/dev/shm"} if on_gpu else {})}
    attempts, first, longest = RETRIES[need.retry]
    template: dict[str, Any] = {"name": task_name(stage), "activeDeadlineSeconds": need.timeout_hours * 3600}
    if attempts:
        template["retryStrategy"] = {
            "limit": attempts,
            "retryPolicy": "Always",
            "expression": f"not (asInt(lastRetry.exitCode) in {list(_FINAL)})",
            # No `maxDuration`: it counts from the first attempt's start, and would end a long task's attempts.
            "backoff": {"duration": first, "factor": 2, "cap": longest},
        }
    if on_gpu:
        template |= {"nodeSelector": place.labels, "tolerations": place.taints}
    template["container"] = {
        "image": image,
        "command": ["plmsae", "run", stage.id],
        "args": [
            f"--params={PARAMS_FOLDER}/{PARAMS_FILE}",
            *run_options(stage, pipeline),
            *(option for override in _overrides(stage) for option in ("--set", override)),
        ],
        "workingDir": WORKSPACE,
        "env": environment,
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": name, "mountPath": path, **({"readOnly": True} if name == "params" else {})}
            for name, path in mounts.items()
        ],
    }
    return template


def _overrides(stage: Stage) -> list[str]:
    """SECTION.KNOB=VALUE of the stage's own knobs, as in Kubeflow: what it inherits is what the file says."""
    return [
        f"{stage.section}.{knob}={_quoted(stage, knob, '{{workflow.parameters.' + knob + '}}')}" for knob in stage.knobs
    ]


def _quoted(stage: Stage, knob: str, value: str) -> str:
    """`--set` reads YAML. A text stays one; an empty one is null where the parameter may be, and a mapping is JSON."""
    field = stage.params.model_fields[knob]
    # A checksum may consist of digits.
    always = {item for name in stage.source_files for item in (name, f"{name}_sha256")}
    text = knob in always or (knob_type(field.annotation) is str and isinstance(field.default, str))
    return f'"{value}"' if text else value


def _environment() -> list[dict[str, Any]]:
    """Where registry and bucket are, and their keys: by name, and only the registry must be there."""
    found = [_from("configMapKeyRef", SETTINGS_MAP, REGISTRY, optional=False)]
    found += [_from("configMapKeyRef", SETTINGS_MAP, name) for name in SETTINGS]
    return found + [_from("secretKeyRef", holder, name) for holder, names in SECRETS.items() for name in names]


def _from(kind: str, holder: str, name: str, *, optional: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "valueFrom": {kind: {"name": holder, "key": name, **({"optional": True} if optional else {})}},
    }


def _by_the_clock(
    name: str, schedule: str, arguments: list[dict[str, str]], labels: Mapping[str, str]
) -> dict[str, Any]:
    if not _CRON.fullmatch(schedule):
        raise UserError(f"'{schedule}' is no schedule", where="--schedule", fix='five fields of cron, e.g. "0 2 * * 0"')
    if missing := [item["name"] for item in arguments if "value" not in item]:
        raise UserError(
            f"a schedule asks nobody for {' and '.join(missing)}",
            where="--schedule",
            fix="--set ingest.source=s3://BUCKET/KEY --set ingest.source_sha256=HEX",
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
            "workflowSpec": {"workflowTemplateRef": {"name": name}},
        },
    }
