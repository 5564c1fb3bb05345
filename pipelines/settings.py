"""What every task of a pipeline gets beside its inputs: resources, nodes, retries, limits, environment, caching."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp import dsl, kubernetes

from components.image import GPU_IMAGE, IMAGE, ON_GPU, PLACEMENT, RANKS, STATE_CLAIM
from plmsae.cluster.launch import NAMESPACE_VARIABLE, TRAIN_JOB_VARIABLE
from plmsae.cluster.placement import SECTION, Placement
from plmsae.cluster.ranks import num_gpus, on_gpu, ranks
from plmsae.cluster.sections import pipeline_arguments
from plmsae.cluster.tasks import REGISTRY, RETRIES, SECRETS, SETTINGS, SETTINGS_MAP, USER, WEBHOOK_SECRET
from plmsae.cluster.train_job import TrainJobSettings
from plmsae.errors import UserError
from plmsae.params import ParamsFile, canonical_json, validate
from plmsae.stages.catalog import stage as find_stage
from plmsae.stages.executor_input import STATE_VARIABLE
from plmsae.stages.spec import Stage

_PARAMS = Path(__file__).parents[1] / "params.yaml"
IMAGE_ANNOTATION = "plmsae.io/image"
STATE_FOLDER = "/state"
_PLACEMENT = validate(Placement, json.loads(PLACEMENT), section=SECTION)
MAX_PARALLEL = _PLACEMENT.max_parallel
_RANKS = {**ranks(ParamsFile(_PARAMS)), **json.loads(RANKS)}
_ON_GPU = frozenset(json.loads(ON_GPU) if ON_GPU else on_gpu(ParamsFile(_PARAMS)))


def configure(task: dsl.PipelineTask, stage_id: str) -> dsl.PipelineTask:
    """Give a task what its stage declares.

    Args:
        task: The task of a component.
        stage_id: Id of its stage in the catalogue.
    """
    stage = find_stage(stage_id)
    need = stage.resources
    num_nodes, num_processes = _RANKS.get(stage.section, (1, 1))
    # A task that starts a TrainJob waits for it, and needs no more than the rest of its work does.
    share = num_processes if num_nodes == 1 else 1
    task.set_cpu_request(str(need.cpu * share)).set_cpu_limit(str(need.cpu * share))
    task.set_memory_request(f"{need.memory_gib * share}Gi").set_memory_limit(f"{need.memory_gib * share}Gi")
    if num_nodes > 1:
        _launching(task, stage, num_nodes, num_processes)
    elif gpus := num_gpus(stage, _ON_GPU):
        # The component of a stage that takes a GPU by its parameter was made for the other image.
        task.set_container_image(GPU_IMAGE)
        _placed(task, gpus * share)
    if STATE_CLAIM and stage.resumable:
        kubernetes.mount_pvc(task, pvc_name=STATE_CLAIM, mount_path=STATE_FOLDER)
        task.set_env_variable(STATE_VARIABLE, STATE_FOLDER)
    if stage.side_effects:
        _identified(task)
    if stage.notifies:
        _secrets(task, WEBHOOK_SECRET)
    # Kubeflow repeats a task whatever its exit code: few and soon, since a wrong parameter is repeated as well.
    number, first, longest = RETRIES[need.retry]
    if number:
        task.set_retry(number, backoff_duration=first, backoff_factor=2.0, backoff_max_duration=longest)
    # A reference by tag may point at other code tomorrow, and the cache would not notice.
    by_digest = "@sha256:" in IMAGE and "@sha256:" in GPU_IMAGE
    cached = by_digest and not (stage.side_effects or stage.looks_up)
    return _in_namespace(task.set_caching_options(cached), need.timeout_hours)


def _placed(task: dsl.PipelineTask, num_gpus: int) -> None:
    """Send a task to the nodes of the placement, with so many GPUs."""
    if _PLACEMENT.gpu_type is not None:
        task.set_accelerator_type(_PLACEMENT.gpu_type).set_accelerator_limit(num_gpus)
    for key, value in _PLACEMENT.labels.items():
        kubernetes.add_node_selector(task, key, value)
    for item in _PLACEMENT.taints:
        kubernetes.add_toleration(task, **item)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=_PLACEMENT.shared_memory)
    if _PLACEMENT.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, _PLACEMENT.image_pull_secrets)


def _launching(task: dsl.PipelineTask, stage: Stage, num_nodes: int, num_processes: int) -> None:
    """Tell a task what the TrainJob is made of that it starts."""
    if not STATE_CLAIM:
        raise UserError(
            f"'{stage.id}' on {num_nodes} nodes needs a volume that all of them see",
            where=f"{stage.section}.num_nodes",
            fix="pass --state-claim, e.g. plmsae-state (k8s/components/state), or set it to 1",
        )
    need = stage.resources
    settings = TrainJobSettings(
        num_nodes=num_nodes,
        num_processes=num_processes,
        image=GPU_IMAGE,
        state_claim=STATE_CLAIM,
        state_folder=STATE_FOLDER,
        cpu=_PLACEMENT.cpu or need.cpu * num_processes,
        memory_gib=_PLACEMENT.memory_gib or need.memory_gib * num_processes,
        timeout_seconds=need.timeout_hours * 3600,
        placement=_PLACEMENT,
    )
    task.set_env_variable(TRAIN_JOB_VARIABLE, canonical_json(settings))
    kubernetes.use_field_path_as_env(task, NAMESPACE_VARIABLE, "metadata.namespace")


def configure_exit(task: dsl.PipelineTask, *, tells: bool = False) -> dsl.PipelineTask:
    """Give the exit task the little that it needs.

    Args:
        task: The task.
        tells: Whether it tells the webhook of a failure; it looks into the registry then.
    """
    memory = "1Gi" if tells else "512Mi"
    task.set_cpu_request("100m").set_cpu_limit("1").set_memory_request("256Mi").set_memory_limit(memory)
    if tells:
        _identified(task)
        _secrets(task, WEBHOOK_SECRET)
    return _in_namespace(task.set_caching_options(False), 1)


def defaults(*stage_ids: str) -> dict[str, Any]:
    """Pipeline parameter -> its default: what `params.yaml` says at compile time.

    Args:
        stage_ids: Stages of the pipeline, by default those of `train`.
    """
    return pipeline_arguments(ParamsFile(_PARAMS), stage_ids or None)


def _identified(task: dsl.PipelineTask) -> None:
    """Tell the task its run and its image, which stay on what it registers; a pod cannot see its own image."""
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
    kubernetes.add_pod_annotation(task, IMAGE_ANNOTATION, IMAGE)
    kubernetes.use_field_path_as_env(task, "PLMSAE_IMAGE_REF", f"metadata.annotations['{IMAGE_ANNOTATION}']")


def _in_namespace(task: dsl.PipelineTask, timeout_hours: int) -> dsl.PipelineTask:
    kubernetes.set_timeout(task, timeout_hours * 3600)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")
    # Without a registry a task would register into its own container and lose it, so this one is not optional.
    kubernetes.use_config_map_as_env(task, SETTINGS_MAP, {REGISTRY: REGISTRY})
    kubernetes.use_config_map_as_env(task, SETTINGS_MAP, {name: name for name in SETTINGS}, optional=True)
    _secrets(task, SECRETS)
    return task


def _secrets(task: dsl.PipelineTask, secrets: Mapping[str, Sequence[str]]) -> None:
    for secret, names in secrets.items():
        kubernetes.use_secret_as_env(task, secret, {name: name for name in names}, optional=True)
