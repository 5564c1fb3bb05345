"""Stage `pull`: a registered SAE as an artifact that every stage takes in place of a trained one.

Cached by contents: the version and the checksum of its package are parameters, and `resolve` finds both.
"""

from __future__ import annotations

import json
import re

from pydantic import Field, field_validator

from plmsae.errors import DataError, UserError
from plmsae.params import Params
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult, Value


class PullParams(Params):
    """Parameters of `pull`."""

    uri: str | None = Field(
        None,
        description="A registered version, models:/NAME/VERSION; there is none by default. What an alias points at "
        "moves: `resolve` finds its version.",
    )
    package_sha256: str | None = Field(
        None,
        description="Hex sha256 that the package's manifest must have; null takes any (a pipeline names it).",
    )

    @field_validator("uri")
    @classmethod
    def _exact(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"models:/[^/@\s]+/[1-9]\d*", value):
            raise ValueError("write models:/NAME/VERSION; plmsae models lists the versions")
        return value


STAGE = Stage(
    id="pull",
    summary="Take a version of an SAE out of the registry, every file verified",
    params=PullParams,
    pipeline="registered",
    kind="sae",
    run="plmsae.stages.pull:run",
    code=("artifacts", "registry", "saes"),
    knobs=("uri", "package_sha256"),
    values=(
        Value("name", str, "Registered name of the SAE."),
        Value("version", int, "Its version."),
    ),
    resources=Resources(cpu=1, memory_gib=4),
)


def run(context: StageContext) -> StageResult:
    """Write `sae/`, the package byte for byte as the registry holds it; the metrics are those of its training.

    Raises:
        UserError: No version is named, or there is none of that name and number.
        DataError: The registry's copy is damaged, or is not the one that was meant.
        TryAgainError: The registry cannot be reached.
    """
    from plmsae.artifacts.manifest import manifest_sha256
    from plmsae.registry.load import pull
    from plmsae.saes.files import read_config

    params: PullParams = context.params
    if params.uri is None:
        raise UserError(
            "no registered version is named",
            where="pull.uri",
            fix="--set pull.uri=models:/NAME/VERSION (plmsae models)",
        )
    pulled = pull(params.uri, context.output / "sae", root=context.root)
    found = manifest_sha256(pulled.folder)
    if params.package_sha256 not in (None, found):
        raise DataError(
            f"the package of '{params.uri}' has sha256 {found}, not {params.package_sha256}",
            where="pull.package_sha256",
            fix="another registry, or its files were replaced: look the version up again (plmsae lineage)",
        )
    config = read_config(pulled.folder)
    recorded = json.loads((pulled.folder / "metrics.json").read_text(encoding="utf-8"))
    stage = "train_sae."
    return StageResult(
        metrics={name.removeprefix(stage): value for name, value in recorded.items() if name.startswith(stage)},
        summary=f"Version {pulled.version} of `{pulled.name}`, registered with the numbers in `sae/metrics.json`: "
        f"{config.architecture} with {config.dictionary_size:,} latents, on layer {config.layer} ({config.hook}) of "
        f"{config.plm}. What else is known of it: `plmsae lineage {params.uri}`.",
        values={"name": pulled.name, "version": pulled.version},
    )
