"""What is chosen when a pipeline is compiled: by the options of `plmsae compile`, or by these variables for KFP's own
compiler: the images that components run in, a volume for checkpoints, and where tasks with a GPU run.

Kubeflow's cache key holds the text of the reference and never the bytes behind it, so name images by digest.
The defaults are an example: they name no image that exists.
"""

import os

from plmsae.stages.components import EXAMPLE_IMAGE

IMAGE = os.environ.get("PLMSAE_IMAGE") or EXAMPLE_IMAGE
GPU_IMAGE = os.environ.get("PLMSAE_GPU_IMAGE") or IMAGE
# Name of a volume claim; empty keeps checkpoints in the pod, where they are lost with it.
STATE_CLAIM = os.environ.get("PLMSAE_STATE_CLAIM") or ""
# JSON of `plmsae.cluster.placement.Placement`; empty takes its defaults.
PLACEMENT = os.environ.get("PLMSAE_PLACEMENT") or "{}"
# JSON: section -> [nodes, processes of each] of a training; empty takes those of params.yaml.
RANKS = os.environ.get("PLMSAE_RANKS") or "{}"
# JSON list of the sections whose stages take a GPU by their parameter `device`; empty takes those of params.yaml.
ON_GPU = os.environ.get("PLMSAE_ON_GPU") or ""
