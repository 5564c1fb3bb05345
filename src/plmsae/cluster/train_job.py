"""The TrainJob of Kubeflow Trainer that runs the processes of a training on several nodes.

Group and version trainer.kubeflow.org/v1alpha1 as of Trainer 2.3: the command stands in `spec.trainer`, everything else
about the pods in `spec.runtimePatches`, which took the place of `podSpecOverrides`. The operator gives each node its
number and the address of the first one (PET_NODE_RANK, PET_MASTER_ADDR, ...), which torchrun reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from plmsae.cluster.placement import Placement
from plmsae.cluster.tasks import SECRETS, SETTINGS, SETTINGS_MAP, USER
from plmsae.params import Params

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
# Whose patch it is: the admission webhook asks for the form DOMAIN/PATH.
MANAGER = "plmsae.io/train-sae"
KEY_ANNOTATION = "plmsae.io/key"
# Names of the replicated job and of its container, in every runtime of Trainer for torch.
NODE = "node"
# A rank that is told to stop writes a checkpoint first.
GRACE_SECONDS = 60
DATA_SECRET = "plmsae-s3"


class TrainJobSettings(Params):
    """What a TrainJob is made of beside its command."""

    num_nodes: int = Field(ge=1, description="Nodes, one pod each.")
    num_processes: int = Field(ge=1, description="Processes of each, with one GPU each if there are GPUs.")
    image: str = Field(min_length=1, description="Image of the pods; the one that the task runs in.")
    state_claim: str = Field(
        min_length=1, description="Volume claim, ReadWriteMany, for the job's description and its checkpoints."
    )
    state_folder: str = Field(
        pattern="^/", description="Where the task has it, and so the pods: paths mean the same on both sides."
    )
    cpu: int = Field(ge=1, description="CPU cores of a node.")
    memory_gib: int = Field(ge=1, description="Memory of a node in GiB.")
    timeout_seconds: int = Field(ge=1, description="Time from its start after which the cluster ends the job.")
    placement: Placement = Field(default=Placement(), description="GPUs, nodes, tolerations, runtime, account.")


def job_name(key: str) -> str:
    """Name of the job of a checkpoint key: the same work has the same name, so a repeated task meets its own job.

    Args:
        key: Hex text, the hash of resolved parameters, inputs and code.
    """
    return f"plmsae-{key[:24]}"


def torchrun(module: str, arguments: Sequence[str], settings: TrainJobSettings) -> list[str]:
    """The command of every node; `python -m torch.distributed.run` is torchrun."""
    return [
        "python",
        "-m",
        "torch.distributed.run",
        f"--nnodes={settings.num_nodes}",
        f"--nproc-per-node={settings.num_processes}",
        "-m",
        module,
        *arguments,
    ]


def train_job(key: str, namespace: str, command: Sequence[str], settings: TrainJobSettings) -> dict[str, Any]:
    """The object that the Kubernetes API takes.

    Args:
        key: The checkpoint key; gives the name.
        namespace: Namespace of the task, and so of the job.
        command: What every node runs, from `torchrun`.
        settings: The rest.
    """
    placement = settings.placement
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(key),
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": "plmsae-train", "app.kubernetes.io/part-of": "plmsae"},
            "annotations": {KEY_ANNOTATION: key},
        },
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": placement.runtime_kind, "name": placement.runtime},
            "activeDeadlineSeconds": settings.timeout_seconds,
            "trainer": {
                "image": settings.image,
                "command": list(command[:1]),
                "args": list(command[1:]),
                "env": _environment(),
                "numNodes": settings.num_nodes,
                "numProcPerNode": settings.num_processes,
                "resourcesPerNode": _resources(settings),
            },
            "runtimePatches": [
                {
                    "manager": MANAGER,
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {
                                "replicatedJobs": [
                                    {"name": NODE, "template": {"spec": {"template": {"spec": _pod(settings)}}}}
                                ]
                            }
                        }
                    },
                }
            ],
        },
    }


def _environment() -> list[dict[str, Any]]:
    """Where the bucket of the activations is, and its keys, as the tasks of a pipeline get them."""
    sources = [("configMapKeyRef", SETTINGS_MAP, name) for name in SETTINGS]
    sources += [("secretKeyRef", DATA_SECRET, name) for name in SECRETS[DATA_SECRET]]
    return [
        {"name": name, "valueFrom": {kind: {"name": holder, "key": name, "optional": True}}}
        for kind, holder, name in sources
    ]


def _resources(settings: TrainJobSettings) -> dict[str, Any]:
    amounts = {"cpu": str(settings.cpu), "memory": f"{settings.memory_gib}Gi"}
    if settings.placement.gpu_type is not None:
        amounts[settings.placement.gpu_type] = str(settings.num_processes)
    return {"requests": amounts, "limits": dict(amounts)}


def _pod(settings: TrainJobSettings) -> dict[str, Any]:
    """What is changed of the runtime's pods; holds for a bare runtime such as torch-distributed as well."""
    placement = settings.placement
    volumes: dict[str, tuple[str, dict[str, Any]]] = {
        "state": (settings.state_folder, {"persistentVolumeClaim": {"claimName": settings.state_claim}}),
        "shm": ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": placement.shared_memory}}),
        "tmp": ("/tmp", {"emptyDir": {"sizeLimit": "20Gi"}}),
    }
    pod: dict[str, Any] = {
        "nodeSelector": placement.labels,
        "tolerations": placement.taints,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": name, **source} for name, (_, source) in volumes.items()],
        "containers": [
            {
                "name": NODE,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
            }
        ],
    }
    if placement.service_account is not None:
        pod["serviceAccountName"] = placement.service_account
    if placement.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in placement.image_pull_secrets]
    return pod
