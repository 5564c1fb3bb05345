"""Where the stores of an extraction lie: one is the output folder itself, several have a folder each.

With several, `stores.json` lists them, the one that `layer` and `hook` of the extraction name first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from plmsae.activations.metadata import METADATA, read_metadata
from plmsae.artifacts.atomic import write_text
from plmsae.errors import DataError, UserError

At = tuple[int, str]  # layer and hook of a place; training reads stores and needs nothing of the models
STORES = "stores.json"
SHARE = "share.json"


def store_folders(output: Path, places: Sequence[At]) -> list[Path]:
    """The folder of each store."""
    return [output] if len(places) == 1 else [output / folder_name(*place) for place in places]


def folder_name(layer: int, hook: str) -> str:
    """Name of a place's folder where there are several, e.g. `layer3.residual`."""
    return f"layer{layer}.{hook}"


def write_stores(output: Path, places: Sequence[At]) -> None:
    """Write `stores.json`, where there are several."""
    if len(places) > 1:
        listed = [{"folder": folder_name(layer, hook), "layer": layer, "hook": hook} for layer, hook in places]
        write_text(output / STORES, json.dumps({"stores": listed}, indent=1) + "\n")


def find_stores(output: Path) -> dict[At, Path]:
    """Layer and hook -> store folder, the first one first, of an output with several stores; empty if it has only one.

    Raises:
        DataError: `stores.json` is not valid.
    """
    path = output / STORES
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["stores"]
        places = [(int(one["layer"]), str(one["hook"])) for one in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the list of stores is not valid", where=str(path), fix="extract again: dvc repro extract_activations"
        ) from error
    return {place: output / folder_name(*place) for place in places}


def chosen_store(output: Path, layer: int | None, hook: str | None, *, where: str) -> Path:
    """`store_at`, and the one that is there must be of that place, even if it is the only one.

    Args:
        output: See `store_at`.
        layer: See `store_at`.
        hook: See `store_at`.
        where: Section of the parameters that asked, for the message.

    Raises:
        UserError: It is of another place; names both sides.
        DataError: A description is not valid.
    """
    folder = store_at(output, layer, hook)
    there = read_metadata(folder)
    for name, asked, found in (("layer", layer, there.layer), ("hook", hook, there.hook)):
        if asked not in (None, found):
            raise UserError(
                f"{where}.{name} is {asked}; the activations are of {name} {found}",
                where=f"{where}.{name}",
                fix=f"set it to null or {found}, or extract {name} {asked}: extract_activations.{name}, or .also",
            )
    return folder


def store_at(output: Path, layer: int | None = None, hook: str | None = None) -> Path:
    """The store of a place.

    Args:
        output: Output folder of `extract_activations`.
        layer: Its layer; None takes the first store that fits.
        hook: Its hook; likewise.

    Returns:
        Its folder; `output` itself where there is one store, whatever it is of: its description says it.

    Raises:
        UserError: No store of that place among several, or a share of an extraction that is no store yet.
        DataError: `stores.json` is not valid.
    """
    if (output / SHARE).is_file() and not (output / METADATA).is_file():
        raise UserError(
            "this is the record of a share of an extraction, not an activation store",
            where=str(output),
            fix="when all shares are done, run extract_activations with share: null",
        )
    stores = find_stores(output)
    for (there_layer, there_hook), folder in stores.items():
        if layer in (None, there_layer) and hook in (None, there_hook):
            return folder
    if not stores:
        return output
    asked = " and ".join(f"{name} {value}" for name, value in (("layer", layer), ("hook", hook)) if value is not None)
    there = ", ".join(f"layer {place[0]} ({place[1]})" for place in stores)
    raise UserError(
        f"the activations are of {there}; none is of {asked}",
        where=str(output),
        fix="choose one of them, or add the place to extract_activations.also and extract again",
    )
