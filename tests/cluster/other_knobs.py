"""A pipeline as another version of this repository might have compiled it.

KFP reads the annotations, so they are not postponed here.
"""

from kfp import dsl


@dsl.container_component
def _train(params: str, k: str, source: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="ghcr.io/lab/plmsae:1", command=["plmsae"], args=[params, k, source])


@dsl.pipeline(name="plmsae-train")
def pipeline(train_sae_params: str, k: str, budget: int, source: str = "") -> None:
    """Takes `k` as a text, and a budget that this version does not know."""
    del budget
    _train(params=train_sae_params, k=k, source=source)
