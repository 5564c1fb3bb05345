"""The command line: finds the verb, runs it, and turns every expected error into a message and an exit code.

Exit codes: 0 ok, 2 user error, 3 invalid data, 4 gate failed, 75 try again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence

# Verb -> summary, so that `plmsae --help` imports none of them; a test compares the summaries to the modules.
VERBS = {
    "run": "run one stage of the pipeline",
    "doctor": "check this installation and what it can reach",
    "plan": "say what a run will take before it runs",
    "models": "list the registered SAEs",
    "pull": "copy a registered SAE with its evidence to a folder",
    "features": "active latents of every residue of your proteins",
    "compare": "compare SAEs of any models and sizes on the same proteins",
    "export": "convert an SAE to or from the format of another library",
    "verify": "check every file of an output or SAE folder against its checksums",
    "compile": "compile a pipeline for Kubeflow or Argo, for your images",
    "submit": "run a pipeline on Kubeflow",
    "schedule": "start pipelines on Kubeflow by the clock, from a file",
    "promote": "make a registered version the champion if it passes the gates",
    "rollback": "make the previous champion champion again",
    "reevaluate": "evaluate a registered SAE again where something has changed",
    "lineage": "show what a registered SAE was made from, or what was made from something",
}


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the sub-parser of `verb` gets its arguments (and pays for its imports)."""
    from plmsae import __version__

    parser = argparse.ArgumentParser(
        prog="plmsae",
        description="Sparse autoencoders on protein language models.",
        epilog="The whole pipeline: dvc repro. "
        "Exit codes: 0 ok, 2 user error, 3 invalid data, 4 gate failed, 75 try again.",
    )
    parser.add_argument("--version", action="version", version=f"plmsae {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--json", action="store_true", help="print machine-readable JSON")
        if name == verb:
            importlib.import_module(f"plmsae.commands.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `plmsae` command; returns the exit code."""
    from plmsae import collector
    from plmsae.errors import PlmsaeError

    if argv is None:
        collector.spare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # OpenMP threads that spin while they wait slow torch down several times as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verb = next((argument for argument in arguments if argument in VERBS), None)
    args = build_parser(verb).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("plmsae").setLevel(logging.INFO)
    try:
        code = importlib.import_module(f"plmsae.commands.{args.verb}").main(args)
        sys.stdout.flush()
    except PlmsaeError as error:
        if args.json:
            print(json.dumps({"error": error.problem, "where": error.where, "fix": error.fix}, sort_keys=True))
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away: the usual quiet end of a Unix filter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
