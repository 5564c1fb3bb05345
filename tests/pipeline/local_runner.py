"""Runs a pipeline with `kfp.local`, in a process of its own: `python -m tests.pipeline.local_runner JOB.json`.

The one place that changes KFP: its subprocess runner takes lightweight Python components only, although a container
component is nothing but a command, so the two checks that refuse one are turned off; and its conditions find the output
of a task only if that has no name, although Kubeflow goes by the name. The job file holds `pipeline`,
`arguments`, `pipeline_root` and `caching`.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import io, subprocess_task_handler
from kfp.local.orchestrator import enhanced_dag_orchestrator
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec


class _Strict(logging.Handler):
    """KFP goes on with a warning where it could not evaluate a condition; a test must not."""

    def emit(self, record: logging.LogRecord) -> None:
        if "Could not resolve" in record.getMessage():
            raise RuntimeError(record.getMessage())


def accept_container_components() -> None:
    """Let KFP's subprocess runner run the command of a container component."""
    handler = subprocess_task_handler.SubprocessTaskHandler
    handler.validate_not_container_component = lambda self, command: None
    handler.validate_image = lambda self, image: None


def accept_conditions_on_named_outputs() -> None:
    """Let a condition read `pipelinechannel--TASK-OUTPUT`, as Kubeflow does."""
    evaluator = enhanced_dag_orchestrator.ConditionEvaluator
    resolve = evaluator._resolve_pipeline_channel

    def found(channel: str, store: io.IOStore) -> Any:
        outputs = {
            f"pipelinechannel--{task}-{name}": value
            for task, values in store._task_output_data.items()
            for name, value in values.items()
        }
        return outputs[channel] if channel in outputs else resolve(channel, store)

    evaluator._resolve_pipeline_channel = staticmethod(found)


def forget_retries(specification: PipelineSpec) -> None:
    """Run every task once: KFP waits between attempts as long as a cluster would."""
    for component in [specification.root, *specification.components.values()]:
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")


def main(job_file: Path) -> int:
    job = json.loads(job_file.read_text(encoding="utf-8"))
    accept_container_components()
    accept_conditions_on_named_outputs()
    logging.getLogger().addHandler(_Strict())
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=job["pipeline_root"],
        enable_caching=job.get("caching", False),
        cache_root=job["pipeline_root"] + "-cache",
    )
    pipeline = getattr(importlib.import_module(f"pipelines.{job['pipeline']}"), job["pipeline"])
    forget_retries(pipeline.pipeline_spec)
    pipeline(**job["arguments"])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
