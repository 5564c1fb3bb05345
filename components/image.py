"""The images that components run in, chosen when a pipeline is compiled: by `plmsae compile --image`, or by these
variables for KFP's own compiler.

Kubeflow's cache key holds the text of the reference and never the bytes behind it, so name images by digest.
The defaults are an example: they name no image that exists.
"""

import os

EXAMPLE = "registry.example.org/plmsae@sha256:" + 64 * "0"
IMAGE = os.environ.get("PLMSAE_IMAGE") or EXAMPLE
GPU_IMAGE = os.environ.get("PLMSAE_GPU_IMAGE") or IMAGE
