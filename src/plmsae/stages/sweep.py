"""Stage `sweep`: many SAEs from one read of the activations, and the best of them in the form of `train_sae`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from plmsae.errors import UserError
from plmsae.params import Params, validate
from plmsae.stages.evaluation_params import ascending
from plmsae.stages.spec import ChildRun, Input, Plot, Resources, Stage, StageContext, StageResult
from plmsae.training.grid import check_grid, expand, varied
from plmsae.training.parameters import TrainSaeParams

if TYPE_CHECKING:
    from pathlib import Path

    from plmsae.training.member import Failed
    from plmsae.training.session import Result


class SweepParams(Params):
    """Parameters of `sweep`."""

    train_sae: dict[str, Any] = Field(
        {},
        description="Parameters of all members that are to differ from the section train_sae, which gives the others. "
        "The run records all of them.",
    )
    grid: dict[str, list[Any]] = Field(
        {"k": [16, 32, 64]},
        description="Parameter of train_sae -> values; every combination is a member. Members share their batches, so "
        "tokens, batch_size and the like cannot vary (docs/how-to/sweeps.md).",
    )
    select_by: Literal["concepts", "fidelity", "fvu"] = Field(
        "concepts",
        description="What the best member has most of on validation proteins: mean F1 over concepts of units that "
        "another part of them selected, masked loss recovered, or variance explained. The last two favour a large L0.",
    )
    max_proteins: int | None = Field(
        400, ge=1, description="Size of the seeded subset of the validation proteins; null takes all. Not used by fvu."
    )
    masked_share: float = Field(
        0.15, gt=0.0, le=1.0, description="Share of each sequence's residues that fidelity masks."
    )
    min_instances: int = Field(
        10, ge=1, description="Annotations that a concept needs in each of the two parts of the validation proteins."
    )
    min_proteins: int = Field(5, ge=1, description="Proteins with such an annotation that it needs in each of them.")
    scored_share: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="Share of the validation residues, whole homology clusters, that score the members by concepts; "
        "units and thresholds are selected on the others. InterPLM chose models on 0.2 of a validation set of 25,000 "
        "proteins; of a few hundred, half leaves more concepts to score.",
    )
    thresholds: list[float] = Field(
        [0.0, 0.15, 0.5, 0.6, 0.8],
        min_length=1,
        max_length=32,
        description="Ascending thresholds on activations divided by the unit's maximum; active is above (InterPLM).",
    )
    max_tokens: int = Field(4096, ge=16, le=1_048_576, description="Tokens that go through the model at once.")
    threads: int = Field(2, ge=1, le=256, description="Batches that run at once, on one core each, while choosing.")
    seed: int = Field(0, ge=0, lt=2**53, description="Seed of the subset, its parts and the masking.")

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        return ascending("thresholds", value)

    @field_validator("grid")
    @classmethod
    def _grid(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        try:
            check_grid(value)
        except UserError as error:
            raise ValueError(f"{error.problem}; {error.fix}") from error
        return value

    @model_validator(mode="after")
    def _members(self) -> SweepParams:
        # A file may leave most of train_sae to that section; only with it can the members be judged.
        if self.train_sae.keys() == TrainSaeParams.model_fields.keys():
            try:
                self.members()
            except UserError as error:
                raise ValueError(f"{error.problem}; {error.fix}") from error
        return self

    def members(self) -> dict[str, TrainSaeParams]:
        """Name -> complete parameters of every member.

        Raises:
            UserError: See `plmsae.training.grid.expand`.
        """
        return expand(validate(TrainSaeParams, self.train_sae, section="sweep.train_sae"), self.grid)


STAGE = Stage(
    id="sweep",
    summary="Train many sparse autoencoders on the same batches and choose the best on validation proteins",
    params=SweepParams,
    inputs=(
        Input("sequences", "sequences", "ingest"),
        Input("activations", "activations", "extract_activations"),
    ),
    inherits=("train_sae",),
    pipeline="sweep",
    kind="sae",
    run="plmsae.stages.sweep:run",
    code=("activations", "artifacts", "evaluation", "figures.py", "plms", "proteins", "saes", "training"),
    optional_files=("train_sae.sequences",),
    knobs=("grid", "select_by"),
    resources=Resources(cpu=4, memory_gib=16, gpu=1, retry="gpu", timeout_hours=48),
    resumable=True,
    plots=(Plot("members.csv", "l0", ("fvu",), "FVU against L0 of the members of the sweep"),),
    tracked=True,
)


def run(context: StageContext) -> StageResult:
    """Train all members, score them on validation proteins, write each and the best as `train_sae` does.

    Raises:
        UserError: Members that do not fit the store or each other, or a device that is not there.
        DataError: Activations that are not finite, all trainings diverged, or a score that cannot be made.
        TryAgainError: The bucket that holds the activations cannot be reached; the next run goes on from the last
            checkpoint.
    """
    import shutil

    from plmsae.training.comparison import Row, best, write_members
    from plmsae.training.figures import draw_pareto
    from plmsae.training.output import summary, write_json, write_result
    from plmsae.training.session import Inputs, Result, train_members

    params: SweepParams = context.params
    members = params.members()
    sequences = context.sources.get("train_sae.sequences")
    inputs = Inputs(context.inputs["activations"], sequences, context.root, context.checkpoints, context.nodes)
    ended = train_members(members, inputs)
    done = {name: end for name, end in ended.items() if isinstance(end, Result)}
    for name, result in done.items():
        folder = context.output / "members" / name
        write_result(result, folder)
        write_json(folder / "metrics.json", result.metrics)
        (folder / "summary.md").write_text(summary(result) + "\n", encoding="utf-8")
    scores = _scores(context, {name: context.output / "members" / name for name in done}, done)
    rows = []
    for name, end in ended.items():
        values = varied(params.grid, members[name])
        if isinstance(end, Result):
            fvu, l0, dead = (end.metrics[key] for key in ("fvu", "l0", "dead_fraction"))
            rows.append(Row(name, values, fvu, l0, dead, scores[name]))
        else:
            rows.append(Row(name, values, failed=_reason(end)))
    chosen = best(rows, params.select_by)
    shutil.copytree(context.output / "members" / chosen.name, context.output, dirs_exist_ok=True)
    write_members(context.output / "members.csv", rows, chosen.name)
    architectures = {name: member.architecture for name, member in members.items()}
    draw_pareto(rows, architectures, chosen.name, context.output / "figures" / "pareto.png")
    children = {
        row.name: ChildRun(
            params=members[row.name].model_dump(mode="json"),
            metrics={} if row.failed else {**done[row.name].metrics, f"valid_{params.select_by}": row.score},
            folder=None if row.failed else f"members/{row.name}",
            failed=row.failed or None,
        )
        for row in rows
    }
    counts = {"num_members": len(rows), "num_failed_members": len(rows) - len(done)}
    return StageResult(
        metrics={**done[chosen.name].metrics, **counts, f"valid_{params.select_by}": chosen.score},
        summary=f"{_choice(params, rows, chosen.name, chosen.score)} {summary(done[chosen.name])}",
        children=children,
    )


def _scores(context: StageContext, folders: Mapping[str, Path], results: Mapping[str, Result]) -> dict[str, float]:
    """What the members are chosen by, on validation proteins."""
    params: SweepParams = context.params
    if params.select_by == "fvu":
        return {name: result.metrics["fvu"] for name, result in results.items()}
    import torch

    from plmsae.evaluation.inputs import Inputs
    from plmsae.evaluation.selection import concept_scores, fidelity_scores
    from plmsae.saes import load_folder

    torch.set_num_threads(params.threads)
    first = next(iter(folders.values()))
    inputs = Inputs.load(context.inputs["sequences"], context.inputs["activations"], first, root=context.root)
    saes = {name: load_folder(folder / "sae").eval() for name, folder in folders.items()}
    if params.select_by == "fidelity":
        return fidelity_scores(
            inputs,
            saes,
            max_proteins=params.max_proteins,
            masked_share=params.masked_share,
            max_tokens=params.max_tokens,
            threads=params.threads,
            seed=params.seed,
        )
    return concept_scores(
        inputs,
        saes,
        max_proteins=params.max_proteins,
        min_instances=params.min_instances,
        min_proteins=params.min_proteins,
        thresholds=params.thresholds,
        max_tokens=params.max_tokens,
        threads=params.threads,
        seed=params.seed,
        scored_share=params.scored_share,
    )


def _reason(failed: Failed) -> str:
    place = f" ({failed.where})" if failed.where else ""
    return f"{failed.problem}{place}; last good step: {failed.last_good_step}"


_SCORES = {
    "concepts": "the mean F1 over concepts on validation proteins, {:.4f}",
    "fidelity": "the masked loss recovered on validation proteins, {:.2f} %",
    "fvu": "the fraction of variance unexplained on held-out proteins, {:.4f}",
}


def _choice(params: SweepParams, rows: list[Any], chosen: str, score: float) -> str:
    failed = sum(bool(row.failed) for row in rows)
    text = f"Of {len(rows)} SAEs that were trained on the same batches, `{chosen}` is best by "
    text += _SCORES[params.select_by].format(score)
    return text + (f" ({failed} of them diverged)." if failed else ".")
