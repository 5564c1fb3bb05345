"""Renders every generated file: what the stage catalogue says, and what KFP compiles.

`python -m plmsae.cluster.render` writes them into the working folder, `--check` says which of them differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from plmsae.cluster.argo import argo_manifests, argo_text, params_text
from plmsae.cluster.argo_graph import PIPELINES
from plmsae.cluster.argo_tasks import PARAMS_FILE
from plmsae.cluster.compile import compile_components, compile_pipeline, pipeline_names
from plmsae.errors import PlmsaeError
from plmsae.params import ParamsFile
from plmsae.stages import render
from plmsae.stages.components import EXAMPLE_IMAGE


def pipeline_targets(root: Path) -> dict[str, str]:
    """Relative path -> text of what is made of the pipelines: packages for Kubeflow, manifests, components."""
    return {
        **{
            f"pipelines/{name}.yaml": compile_pipeline(name, image=EXAMPLE_IMAGE, root=root)
            for name in pipeline_names(root)
        },
        **{f"pipelines/argo/{name}.yaml": _argo(name, root) for name in PIPELINES},
        "k8s/components/schedules/parameters.yaml": _parameters(root),
        **compile_components(image=EXAMPLE_IMAGE, root=root),
    }


def _argo(pipeline: str, root: Path) -> str:
    return argo_text(argo_manifests(pipeline, ParamsFile(root / "params.yaml"), image=EXAMPLE_IMAGE))


def _parameters(root: Path) -> str:
    """What the CronJob of `k8s/components/schedules` reads."""
    data = {PARAMS_FILE: params_text(ParamsFile(root / "params.yaml"))}
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plmsae-reevaluate"}, "data": data}
    return argo_text([settings], "`make render` from params.yaml")


def main() -> int:
    """Write the files, or with `--check` exit 1 and name those that differ."""
    code = render.main()  # first: pipelines import the components that it writes
    return max(code, render.apply(pipeline_targets(Path.cwd()), check="--check" in sys.argv[1:]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlmsaeError as error:
        sys.exit(f"error: {error}")
