"""The stage catalogue and the wrapper around every stage: the only door for DVC, Kubeflow and the command line."""
