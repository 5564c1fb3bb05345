"""What a re-evaluation reads: the newest data, the activations at the SAE's place, and the SAE itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, write_manifest
from plmsae.errors import UserError
from plmsae.params import Params, ParamsFile, validate
from plmsae.stages.reevaluation_params import REEVALUATE, ReevaluateParams
from plmsae.stages.spec import Stage


def with_data(file: ParamsFile, overrides: Sequence[str], data: str | None) -> None:
    """Read other data than the parameter file names: its labels and checksum are not theirs.

    Args:
        file: The parameters, `overrides` applied; changed in place.
        overrides: The overrides once more: what they set stays.
        data: Path or address of the newest data; None for what `file` names.
    """
    if data is None:
        return
    file.section(REEVALUATE)["source"] = None
    section = file.section("ingest")
    given = {override.partition("=")[0] for override in overrides}
    for name, value in (("source", data), ("source_sha256", None), ("release", "")):
        if name == "source" or f"ingest.{name}" not in given:
            section[name] = value


def parameters_of(settings: ReevaluateParams, stage: Stage) -> Params:
    """The parameters of a stage that a re-evaluation runs.

    Args:
        settings: The section `reevaluate`, complete.
        stage: The stage.

    Raises:
        UserError: They are not there, or wrong.
    """
    where = f"{REEVALUATE}.stages"
    if stage.id not in settings.stages:
        raise UserError(f"the parameters of '{stage.id}' are missing", where=where, fix="give those of params.yaml")
    values = dict(settings.stages[stage.id])
    if stage.id == "ingest" and settings.source not in (None, values.get("source")):
        values |= {"source": settings.source, "source_sha256": None, "release": ""}
    return validate(
        stage.params,
        values,
        section=stage.section,
        where=lambda field: f"{where}.{stage.id}.{field.removeprefix(f'{stage.section}.')}",
    )


def revision_of(plm: str, wanted: str | None, root: Path) -> str:
    """What pins the weights that the name of a PLM stands for now; from a hub they are not fetched to know it.

    Args:
        plm: Its name, as `plmsae.plms.load_plm` takes it.
        wanted: A revision; None takes the newest.
        root: The working folder.

    Raises:
        UserError: Unknown name or revision.
        DataError: Corrupted files.
        TryAgainError: The hub or the store cannot be reached.
    """
    from plmsae.plms import load_plm
    from plmsae.plms.controls import split_name
    from plmsae.plms.families import HUB

    if not (root / plm).is_dir() and (name := split_name(plm)[0]) in HUB:
        from plmsae.plms.hub import download

        return download(name, wanted, HUB[name], weights=False)[1]
    return load_plm(plm, wanted, root=root).revision


def at_the_sae(params: Params, tags: Mapping[str, str], revision: str) -> Params:
    """The parameters of the extraction, at the place that the SAE reads."""
    values = params.model_dump(mode="json")
    place = {"plm": tags["plm"], "layer": int(tags["layer"]), "hook": tags["hook"]}
    if any(values[name] != value for name, value in place.items()):
        values |= {**place, "also": []}
    values |= {"plm_revision": revision, "share": None, "shared": None}
    return validate(type(params), values, section="extract_activations")


def sae_folder(package: Path, folder: Path, revision: str) -> Path:
    """The SAE in the form of `train_sae`, for the weights of the PLM that it is evaluated on.

    An SAE refuses another revision than its own. To ask what a new one does to it, its copy here names that one; the
    registered SAE does not change.
    """
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "sae"
    target.mkdir(parents=True)
    try:
        os.link(package / "sae.safetensors", target / "sae.safetensors")
    except OSError:
        shutil.copyfile(package / "sae.safetensors", target / "sae.safetensors")
    config = json.loads((package / "config.json").read_text(encoding="utf-8"))
    write_text(
        target / "config.json", json.dumps({**config, "plm_revision": revision}, indent=1, sort_keys=True) + "\n"
    )
    manifest = Manifest(
        stage="train_sae",
        kind="sae",
        params={},
        inputs={"package": manifest_sha256(package)},
        source_files={},
        environment={},
        files=list_files(folder),
    )
    write_manifest(folder, manifest)
    return folder
