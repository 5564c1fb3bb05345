"""`plmsae plan`: tokens, bytes, time and memory of a run before anything runs; loads no weights and changes nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plmsae.params import P, ParamsFile
    from plmsae.planning.models import Transformer
    from plmsae.planning.papers import Paper
    from plmsae.planning.request import Corpus, Machine, Request
    from plmsae.stages.extract_activations import ExtractActivationsParams
    from plmsae.stages.ingest import IngestParams
    from plmsae.stages.train_sae import TrainSaeParams

SUMMARY = "say what a run will take before it runs"
UTILISATION = 0.4
PRESET_DEVICE = "h100"


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
            print("\n".join(f"{name:<18} {paper(name).title}" for name in paper_names()))
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
    from plmsae.stages.train_sae import TrainSaeParams

    _check_numbers(args)
    if args.preset and args.params:
        raise UserError("--preset and --params are both given", fix="give one; --set changes either")
    facts = paper(args.preset) if args.preset else None
    file = ParamsFile(preset_file(args.preset) if args.preset else args.params or Path("params.yaml"), args.set)
    file.check_sections(sections())
    ingest = _load(file, IngestParams, "ingest", partial=facts is not None)
    extract = _load(file, ExtractActivationsParams, "extract_activations", partial=facts is not None)
    train = _load(file, TrainSaeParams, "train_sae", partial=facts is not None)
    fidelity = _load(file, FidelityParams, "evaluate.fidelity", partial=facts is not None)
    plm = transformer(extract.plm)
    corpus, machine = _corpus(args, ingest, facts), _machine(args)
    train_rows = corpus.splits["train"]
    latents = train.dictionary_size or (train.expansion_factor or 1) * plm.d_model
    tokens, batch = train.tokens, train.batch_size
    given = file.data.get("train_sae") or {}
    if facts and facts.epochs and "tokens" not in given:
        tokens = round(facts.epochs * train_rows.residues)
    if facts and facts.batch_sequences and "batch_size" not in given:
        batch = round(facts.batch_sequences * train_rows.mean)
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
            captures=_captures(args, plm, extract),
            dtype=extract.dtype,
            block_rows=extract.block_rows,
            part_rows=extract.shuffle_pool_rows,
            batch_tokens=extract.max_tokens_per_batch,
            precision=_precision(args, extract, machine),
            remote=extract.store is not None,
        ),
        training=Training(
            architecture=train.architecture,
            latents=latents,
            k=train.k if selects else None,
            tokens=tokens,
            batch=batch,
            saes=args.saes or (facts.saes_per_layer if facts else 1),
        ),
        machine=machine,
        fidelity_proteins=fidelity.max_proteins,
        notes=(*_device_notes(extract, train, machine), *(facts.notes if facts else ())),
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


def _load(file: ParamsFile, model: type[P], section: str, *, partial: bool) -> P:
    """A section; a preset holds only what is published, the rest are the defaults of the model."""
    from plmsae.params import validate

    if not partial:
        return file.load(model, section)
    data: Any = file.data
    for part in section.split("."):
        data = data.get(part) or {}
    return validate(model, data, section=section, where=file.where)


def _captures(
    args: argparse.Namespace, plm: Transformer, extract: ExtractActivationsParams
) -> tuple[tuple[int, str], ...]:
    """Every (layer, hook) to store; `embedding` and `final_norm` stand at one layer each."""
    from plmsae.errors import UserError

    places = [(extract.layer, extract.hook), *((place.layer, place.hook) for place in extract.also)]
    if args.layers is None and args.hooks is None:
        return tuple(places)
    layers = [layer for layer, _ in places]
    if args.layers is not None:
        try:
            layers = [int(text) for text in args.layers.split(",")]
        except ValueError:
            raise UserError(
                f"'{args.layers}' is not a list of layers", where="--layers", fix="for example --layers 9,18,33"
            ) from None
    hooks = args.hooks.split(",") if args.hooks is not None else [hook for _, hook in places]
    fixed = {"embedding": 0, "final_norm": plm.layers}
    return tuple(dict.fromkeys((fixed.get(hook, layer), hook) for layer in layers for hook in hooks))


def _corpus(args: argparse.Namespace, ingest: IngestParams, facts: Paper | None) -> Corpus:
    """The lengths of the rows by split: from a file, or imagined."""
    from plmsae.errors import UserError
    from plmsae.planning.lengths import log_normal, read_lengths
    from plmsae.planning.papers import UNIREF50_MEAN
    from plmsae.planning.request import Corpus

    if args.num_sequences or args.residues or (facts and not args.sequences):
        mean = args.mean_length or (facts.mean_length if facts else UNIREF50_MEAN)
        stated = args.num_sequences or (args.residues / mean if args.residues else None)
        number: float = stated or ingest.max_proteins or (facts.assumed_sequences if facts else None) or 0
        lengths = log_normal(1, mean, shortest=ingest.min_residues, longest=ingest.max_residues)
        sizes = _sizes(ingest, number)
        said = f"{sum(sizes.values()):,.0f} sequences, lengths log-normal around a mean of {mean:g}"
        return Corpus(said, {name: lengths.scaled(size) for name, size in sizes.items()})
    path = args.sequences or Path(ingest.source)
    if not args.sequences and not path.is_file():
        raise UserError(
            f"'{ingest.source}' is not on this disk, so its lengths are not known",
            where="ingest.source",
            fix="run `dvc pull`, or pass --sequences FILE, --num-sequences N or --residues N",
        )
    found = read_lengths(path)
    if "all" not in found:
        empty = found[next(iter(found))].scaled(0)
        if "train" not in found:
            raise UserError("the table has no split 'train'", where=str(path), fix="name ingest's sequences.parquet")
        return Corpus(str(path), {name: found.get(name, empty) for name in ("train", "valid", "test")})
    rows, left_out = found["all"].kept(
        min_residues=ingest.min_residues,
        max_residues=ingest.max_residues,
        policy=ingest.long_sequences,
        overlap=ingest.window_overlap,
    )
    sizes = _sizes(ingest, ingest.max_proteins or float("inf"), rows.sequences)
    said = f"{found['all'].sequences:,.0f} sequences of {path}"
    if sum(sizes.values()) < rows.sequences - 0.5:
        said += ", a subset"
    splits = {name: rows.scaled(size / rows.sequences) for name, size in sizes.items()}
    return Corpus(said, splits, left_out)


def _sizes(ingest: IngestParams, wanted: float, available: float = float("inf")) -> dict[str, float]:
    """Sequences of each split.

    Args:
        ingest: Of `proteins` the splits are shares; of a `corpus` so many are held out twice.
        wanted: Sequences in all; of a corpus those to train on.
        available: Sequences that there are.

    Raises:
        UserError: A corpus has nothing beside what is held out.
    """
    from plmsae.errors import UserError

    if ingest.mode == "proteins":
        number = min(wanted, available)
        valid, test = ingest.valid_fraction, ingest.test_fraction
        return {"train": number * (1 - valid - test), "valid": number * valid, "test": number * test}
    held_out = float(ingest.held_out_size)
    train = min(wanted, available - 2 * held_out)
    if train <= 0:
        raise UserError(
            f"the corpus has {available:,.0f} sequences, and {held_out:,.0f} are held out twice",
            where="ingest.held_out_size",
            fix="lower it, or name a larger corpus",
        )
    return {"train": train, "valid": held_out, "test": held_out}


def _precision(args: argparse.Namespace, extract: ExtractActivationsParams, machine: Machine) -> str:
    """`auto` as the stage resolves it; where the processor's rate is stated, nobody says what it multiplies fast."""
    if extract.precision != "auto":
        return extract.precision
    if machine.device.name != "cpu":
        return "bfloat16"
    if args.flops is not None:
        return "float32"
    from plmsae.plms.linear import has_fast_bfloat16

    return "bfloat16" if has_fast_bfloat16() else "float32"


def _device_notes(extract: ExtractActivationsParams, train: TrainSaeParams, machine: Machine) -> list[str]:
    """Stages whose parameters would leave the planned accelerator idle."""
    if machine.device.name == "cpu":
        return []
    return [
        f"{name}.device is cpu: set it to cuda, or this stage does not run on the {machine.device.name}"
        for name, device in (("extract_activations", extract.device), ("train_sae", train.device))
        if device == "cpu"
    ]


def _machine(args: argparse.Namespace) -> Machine:
    import os
    import shutil

    from plmsae.planning.accelerators import accelerator, installed_accelerator
    from plmsae.planning.request import Machine

    name = args.device or installed_accelerator() or (PRESET_DEVICE if args.preset else "cpu")
    return Machine(
        device=accelerator(name, flops=args.flops, bandwidth=args.bandwidth),
        count=args.devices,
        utilisation=args.utilisation,
        price=args.price,
        free_disk=float(shutil.disk_usage(Path.cwd()).free),
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    )
