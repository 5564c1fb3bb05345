"""Kubeflow pipelines, each with its compiled YAML beside it; `make render` compiles them."""
