"""The tasks of a pipeline on Argo: their places in the graph, their pods, and the one that says how a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plmsae.cluster.argo_graph import Graph
from plmsae.cluster.placement import Placement
from plmsae.cluster.tasks import REGISTRY, RETRIES, SECRETS, SETTINGS, SETTINGS_MAP, WEBHOOK_SECRET
from plmsae.errors import UserError
from plmsae.stages.catalog import stage as find_stage
from plmsae.stages.components import task_name
from plmsae.stages.execute import VALUES
from plmsae.stages.executor_input import knob_type
from plmsae.stages.spec import Retry, Stage

PARAMS_FOLDER, PARAMS_FILE = "/etc/plmsae", "params.yaml"
WORKSPACE = "/workspace"
EXIT = "report-outcome"
# What a second attempt cannot mend: a user's error, invalid data, a gate (`plmsae.errors`).
_FINAL = (2, 3, 4)


def task(stage: Stage, chosen: Graph) -> dict[str, Any]:
    """A stage in the graph: what it waits for, and the values that it gets from others."""
    name = task_name(stage)
    found: dict[str, Any] = {"name": name, "template": name}
    if before := [task_name(item) for item in chosen.before(stage)]:
        found["dependencies"] = before
    if given := chosen.given.get(stage.id, ()):
        found["arguments"] = {
            "parameters": [{"name": item.value, "value": _output(item.stage, item.value)} for item in given]
        }
    if condition := chosen.when.get(stage.id):
        found["when"] = f"{_output(condition.stage, condition.value)} {condition.equals}"
    return found


def template(
    stage: Stage, chosen: Graph, image: str, gpus: int, sizes: Mapping[str, tuple[int, int]], place: Placement
) -> dict[str, Any]:
    """The pod of a stage.

    Args:
        stage: The stage.
        chosen: The pipeline.
        image: Its image.
        gpus: GPUs of one process.
        sizes: Section -> nodes and processes of a training.
        place: Where tasks with a GPU run.

    Raises:
        UserError: A training on several nodes.
    """
    need = stage.resources
    num_nodes, num_processes = sizes.get(stage.section, (1, 1))
    if num_nodes > 1:
        raise UserError(
            f"'{stage.id}' on {num_nodes} nodes is a TrainJob, which needs the Kubeflow pipeline",
            where=f"{stage.section}.num_nodes",
            fix="set it to 1, or compile without --argo",
        )
    amounts = {"cpu": str(need.cpu * num_processes), "memory": f"{need.memory_gib * num_processes}Gi"}
    if gpus and place.gpu_type is not None:
        amounts[place.gpu_type] = str(gpus * num_processes)
    environment = _environment()
    if stage.notifies:
        environment += [*_secrets(WEBHOOK_SECRET), _RUN]
    if stage.side_effects:
        environment.append({"name": "PLMSAE_IMAGE_REF", "value": image})
    mounts = {"params": PARAMS_FOLDER, "workspace": WORKSPACE, "tmp": "/tmp", **({"shm": "/dev/shm"} if gpus else {})}
    found = {"name": task_name(stage), **_limits(need.retry, need.timeout_hours)}
    if given := chosen.given.get(stage.id, ()):
        found["inputs"] = {"parameters": [{"name": item.value} for item in given]}
    if values := chosen.values(stage):
        found["outputs"] = {
            "parameters": [
                {"name": name, "valueFrom": {"path": f"{WORKSPACE}/{stage.output / VALUES / name}"}} for name in values
            ]
        }
    if gpus:
        found |= {"nodeSelector": place.labels, "tolerations": place.taints}
    found["container"] = {
        "image": image,
        "command": ["plmsae", "run", stage.id],
        "args": [
            f"--params={PARAMS_FOLDER}/{PARAMS_FILE}",
            *chosen.options(stage),
            # The page of what registers nothing would be gone with the volume.
            *(["--track"] if stage.id == "report" else []),
            *(option for override in _overrides(stage, chosen) for option in ("--set", override)),
        ],
        "workingDir": WORKSPACE,
        "env": environment,
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": _LOCKED,
        "volumeMounts": [
            {"name": name, "mountPath": path, **({"readOnly": True} if name == "params" else {})}
            for name, path in mounts.items()
        ],
    }
    return found


def exit_template(chosen: Graph, image: str) -> dict[str, Any]:
    """The pod that says how a run ended, whatever happened; a failed re-evaluation it tells to the webhook as well."""
    amounts = {"cpu": "500m", "memory": "512Mi"}
    tells = any(stage.notifies for stage in chosen.stages.values())
    return {
        "name": EXIT,
        **_limits("io", 1),
        "container": {
            "image": image,
            "command": ["python", "-m", "plmsae.cluster.argo_outcome"],
            "args": [
                "--run={{workflow.name}}",
                "--status={{workflow.status}}",
                "--failures={{workflow.failures}}",
                *(["--reevaluated={{workflow.parameters.model}}"] if tells else []),
            ],
            **({"env": [*_environment(), *_secrets(WEBHOOK_SECRET), _RUN]} if tells else {}),
            "resources": {"requests": amounts, "limits": amounts},
            "securityContext": _LOCKED,
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        },
    }


# By this, the end of a run because of drift, which is told by itself, is told from a failure.
_RUN = {"name": "KFP_RUN_ID", "value": "{{workflow.name}}"}
_LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _limits(retry: Retry, timeout_hours: int) -> dict[str, Any]:
    """How long an attempt may take, and what is tried again."""
    attempts, first, longest = RETRIES[retry]
    found: dict[str, Any] = {"activeDeadlineSeconds": timeout_hours * 3600}
    if attempts:
        found["retryStrategy"] = {
            "limit": attempts,
            "retryPolicy": "Always",
            "expression": f"not (asInt(lastRetry.exitCode) in {list(_FINAL)})",
            # No `maxDuration`: it counts from the first attempt's start, and would end a long task's attempts.
            "backoff": {"duration": first, "factor": 2, "cap": longest},
        }
    return found


def _output(stage_id: str, value: str) -> str:
    return "{{tasks." + task_name(find_stage(stage_id)) + ".outputs.parameters." + value + "}}"


def _overrides(stage: Stage, chosen: Graph) -> list[str]:
    """What `--set` gets: the values of other stages, and the other knobs as in Kubeflow.

    What a stage inherits is what the file says.
    """
    given = chosen.given.get(stage.id, ())
    knobs = chosen.knobs(stage)
    return [
        *(_assigned(stage, item.parameter, "{{inputs.parameters." + item.value + "}}") for item in given),
        *(_assigned(stage, f"{stage.section}.{knob}", "{{workflow.parameters." + knob + "}}") for knob in knobs),
    ]


def _assigned(stage: Stage, parameter: str, value: str) -> str:
    """`--set` reads YAML. A text stays one; an empty one is null where the parameter may be, and a mapping is JSON."""
    name = parameter.removeprefix(stage.section).removeprefix(".")
    if not name:
        return f"{parameter}={value}"
    field = stage.params.model_fields[name]
    # A checksum may consist of digits.
    always = name in stage.source_files or name.endswith("_sha256")
    text = always or (knob_type(field.annotation) is str and isinstance(field.default, str))
    return f'{parameter}="{value}"' if text else f"{parameter}={value}"


def _environment() -> list[dict[str, Any]]:
    """Where registry and bucket are, and their keys: by name, and only the registry must be there."""
    found = [_from("configMapKeyRef", SETTINGS_MAP, REGISTRY, optional=False)]
    found += [_from("configMapKeyRef", SETTINGS_MAP, name) for name in SETTINGS]
    return found + _secrets(SECRETS)


def _secrets(names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    return [_from("secretKeyRef", holder, name) for holder, keys in names.items() for name in keys]


def _from(kind: str, holder: str, name: str, *, optional: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "valueFrom": {kind: {"name": holder, "key": name, **({"optional": True} if optional else {})}},
    }
