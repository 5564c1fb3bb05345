"""`plmsae plan`: tokens, bytes, time and memory of a run before anything runs; loads no weights and changes nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.commands.plan_request import (
    choose_machine,
    choose_precision,
    device_notes,
    places,
    read_corpus,
)

if TYPE_CHECKING:
    from plmsae.planning.papers import Paper
    from plmsae.planning.request import Request

SUMMARY = "say what a run will take before it runs"
UTILISATION = 0.4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--params", type=Path, help="parameter file (params.yaml)")
    parser.add_argument("--preset", metavar="NAME", help="the published settings of a paper instead")
    parser.add_argument("--presets", action="store_true", help="list the presets")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    parser.add_argument("--layers", metavar="L,L,...", help="layers whose activations are stored in one pass")
    parser.add_argument("--hooks", metavar="HOOK,HOOK,...", help="hooks at each of these layers")
    parser.add_argument("--saes", type=int, metavar="N", help="SAEs per layer and hook (1)")
    corpus = parser.add_mutually_exclusive_group()
    corpus.add_argument("--sequences", type=Path, metavar="FILE", help="sequences.parquet, FASTA or UniProt's formats")
    corpus.add_argument("--num-sequences", type=float, metavar="N", help="sequences of an imagined corpus")
    corpus.add_argument("--residues", type=float, metavar="N", help="residues of an imagined corpus")
    parser.add_argument("--mean-length", type=float, metavar="RESIDUES", help="their mean length (250), log-normal")
    parser.add_argument("--device", metavar="NAME", help="cpu (measured) or an accelerator, e.g. h100")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="number of devices (1)")
    parser.add_argument("--flops", type=float, metavar="FLOP/S", help="peak rate of a device, if it is another one")
    parser.add_argument("--bandwidth", type=float, metavar="B/S", help="its memory bandwidth")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        metavar="SHARE",
        help=f"assumed share of these ({UTILISATION})",
    )
    parser.add_argument("--price", type=float, metavar="MONEY", help="price of a device per hour")


def main(args: argparse.Namespace) -> int:
    """Print the plan as tables and lists, or with --json as numbers in base units."""
    from plmsae.planning.papers import paper, paper_names
    from plmsae.planning.plan import make_plan
    from plmsae.planning.report import render

    if args.presets:
        if args.json:
            print(json.dumps({name: paper(name).title for name in paper_names()}, indent=1, sort_keys=True))
        else:
            print("\n".join(f"{name:<28} {paper(name).title}" for name in paper_names()))
        return 0
    plan = make_plan(_request(args))
    print(json.dumps(plan, indent=1, sort_keys=True, allow_nan=False) if args.json else render(plan))
    return 0


def _request(args: argparse.Namespace) -> Request:
    from plmsae.errors import UserError
    from plmsae.params import ParamsFile
    from plmsae.planning.formulas import SPARSE
    from plmsae.planning.models import transformer
    from plmsae.planning.papers import paper, preset_file
    from plmsae.planning.request import Request, Storing, Training
    from plmsae.stages.catalog import sections
    from plmsae.stages.evaluate import FidelityParams
    from plmsae.stages.extract_activations import ExtractActivationsParams
    from plmsae.stages.ingest import IngestParams
    from plmsae.training.parameters import TrainSaeParams
    from plmsae.training.presets import recipe

    _check_numbers(args)
    if args.preset and args.params:
        raise UserError("--preset and --params are both given", fix="give one; --set changes either")
    facts = paper(args.preset) if args.preset else None
    file = ParamsFile(preset_file(args.preset) if args.preset else args.params or Path("params.yaml"), args.set)
    file.check_sections(sections())
    ingest = file.load(IngestParams, "ingest")
    extract = file.load(ExtractActivationsParams, "extract_activations")
    train = file.load(TrainSaeParams, "train_sae")
    fidelity = file.load(FidelityParams, "evaluate.fidelity")
    plm = transformer(extract.plm)
    corpus, machine = read_corpus(args, ingest, facts), choose_machine(args)
    latents = train.dictionary_size or (train.expansion_factor or 1) * plm.d_model
    batch = train.batch_size or recipe(train.preset, train.architecture).batch_size
    selects = train.architecture in SPARSE
    if selects and train.k > latents:
        raise UserError(
            f"k = {train.k} is larger than the dictionary of {latents} latents",
            where="train_sae.k",
            fix=f"lower train_sae.k to at most {latents}, or enlarge the dictionary",
        )
    return Request(
        title=_title(args, facts) if facts else f"{file.path}: {train.architecture} SAE on {plm.name}",
        plm=plm,
        corpus=corpus,
        storing=Storing(
            captures=places(args, plm, extract),
            dtype=extract.dtype,
            block_rows=extract.block_rows,
            part_rows=extract.shuffle_pool_rows,
            batch_tokens=extract.max_tokens_per_batch,
            precision=choose_precision(args, extract, machine),
            remote=extract.store is not None,
        ),
        training=Training(
            architecture=train.architecture,
            latents=latents,
            k=train.k if selects else None,
            tokens=train.tokens,
            batch=batch,
            saes=args.saes or (facts.saes_per_layer if facts else 1),
        ),
        machine=machine,
        fidelity_proteins=fidelity.max_proteins,
        fidelity_single=fidelity.single_mask_residues,
        notes=(*device_notes(extract, train, machine), *(facts.notes if facts else ())),
    )


def _title(args: argparse.Namespace, facts: Paper) -> str:
    """The preset's title, and what is no longer the paper's."""
    options = ("layers", "hooks", "saes", "sequences", "num_sequences", "residues", "mean_length")
    given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    changed = [
        f"--{name.replace('_', '-')} {f'{value:g}' if isinstance(value, float) else value}"
        for name, value in given.items()
    ]
    return facts.title + "".join(f"; changed: {text}" for text in [", ".join([*args.set, *changed])] if text)


def _check_numbers(args: argparse.Namespace) -> None:
    from math import isfinite

    from plmsae.errors import UserError

    least = {"saes": 1, "devices": 1}
    for name in ("saes", "devices", "num_sequences", "residues", "mean_length", "flops", "bandwidth", "utilisation",
                 "price"):  # fmt: skip
        value = getattr(args, name)
        if value is not None and not (isfinite(value) and value >= least.get(name, 0) and (value or name == "price")):
            raise UserError(f"{value} is not a number above 0", where=f"--{name.replace('_', '-')}", fix="correct it")
    if args.utilisation > 1:
        raise UserError(f"a utilisation of {args.utilisation} is more than all", where="--utilisation", fix="give 0..1")
    if args.mean_length is not None and args.sequences is not None:
        raise UserError("--sequences has lengths of its own", where="--mean-length", fix="leave one of them out")
