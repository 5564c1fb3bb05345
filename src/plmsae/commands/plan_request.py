"""What `plmsae plan` plans: its options, a parameter file and a preset, resolved to the parts of a request."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plmsae.planning.models import Transformer
    from plmsae.planning.papers import Paper
    from plmsae.planning.request import Corpus, Machine
    from plmsae.stages.extract_activations import ExtractActivationsParams
    from plmsae.stages.ingest import IngestParams
    from plmsae.training.parameters import TrainSaeParams

PRESET_DEVICE = "h100"


def places(
    args: argparse.Namespace, plm: Transformer, extract: ExtractActivationsParams
) -> tuple[tuple[int, str], ...]:
    """Every (layer, hook) to store; `embedding` and `final_norm` stand at one layer each."""
    from plmsae.errors import UserError

    found = [(extract.layer, extract.hook), *((place.layer, place.hook) for place in extract.also)]
    if args.layers is None and args.hooks is None:
        return tuple(found)
    layers = [layer for layer, _ in found]
    if args.layers is not None:
        try:
            layers = [int(text) for text in args.layers.split(",")]
        except ValueError:
            raise UserError(
                f"'{args.layers}' is not a list of layers", where="--layers", fix="for example --layers 9,18,33"
            ) from None
    hooks = args.hooks.split(",") if args.hooks is not None else [hook for _, hook in found]
    fixed = {"embedding": 0, "final_norm": plm.layers}
    return tuple(dict.fromkeys((fixed.get(hook, layer), hook) for layer in layers for hook in hooks))


def read_corpus(args: argparse.Namespace, ingest: IngestParams, facts: Paper | None) -> Corpus:
    """The lengths of the rows by split: from a file, or imagined.

    Raises:
        UserError: A file that does not exist, or a mean that no such corpus has.
        DataError: A file that cannot be read.
    """
    from plmsae.errors import UserError
    from plmsae.planning.lengths import log_normal, read_lengths
    from plmsae.planning.papers import UNIREF50_MEAN
    from plmsae.planning.request import Corpus

    if args.num_sequences or args.residues or (facts and not args.sequences):
        mean = args.mean_length or (facts.mean_length if facts else UNIREF50_MEAN)
        stated = args.num_sequences or (args.residues / mean if args.residues else None)
        number: float = stated or ingest.max_proteins or 0
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


def choose_precision(args: argparse.Namespace, extract: ExtractActivationsParams, machine: Machine) -> str:
    """`auto` as the stage resolves it; where the processor's rate is stated, nobody says what it multiplies fast."""
    if extract.precision != "auto":
        return extract.precision
    if machine.device.name != "cpu":
        return "bfloat16"
    if args.flops is not None:
        return "float32"
    from plmsae.plms.linear import has_fast_bfloat16

    return "bfloat16" if has_fast_bfloat16() else "float32"


def device_notes(extract: ExtractActivationsParams, train: TrainSaeParams, machine: Machine) -> list[str]:
    """Stages whose parameters would leave the planned accelerator idle."""
    if machine.device.name == "cpu":
        return []
    return [
        f"{name}.device is cpu: set it to cuda, or this stage does not run on the {machine.device.name}"
        for name, device in (("extract_activations", extract.device), ("train_sae", train.device))
        if device == "cpu"
    ]


def choose_machine(args: argparse.Namespace) -> Machine:
    """The device that was named, else the installed one, else the processor (for a preset an H100), and this folder.

    Raises:
        UserError: The device is not known.
    """
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
