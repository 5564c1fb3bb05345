"""`plmsae compile`: compile a Kubeflow pipeline for your images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "compile a Kubeflow pipeline for your images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("pipeline", help="name of a pipeline, e.g. train")
    parser.add_argument("--image", required=True, help="image of the tasks: REPOSITORY@sha256:DIGEST")
    parser.add_argument("--gpu-image", help="image of the tasks that ask for a GPU (the same)")
    parser.add_argument("--state-claim", default="", help="volume claim for checkpoints, e.g. plmsae-state (none)")
    parser.add_argument("--placement", type=Path, help="YAML file: kind of GPU, nodes, spot pool (the pool of k8s/)")
    parser.add_argument("--allow-tag", action="store_true", help="accept images by tag; nothing is cached then")
    parser.add_argument("--output", type=Path, help="file to write (PIPELINE.yaml)")


def main(args: argparse.Namespace) -> int:
    """Compile and write the package."""
    from plmsae.artifacts.atomic import write_text
    from plmsae.artifacts.checksums import sha256_bytes
    from plmsae.cluster.compile import compile_pipeline
    from plmsae.cluster.placement import read_placement

    text = compile_pipeline(
        args.pipeline,
        image=args.image,
        root=Path.cwd(),
        gpu_image=args.gpu_image,
        allow_tag=args.allow_tag,
        state_claim=args.state_claim,
        placement=read_placement(args.placement),
    )
    output = args.output or Path(f"{args.pipeline}.yaml")
    write_text(output, text)
    if args.json:
        print(json.dumps({"output": str(output), "sha256": sha256_bytes(text.encode())}, sort_keys=True))
    else:
        print(f"-> {output}\nupload it in the Kubeflow UI, or: plmsae submit {args.pipeline} --package {output}")
    return 0
