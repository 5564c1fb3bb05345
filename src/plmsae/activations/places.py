"""Where the stores of an extraction lie: one is the output folder itself, several have a folder each.

With several, `stores.json` lists them, the one that `layer` and `hook` of the extraction name first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from plmsae.activations.metadata import METADATA
from plmsae.artifacts.atomic import write_text
from plmsae.errors import DataError, UserError
from plmsae.plms.base import Place

STORES = "stores.json"
SHARE = "share.json"


def store_folders(output: Path, places: Sequence[Place]) -> list[Path]:
    """The folder of each store."""
    return [output] if len(places) == 1 else [output / folder_name(place) for place in places]


def folder_name(place: Place) -> str:
    """Name of a place's folder where there are several, e.g. `layer3.residual`."""
    return f"layer{place.layer}.{place.hook}"


def write_stores(output: Path, places: Sequence[Place]) -> None:
    """Write `stores.json`, where there are several."""
    if len(places) > 1:
        listed = [{"folder": folder_name(place), **vars(place)} for place in places]
        write_text(output / STORES, json.dumps({"stores": listed}, indent=1) + "\n")


def find_stores(output: Path) -> dict[Place, Path]:
    """Place -> store folder, the first one first, of an output with several stores; empty if it has only one.

    Raises:
        DataError: `stores.json` is not valid.
    """
    path = output / STORES
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["stores"]
        places = [Place(int(one["layer"]), str(one["hook"])) for one in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the list of stores is not valid", where=str(path), fix="extract again: dvc repro extract_activations"
        ) from error
    return {place: output / folder_name(place) for place in places}


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
    for place, folder in stores.items():
        if layer in (None, place.layer) and hook in (None, place.hook):
            return folder
    if not stores:
        return output
    asked = " and ".join(f"{name} {value}" for name, value in (("layer", layer), ("hook", hook)) if value is not None)
    there = ", ".join(f"layer {place.layer} ({place.hook})" for place in stores)
    raise UserError(
        f"the activations are of {there}; none is of {asked}",
        where=str(output),
        fix="choose one of them, or add the place to extract_activations.also and extract again",
    )
