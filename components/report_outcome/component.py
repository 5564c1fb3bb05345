"""Kubeflow component of the exit task: says how the run ended. Not a stage, so written by hand."""

from kfp import dsl

from components.image import IMAGE


@dsl.container_component
def report_outcome(
    status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown], reevaluated: str = ""
) -> dsl.ContainerSpec:
    """Say how the run ended, whatever happened before.

    Args:
        status: Filled in by Kubeflow.
        summary: The outcome for people; one line of JSON goes to the log.
        reevaluated: Of a re-evaluation, the model: a failure is told to the webhook.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", "plmsae.stages.final_status"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
