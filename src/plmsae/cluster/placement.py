"""Where tasks with a GPU run: kind of GPU, nodes, tolerations, shared memory, spot pools. Typed, from one YAML file.

Nothing in here changes a number that a stage computes, so it is no part of `params.yaml` and of no cache key; how many
processes share a training is (`train_sae.num_nodes`, `train_sae.num_processes`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from plmsae.errors import UserError
from plmsae.params import Params, ParamsFile, validate

SECTION = "placement"
QUANTITY = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)$"
_LABEL_KEY = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?"
_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
# Cloud -> (label of its spot nodes, whether they are tainted with the same key and value). GKE, AKS: taint and label,
# by their documentation; EKS managed groups and Karpenter: a label only.
_SPOT: dict[str, tuple[str, str, bool]] = {
    "gke": ("cloud.google.com/gke-spot", "true", True),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot", True),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT", False),
    "karpenter": ("karpenter.sh/capacity-type", "spot", False),
}


class Toleration(Params):
    """A toleration of Kubernetes."""

    key: str = Field(pattern=f"^{_LABEL_KEY}$", description="Key of the taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Exists", description="Whether the value counts.")
    value: str | None = Field(default=None, description="Value of the taint, with Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect that is tolerated; null for every one."
    )

    def manifest(self) -> dict[str, str]:
        """The object that Kubernetes takes."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Placement(Params):
    """Where tasks with a GPU, and the nodes of a TrainJob, run."""

    gpu_type: str | None = Field(
        default="nvidia.com/gpu",
        pattern=f"^{_LABEL_KEY}$",
        description="Resource name of the GPU; null trains on CPUs.",
    )
    node_selector: dict[str, str] = Field(
        default={"plmsae.io/pool": "gpu"}, description="Labels that a node must have."
    )
    tolerations: list[Toleration] = Field(
        default=[Toleration(key="nvidia.com/gpu", effect="NoSchedule")], description="Taints that do not matter."
    )
    spot: Literal["gke", "aks", "eks", "karpenter"] | None = Field(
        default=None,
        description="Take the spot nodes of this cloud; null for the nodes that are named here and no others.",
    )
    shared_memory: str = Field(
        default="2Gi", pattern=QUANTITY, description="Size of /dev/shm, which NCCL and gloo use."
    )
    cpu: int | None = Field(
        default=None, ge=1, description="CPUs of a TrainJob's node; null takes the stage's per process."
    )
    memory_gib: int | None = Field(
        default=None, ge=1, description="Its memory in GiB; null takes the stage's per process."
    )
    runtime: str = Field(default="plmsae-torch", pattern=_NAME, description="Training runtime of the TrainJob.")
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = Field(
        default="TrainingRuntime", description="Whether the runtime belongs to the namespace or to the cluster."
    )
    service_account: str | None = Field(
        default="plmsae-worker",
        pattern=_NAME,
        description="Account of a TrainJob's pods; null for the default.",
    )
    max_parallel: int = Field(default=16, ge=1, le=1000, description="Pairs of the pipeline `sweep` that run at once.")
    image_pull_secrets: list[str] = Field(default=[], description="Secrets of a registry that asks who pulls.")

    @field_validator("node_selector")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, label in value.items():
            if not re.fullmatch(_LABEL_KEY, key) or not re.fullmatch(
                r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", label
            ):
                raise ValueError(f"'{key}: {label}' is not a label of Kubernetes")
        return value

    @property
    def labels(self) -> dict[str, str]:
        """Labels that a node must have, those of its spot nodes included."""
        if self.spot is None:
            return dict(self.node_selector)
        key, value, _ = _SPOT[self.spot]
        return {**self.node_selector, key: value}

    @property
    def taints(self) -> list[dict[str, str]]:
        """Tolerations as Kubernetes takes them, those of spot nodes included."""
        found = [item.manifest() for item in self.tolerations]
        if self.spot is not None:
            key, value, tainted = _SPOT[self.spot]
            if tainted:
                found.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
        return found


def read_placement(path: Path | None) -> Placement:
    """The placement of a YAML file; without one, the defaults.

    Raises:
        UserError: The file is not there or holds something else; names the field and its line.
    """
    if path is None:
        return Placement()
    if not path.is_file():
        raise UserError(
            f"placement file '{path}' does not exist", where="--placement", fix="see docs/how-to/multi-node.md"
        )
    file = ParamsFile(path)
    return validate(
        Placement, file.data, section=SECTION, where=lambda field: file.where(field.removeprefix("placement."))
    )
