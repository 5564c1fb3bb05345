"""Kubeflow: compile pipelines, submit runs. The one room that imports kfp, and only when it is asked to work."""
