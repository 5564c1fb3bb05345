"""Options of the verbs that compile a pipeline and hand it to Kubeflow, and the package that they mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plmsae.cluster.package import Package
    from plmsae.params import ParamsFile


def add_compile_arguments(parser: argparse.ArgumentParser) -> None:
    """Which images the tasks run, and where."""
    parser.add_argument("--image", help="image of the tasks, REPOSITORY@sha256:DIGEST (PLMSAE_IMAGE)")
    parser.add_argument("--gpu-image", help="image of the tasks with a GPU (PLMSAE_GPU_IMAGE, or --image)")
    parser.add_argument("--state-claim", default="", help="volume claim for checkpoints, e.g. plmsae-state (none)")
    parser.add_argument("--placement", type=Path, help="YAML file: kind of GPU, nodes, spot pool (the pool of k8s/)")
    parser.add_argument("--allow-tag", action="store_true", help="accept an image by tag; nothing is cached then")


def add_skip_argument(parser: argparse.ArgumentParser) -> None:
    """What is not looked for before a run."""
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=["images", "data", "registry", "settings"],
        help="do not look for these before the run: images, data in buckets, MLflow, settings of the namespace",
    )


def image_of(args: argparse.Namespace) -> str | None:
    """The image of the command line or else of the environment."""
    return args.image or os.environ.get("PLMSAE_IMAGE") or None


def compiled(args: argparse.Namespace, pipeline: str, params: ParamsFile, *, look_up: bool) -> Package:
    """Compile a pipeline of the working folder for the images of the command line.

    Args:
        args: With the options of `add_compile_arguments`.
        pipeline: Its name.
        params: Parameters of the run; they say how many processes a training takes, and who takes a GPU.
        look_up: Whether registries are asked for the digest of an image by tag.

    Raises:
        UserError: No image, an unknown pipeline, or what compiling refuses.
        TryAgainError: A registry does not answer.
    """
    from plmsae.cluster.compile import compile_pipeline
    from plmsae.cluster.package import parse_package
    from plmsae.cluster.placement import read_placement
    from plmsae.cluster.ranks import on_gpu, ranks
    from plmsae.cluster.submit import pinned
    from plmsae.errors import UserError

    image = image_of(args)
    gpu_image = args.gpu_image or os.environ.get("PLMSAE_GPU_IMAGE")
    if not image:
        raise UserError(
            "no image is given",
            where="--image, environment variable PLMSAE_IMAGE",
            fix="pass --image REPOSITORY@sha256:DIGEST, or name a package that is compiled already",
        )
    if not args.allow_tag and look_up:
        image, gpu_image = pinned(image), pinned(gpu_image) if gpu_image else None
    text = compile_pipeline(
        pipeline,
        image=image,
        root=Path.cwd(),
        gpu_image=gpu_image,
        allow_tag=args.allow_tag,
        state_claim=args.state_claim,
        placement=read_placement(args.placement),
        ranks=ranks(params),
        on_gpu=on_gpu(params),
    )
    return parse_package(text.encode(), where=f"pipelines/{pipeline}.py")
