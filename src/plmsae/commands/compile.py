"""`plmsae compile`: compile a pipeline for your images, for Kubeflow or for Argo Workflows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "compile a pipeline for Kubeflow or Argo, for your images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("pipeline", help="name of a pipeline, e.g. train")
    parser.add_argument("--image", required=True, help="image of the tasks: REPOSITORY@sha256:DIGEST")
    parser.add_argument("--gpu-image", help="image of the tasks that ask for a GPU (the same)")
    parser.add_argument("--state-claim", default="", help="volume claim for checkpoints, e.g. plmsae-state (none)")
    parser.add_argument("--placement", type=Path, help="YAML file: kind of GPU, nodes, spot pool (the pool of k8s/)")
    parser.add_argument("--allow-tag", action="store_true", help="accept images by tag; nothing is cached then")
    parser.add_argument("--output", type=Path, help="file to write (PIPELINE.yaml)")
    argo = parser.add_argument_group("for clusters without Kubeflow")
    argo.add_argument("--argo", action="store_true", help="plain manifests of Argo Workflows")
    argo.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    argo.add_argument("--schedule", metavar="CRON", help='start it by the clock as well, in UTC, e.g. "0 2 * * 0"')
    argo.add_argument("--storage", default="100Gi", help="size of the volume of a run (100Gi)")
    argo.add_argument("--one-node", action="store_true", help="a volume that one node mounts, ReadWriteOnce")


def main(args: argparse.Namespace) -> int:
    """Compile and write the package."""
    from plmsae.artifacts.atomic import write_text
    from plmsae.artifacts.checksums import sha256_bytes

    text = _argo(args) if args.argo else _kubeflow(args)
    output = args.output or Path(f"{args.pipeline}.yaml")
    write_text(output, text)
    if args.json:
        print(json.dumps({"output": str(output), "sha256": sha256_bytes(text.encode())}, sort_keys=True))
    else:
        how = f"upload it in the Kubeflow UI, or: plmsae submit {args.pipeline} --package {output}"
        print(f"-> {output}\n" + (f"kubectl apply -f {output}" if args.argo else how))
    return 0


def _kubeflow(args: argparse.Namespace) -> str:
    from plmsae.cluster.compile import compile_pipeline
    from plmsae.cluster.placement import read_placement
    from plmsae.errors import UserError

    if args.set or args.schedule or args.one_node:
        raise UserError(
            "--set, --schedule and --one-node are for --argo",
            fix="a run in Kubeflow gets its parameters when it is submitted: plmsae submit --set",
        )
    return compile_pipeline(
        args.pipeline,
        image=args.image,
        root=Path.cwd(),
        gpu_image=args.gpu_image,
        allow_tag=args.allow_tag,
        state_claim=args.state_claim,
        placement=read_placement(args.placement),
    )


def _argo(args: argparse.Namespace) -> str:
    from plmsae.cluster.argo import argo_manifests, argo_text
    from plmsae.cluster.placement import read_placement
    from plmsae.errors import UserError
    from plmsae.params import ParamsFile

    if args.state_claim:
        raise UserError(
            "with --argo the volume of the run keeps the checkpoints", where="--state-claim", fix="leave it out"
        )
    return argo_text(
        argo_manifests(
            args.pipeline,
            ParamsFile(Path("params.yaml"), args.set),
            image=args.image,
            gpu_image=args.gpu_image,
            allow_tag=args.allow_tag,
            placement=read_placement(args.placement),
            storage=args.storage,
            access_mode="ReadWriteOnce" if args.one_node else "ReadWriteMany",
            schedule=args.schedule,
        )
    )
