"""Stage `sweep_report`: the best SAE of every pair of a layer and an architecture, side by side on one page.

It reads the registry, not artifacts: what one pair left there can be shown even where another pair has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from plmsae.errors import UserError
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult
from plmsae.stages.sweep_pairs_params import Pair, SweepPairsParams

if TYPE_CHECKING:
    from pathlib import Path

    from plmsae.stages.sweep_page import Row


class SweepReportParams(SweepPairsParams):
    """Parameters of `sweep_report`."""

    plm: str | None = Field(None, description="Protein language model; null takes that of extract_activations.")
    select_by: Literal["concepts", "fidelity", "fvu"] | None = Field(
        None, description="What the best member has most of; null takes that of sweep."
    )
    source_sha256: str | None = Field(
        None, description="sha256 of the protein file; SAEs of another one are not shown. Null takes any."
    )


STAGE = Stage(
    id="sweep_report",
    summary="Put the best SAEs of all pairs of a layer and an architecture on one page",
    params=SweepReportParams,
    inherits=("extract_activations", "sweep"),
    pipeline="pairs",
    kind="report",
    run="plmsae.stages.sweep_report:run",
    code=(
        "activations",
        "artifacts",
        "evaluation",
        "figures.py",
        "plms",
        "proteins",
        "registry",
        "saes",
        "training",
    ),
    knobs=("layers", "architectures", "grid", "plm", "select_by", "source_sha256", "extract_activations", "sweep"),
    wired=("layers", "architectures", "grid", "plm", "select_by", "source_sha256", "extract_activations", "sweep"),
    report="report.html",
    resources=Resources(cpu=1, memory_gib=4),
    looks_up=True,
)


def run(context: StageContext) -> StageResult:
    """Write `pairs.csv`, the figure and `report.html`.

    Raises:
        UserError: See `SweepPairsParams.pairs`.
        DataError: The registry's copy of a version is damaged.
        TryAgainError: The registry cannot be reached.
    """
    from plmsae.stages.sweep_page import write_pairs

    params: SweepReportParams = context.params
    plm = params.plm or params.extract_activations.get("plm")
    if plm is None:
        raise UserError("no protein language model is named", where="sweep_report.plm", fix="give its name")
    rows = [_row(params, pair, plm, context.root) for pair in params.pairs()]
    write_pairs(rows, plm, context.output)
    there = [row for row in rows if row.model]
    missing = [f"layer {row.layer} {row.architecture}" for row in rows if not row.model]
    return StageResult(
        metrics={"num_pairs": len(rows), "num_registered": len(there)},
        summary=f"{len(there)} of {len(rows)} pairs of a layer and an architecture have a registered SAE of this sweep."
        + (f" Not: {', '.join(missing)}." if missing else ""),
    )


def _row(params: SweepReportParams, pair: Pair, plm: str, root: Path) -> Row:
    """The candidate of the pair's name, if it was made by this very sweep from this file."""
    from plmsae.registry.connection import connect
    from plmsae.registry.described import describe
    from plmsae.registry.lineage import lineage
    from plmsae.registry.versions import CANDIDATE, get_version, registry_name
    from plmsae.stages.sweep_page import Row

    wanted = pair.sweep.model_dump(mode="json") | ({"select_by": params.select_by} if params.select_by else {})
    hook = params.extract_activations.get("hook", "residual")
    for architecture in pair.architectures:
        name = registry_name(plm, pair.layer, hook, architecture)
        try:
            record = lineage(f"models:/{name}@{CANDIDATE}", root)
        except UserError:  # nothing of that name, or no candidate
            continue
        made = (record["stages"].get("sae") or {}).get("params")
        if made != wanted or params.source_sha256 not in (None, record["data"]["sha256"]):
            continue
        with connect(root) as client:
            version = get_version(client, name, record["version"])
        config = describe(version.uri, root).config
        return Row(pair.layer, architecture, _member(pair, config), version.uri, version.metrics)
    return Row(pair.layer, " or ".join(pair.architectures))


def _member(pair: Pair, config: object) -> str:
    """Name of the member of the sweep that an SAE is, told by what the grid varies."""
    from plmsae.saes.config import SaeConfig
    from plmsae.training.grid import takes

    assert isinstance(config, SaeConfig)
    known = {
        **config.options,
        **{f"adam_{name}": value for name, value in config.training.get("adam", {}).items()},
        **config.training,
        "architecture": config.architecture,
        "k": config.k,
        "dictionary_size": config.dictionary_size,
        "expansion_factor": config.dictionary_size / config.d_model,
    }
    fitting = [
        name
        for name, member in pair.sweep.members().items()
        if member.architecture == config.architecture
        and all(
            getattr(member, key) == known[key]
            for key in pair.sweep.grid
            if key in known and takes(member.architecture, key)
        )
    ]
    return " or ".join(fitting)
