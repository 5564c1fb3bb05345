"""Kubeflow components, one thin folder per stage; rendered from `plmsae.stages` by `make render`."""
