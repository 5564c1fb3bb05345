"""Stage `extract_activations`: hidden states of a protein language model as a shuffled store of row blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from plmsae.errors import UserError
from plmsae.params import Params
from plmsae.stages.spec import Input, Resources, Stage, StageContext, StageResult

if TYPE_CHECKING:
    from pathlib import Path


class PlaceParams(Params):
    """A further place."""

    layer: int = Field(ge=0, description="As `layer` of the stage.")
    hook: str = Field(default="residual", description="As `hook` of the stage.")


class ExtractActivationsParams(Params):
    """Parameters of `extract_activations`."""

    plm: str = Field(
        default="esm_small",
        min_length=1,
        description="Protein language model: esm_small (bundled), the name of an ESM-2, ESM C, ESMFold, ProtT5 or "
        "ProGen2 model, or a checkpoint folder, local or s3:// (docs/how-to/plms.md).",
    )
    plm_revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of a hub model, or the sha256:<hex> that local weights must have.",
    )
    layer: int = Field(
        default=4,
        ge=0,
        description="0 is the embedding, l the residual stream after block l, the last one after the final LayerNorm.",
    )
    hook: str = Field(default="residual", description="Where in the layer; `residual` is the residual stream.")
    also: list[PlaceParams] = Field(
        default=[],
        description="Further places, [{layer: 5}, {layer: 3, hook: mlp}]: each gets a store of its own in the same "
        "pass of the model. `train_sae.layer` and `train_sae.hook` choose one.",
    )
    dtype: Literal["bfloat16", "float16", "float32", "int8"] = Field(
        default="bfloat16",
        description="Stored type; the relative rounding error is reported. int8 has a scale per row: half the space of "
        "bfloat16 and several times its error, the more the farther single dimensions stand out.",
    )
    block_rows: int = Field(
        default=2048, ge=1, le=1_048_576, description="Rows (residues) of a block, the unit of reading."
    )
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32",
        description="Type of the model's matrix products; sums, norms and softmax are in float32 always. bfloat16 "
        "reports its error against float32; auto takes it where the processor multiplies it in hardware.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu", description="Where the model runs; auto takes a GPU if there is one."
    )
    max_tokens_per_batch: int = Field(
        default=4096, ge=16, le=1_048_576, description="Tokens that go through the model at once."
    )
    shuffle_pool_rows: int = Field(
        default=262_144,
        ge=1,
        le=16_777_216,
        description="Rows that are shuffled across proteins and written together; also the unit of resuming.",
    )
    non_finite: Literal["refuse", "mask"] = Field(
        default="refuse",
        description="Residues with values that are not finite in the stored type (float16 ends at 65504): refuse the "
        "run and name the first, or mask them: leave them out, counted and listed in `masked.csv`.",
    )
    threads: int = Field(default=2, ge=1, le=256, description="CPU cores; the result does not depend on it.")
    seed: int = Field(default=0, ge=0, description="Seed of the shuffling.")
    store: str | None = Field(
        default=None,
        description="s3://BUCKET/PREFIX to keep the activations in; null keeps them in the stage's output folder.",
    )
    share: str | None = Field(
        default=None,
        description="I/N makes the I-th of N shares of the work, into `store` or `shared`, and no store yet; when all "
        "are done, a run with null puts it together.",
    )
    shared: str | None = Field(
        default=None,
        description="Folder in which several workers keep the parts that they have finished; null keeps them with the "
        "checkpoints.",
    )

    @field_validator("store")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"s3://[^/\s@:]+(/[^\s]*)?", value):
            raise ValueError("write s3://BUCKET/PREFIX; endpoint and credentials come from the AWS_* variables")
        return value

    @field_validator("share")
    @classmethod
    def _share(cls, value: str | None) -> str | None:
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", value or "1/1")
        if found is None or int(found[1]) > int(found[2]):
            raise ValueError("write I/N with I from 1 to N, e.g. 2/4")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ExtractActivationsParams:
        places = [(self.layer, self.hook), *((place.layer, place.hook) for place in self.also)]
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"also: layer {place[0]} ({place[1]}) stands twice")
        if self.share is not None and self.store is None and self.shared is None:
            raise ValueError("a share must be left where the others are: give store (s3://...) or shared (a folder)")
        return self


STAGE = Stage(
    id="extract_activations",
    summary="Embed the train and valid proteins with a protein language model and store shuffled activations.",
    params=ExtractActivationsParams,
    inputs=(Input("sequences", "sequences", "ingest"), Input("validation", "report", "validate")),
    kind="activations",
    run="plmsae.stages.extract_activations:run",
    code=("activations", "artifacts", "plms", "proteins", "validation"),
    knobs=("plm", "layer", "store", "seed"),
    resources=Resources(cpu=4, memory_gib=16, retry="io", timeout_hours=24),
    resumable=True,
)


def run(context: StageContext) -> StageResult:
    """Extract, check the post-conditions, report; or make a share of the work.

    Raises:
        UserError: Unknown model, layer or hook; a bucket that is not there or may not be written.
        DataError: Sequences that the model cannot take, values that are not finite (unless they are masked), or a store
            that fails its checks.
        TryAgainError: The model's hub or the bucket cannot be reached.
    """
    import pandas as pd
    import torch

    from plmsae.activations.extract import extract
    from plmsae.activations.places import store_folders
    from plmsae.activations.plan import SPLITS, Settings
    from plmsae.activations.precision import relative_errors, sample
    from plmsae.activations.report import described, measured
    from plmsae.activations.upload import publish
    from plmsae.artifacts.s3 import S3Uri
    from plmsae.plms import load_plm
    from plmsae.plms.base import Place

    params: ExtractActivationsParams = context.params
    torch.set_num_threads(params.threads)
    device, precision = _device(params), _precision(params)
    plm = load_plm(params.plm, params.plm_revision, root=context.root, precision=precision, device=device)
    settings = Settings(
        layer=params.layer,
        hook=params.hook,
        dtype=params.dtype,
        block_rows=params.block_rows,
        max_tokens_per_batch=params.max_tokens_per_batch,
        shuffle_pool_rows=params.shuffle_pool_rows,
        seed=params.seed,
        non_finite=params.non_finite,
        precision=precision,
    )
    also = [Place(place.layer, place.hook) for place in params.also]
    sequences = pd.read_parquet(
        context.inputs["sequences"] / "sequences.parquet",
        columns=["accession", "offset", "sequence", "length", "split"],
    )
    resume_key = _resume_key(context, device, precision)
    statistics = extract(
        plm,
        sequences,
        context.output,
        context.root / params.shared / resume_key if params.shared else context.checkpoints,
        settings,
        also=also,
        sequences_sha256=context.manifests["sequences"].files["sequences.parquet"].sha256,
        threads=params.threads,
        store=S3Uri.parse(params.store, "extract_activations.store") if params.store else None,
        resume_key=resume_key,
        share=_share(params),
    )
    if not statistics:
        return _shared_result(context, params)
    num_residues = sequences.groupby("split")["length"].sum().astype(int).to_dict()
    num_proteins = {split: int((sequences["split"] == split).sum()) for split in SPLITS}
    everywhere = [settings, *(settings.at(place) for place in also)]
    errors: list[float | None] = [None] * len(everywhere)
    if precision != "float32":
        exact = load_plm(params.plm, params.plm_revision, root=context.root, device=device)
        errors = [*relative_errors(plm, exact, sample(sequences, params.seed), [one.place for one in everywhere])]
    metrics: dict[str, float | int] = {f"num_proteins_{split}": number for split, number in num_proteins.items()}
    summaries = []
    folders = store_folders(context.output, [(one.layer, one.hook) for one in everywhere])
    for one, folder, counted, error in zip(everywhere, folders, statistics, errors, strict=True):
        _check(folder, num_residues)
        publish(folder)
        suffix = "" if one is settings else f"_layer{one.layer}_{one.hook}"
        metrics |= {f"{name}{suffix}": value for name, value in measured(folder, one, counted, error).items()}
        summaries.append(described(folder, one, counted, error, num_proteins))
    return StageResult(metrics, " ".join(summaries))


def _device(params: ExtractActivationsParams) -> str:
    import torch

    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise UserError(
            "there is no GPU that PyTorch can use", where="extract_activations.device", fix="set it to auto or cpu"
        )
    return "cuda" if there and params.device != "cpu" else "cpu"


def _precision(params: ExtractActivationsParams) -> Literal["float32", "bfloat16"]:
    if params.precision != "auto":
        return params.precision
    from plmsae.plms.linear import has_fast_bfloat16

    return "bfloat16" if _device(params) == "cuda" or has_fast_bfloat16() else "float32"


def _resume_key(context: StageContext, device: str, precision: str) -> str:
    """Names what the bytes of a part depend on; workers with equal keys take each other's parts over."""
    from pathlib import Path
    from platform import machine

    import torch

    import plmsae
    from plmsae.artifacts.checksums import sha256_bytes, sha256_tree
    from plmsae.params import canonical_json

    package = Path(plmsae.__file__).parent
    made_from = {
        "params": context.params.model_dump(
            mode="json", exclude={"layer", "hook", "also", "threads", "store", "share", "shared"}
        ),
        "sequences": context.manifests["sequences"].files["sequences.parquet"].sha256,
        "code": sha256_tree([Path(__file__), *(package / name for name in STAGE.code)], package),
        "platform": [torch.__version__, machine(), torch.backends.cpu.get_cpu_capability(), device, precision],
    }
    return sha256_bytes(canonical_json(made_from).encode())[:32]


def _share(params: ExtractActivationsParams) -> tuple[int, int] | None:
    if params.share is None:
        return None
    number, _, count = params.share.partition("/")
    return int(number), int(count)


def _shared_result(context: StageContext, params: ExtractActivationsParams) -> StageResult:
    import json

    from plmsae.activations.places import SHARE

    record = json.loads((context.output / SHARE).read_text(encoding="utf-8"))
    num_parts = len(next(iter(record["parts"].values())))
    return StageResult(
        {"num_parts": num_parts},
        f"Share {params.share} of an extraction: {num_parts} finished parts in {params.store or params.shared}. When "
        "all shares are done, a run with `share: null` puts the store together.",
    )


def _check(folder: Path, num_residues: Mapping[str, int]) -> None:
    from plmsae.activations.check import check_store
    from plmsae.activations.metadata import read_metadata
    from plmsae.validation.store import require_sound_store

    chunks = check_store(folder, num_residues)
    require_sound_store(
        chunks.assign(chunk=chunks["split"] + "/" + chunks["chunk"]),
        num_rows=sum(read_metadata(folder).num_tokens.values()),
        where=str(folder),
    )
