"""Stage `resolve`: which version a name in the registry points at now, and what its activations must be.

A stage of its own, apart from `pull`: it is never cached, and hands on values alone. Kubeflow's cache tells artifacts
apart by who made them, so what reads an artifact of a task that always runs is never met again; values are.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from plmsae.errors import UserError
from plmsae.params import Params, canonical_json
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult, Value

_SECTION = "extract_activations"
# What each of them is when one SAE alone is looked at; the first four are those of the SAE.
_ALONE: dict[str, Any] = {"also": [], "share": None, "shared": None}
_OF_THE_SAE = ("plm", "plm_revision", "layer", "hook")
_KNOBS = ("plm", "layer", "store", "seed")  # of extract_activations, which has them as parameters of the task


class ResolveParams(Params):
    """Parameters of `resolve`."""

    model: str | None = Field(
        None, description="Registered SAE: models:/NAME@ALIAS or models:/NAME/VERSION; null takes the only champion."
    )
    extract_activations: dict[str, Any] = Field(
        {},
        description="Parameters of its activations that are to differ from the section extract_activations, which "
        "gives the others. PLM, revision, layer and hook are those of the SAE; where they stand here, they must be.",
    )


STAGE = Stage(
    id="resolve",
    summary="Find the version that a name in the registry points at, and what its activations are",
    params=ResolveParams,
    inherits=(_SECTION,),
    decides=tuple(f"{_SECTION}.{name}" for name in (*_OF_THE_SAE, *_ALONE)),
    pipeline="registered",
    kind="report",
    run="plmsae.stages.resolve:run",
    code=("artifacts", "registry", "saes"),
    knobs=("model",),
    values=(
        Value("uri", str, "The version, as models:/NAME/VERSION."),
        Value("package_sha256", str, "Checksum of its package."),
        Value("plm", str, "Its protein language model; for `extract_activations`, like all that follow."),
        Value("layer", int, "Its layer."),
        Value("store", str, "Where the activations go; empty keeps them in the artifact."),
        Value("seed", int, "Seed of their shuffling."),
        Value("extract_activations_params", str, "The other parameters, one JSON object."),
    ),
    resources=Resources(cpu=1, memory_gib=2),
    looks_up=True,
)


def run(context: StageContext) -> StageResult:
    """Write `version.json`: name, version, checksum of the package, and the SAE's place.

    Raises:
        UserError: Unknown name, alias or version; an SAE that does not take raw activations; or parameters of the
            activations that are not the SAE's.
        DataError: The registry's copy is damaged.
        TryAgainError: The registry cannot be reached.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.registry.described import describe

    params: ResolveParams = context.params
    found = describe(params.model, context.root)
    config = found.config
    if not config.takes_raw:
        raise UserError(
            f"'{found.uri}' takes {config.input}, not raw ones",
            where="resolve.model",
            fix="register it with its normaliser folded: sae.folded(scale)",
        )
    place = {name: getattr(config, name) for name in _OF_THE_SAE}
    for name, value in {**place, **_ALONE}.items():
        asked = params.extract_activations.get(name, value)
        if asked != value:
            raise UserError(
                f"'{found.uri}' is evaluated with {name} {value}, not {asked}",
                where=f"resolve.{_SECTION}.{name}",
                fix="leave it out: it is taken from the SAE",
            )
    complete = {**params.extract_activations, **place, **_ALONE}
    record = {
        "name": found.name,
        "version": found.version,
        "package_sha256": found.package_sha256,
        "architecture": config.architecture,
        **place,
        "normaliser": dict(config.normaliser),
    }
    write_text(context.output / "version.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    return StageResult(
        metrics={},
        summary=f"`{params.model or 'The only champion'}` is `{found.uri}`: {config.architecture} with "
        f"{config.dictionary_size:,} latents, on layer {config.layer} ({config.hook}) of {config.plm}; it takes "
        f"{config.input}.",
        values={
            "uri": found.uri,
            "package_sha256": found.package_sha256,
            "plm": config.plm,
            "layer": config.layer,
            "store": complete.get("store") or "",
            "seed": complete.get("seed", 0),
            "extract_activations_params": canonical_json(
                {name: value for name, value in complete.items() if name not in _KNOBS}
            ),
        },
    )
