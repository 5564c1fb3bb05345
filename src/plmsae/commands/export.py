"""`plmsae export`: an SAE in the format of another library, or one of another library in ours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.saes.formats import export_formats, import_formats

if TYPE_CHECKING:
    from plmsae.saes.base import SparseAutoencoder

SUMMARY = "convert an SAE to or from the format of another library"
OURS = "plmsae"
# What an imported SAE must be told; `check_source` compares it with the activations later.
ORIGIN = ("plm", "revision", "layer", "hook")
# Options that mean something with --from alone.
OF_IMPORTS = (*ORIGIN, "scale", "folded", "class", "k")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "model", metavar="SAE", help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder; with --from a folder"
    )
    parser.add_argument(
        "--format", help="format to write, one of " + ", ".join(export_formats()) + f" ({OURS} if --from is given)"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")
    of_imports = parser.add_argument_group("reading another library's SAE")
    of_imports.add_argument("--from", metavar="FORMAT", help="one of " + ", ".join(import_formats()))
    of_imports.add_argument("--plm", help="protein language model that it was trained on, e.g. esm2_t6_8M_UR50D")
    of_imports.add_argument("--revision", help="revision of that model")
    of_imports.add_argument("--layer", type=int, help="index into the hidden states, 0 for the embeddings")
    of_imports.add_argument("--hook", help="where in the layer, e.g. residual")
    of_imports.add_argument("--scale", type=float, metavar="C", help="it was trained on activations divided by C")
    of_imports.add_argument("--folded", action="store_true", help="C is part of its biases already")
    of_imports.add_argument("--class", metavar="NAME", help="its class there, if the files do not say it")
    of_imports.add_argument("--k", type=int, help="active latents per token, if the files do not say it")


def main(args: argparse.Namespace) -> int:
    """Convert and print what lies where."""
    from plmsae.errors import UserError
    from plmsae.registry.load import load
    from plmsae.saes.formats import export_sae

    source = getattr(args, "from")
    given = [f"--{name}" for name in OF_IMPORTS if getattr(args, name) not in (None, False)]
    if source is None and given:
        raise UserError(f"{', '.join(given)}: only for --from", fix="name the format that is read, or leave them away")
    if source is None and args.format is None:
        raise UserError("the format to write is not given", where="--format", fix=", ".join(export_formats()))
    sae = load(args.model) if source is None else _imported(args, source)
    format = args.format or OURS
    export_sae(sae, args.output, format)
    files = sorted(path.name for path in args.output.iterdir())
    if args.json:
        answer = {"architecture": sae.config.architecture, "files": files, "format": format}
        print(json.dumps({**answer, "output": str(args.output)}, sort_keys=True))
    else:
        print(f"{sae.config.architecture} SAE as {format} -> {args.output}: {', '.join(files)}")
    return 0


def _imported(args: argparse.Namespace, source: str) -> SparseAutoencoder:
    """The SAE in a folder of another library, taking raw activations."""
    from plmsae.errors import UserError
    from plmsae.saes.formats import import_sae

    missing = [f"--{name}" for name in ORIGIN if getattr(args, name) is None]
    if missing:
        raise UserError(
            f"an imported SAE must be told what it was trained on: {', '.join(missing)} missing",
            where=args.model,
            fix="pass the model, its revision, the layer and the hook; its files do not say them",
        )
    if args.folded and args.scale is None:
        raise UserError("--folded without --scale", fix="pass the scale too: --scale 1 --folded for raw activations")
    sae = import_sae(
        Path(args.model),
        source,
        plm=args.plm,
        plm_revision=args.revision,
        layer=args.layer,
        hook=args.hook,
        normaliser=None if args.scale is None else {"kind": "rms", "scale": args.scale, "folded": args.folded},
        dictionary_class=getattr(args, "class"),
        k=args.k,
    )
    return sae if sae.config.takes_raw else sae.folded(sae.config.normaliser["scale"])
