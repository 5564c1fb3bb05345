"""Stage `extract_activations`: hidden states of a protein language model as a shuffled store of row blocks."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from plmsae.params import Params
from plmsae.stages.spec import Input, Resources, Stage, StageContext, StageResult


class ExtractActivationsParams(Params):
    """Parameters of `extract_activations`."""

    plm: str = Field(
        default="esm_small",
        min_length=1,
        description="Protein language model: esm_small (bundled), a facebook/esm2_* name, or a checkpoint folder.",
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
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Stored type; the relative rounding error is reported."
    )
    block_rows: int = Field(
        default=2048, ge=1, le=1_048_576, description="Rows (residues) of a block, the unit of reading."
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

    @field_validator("store")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"s3://[^/\s@:]+(/[^\s]*)?", value):
            raise ValueError("write s3://BUCKET/PREFIX; endpoint and credentials come from the AWS_* variables")
        return value


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
    """Extract, check the post-conditions, report.

    Raises:
        UserError: Unknown model, layer or hook; a bucket that is not there or may not be written.
        DataError: Sequences that the model cannot take, values that are not finite (unless they are masked), or a store
            that fails its checks.
        TryAgainError: The model's hub or the bucket cannot be reached.
    """
    from platform import machine

    import pandas as pd
    import torch

    from plmsae.activations.check import check_store
    from plmsae.activations.extract import SPLITS, extract
    from plmsae.activations.metadata import read_metadata
    from plmsae.activations.non_finite import describe_masked
    from plmsae.activations.parts import Settings
    from plmsae.activations.upload import publish
    from plmsae.artifacts.checksums import sha256_bytes
    from plmsae.artifacts.s3 import S3Uri
    from plmsae.plms import load_plm
    from plmsae.validation.store import require_sound_store

    params: ExtractActivationsParams = context.params
    torch.set_num_threads(params.threads)
    plm = load_plm(params.plm, params.plm_revision, root=context.root)
    settings = Settings(
        layer=params.layer,
        hook=params.hook,
        dtype=params.dtype,
        block_rows=params.block_rows,
        max_tokens_per_batch=params.max_tokens_per_batch,
        shuffle_pool_rows=params.shuffle_pool_rows,
        seed=params.seed,
        non_finite=params.non_finite,
    )
    sequences = pd.read_parquet(
        context.inputs["sequences"] / "sequences.parquet",
        columns=["accession", "offset", "sequence", "length", "split"],
    )
    platform = f"{machine()} {torch.backends.cpu.get_cpu_capability()}"
    statistics = extract(
        plm,
        sequences,
        context.output,
        context.checkpoints,
        settings,
        sequences_sha256=context.manifests["sequences"].files["sequences.parquet"].sha256,
        threads=params.threads,
        store=S3Uri.parse(params.store, "extract_activations.store") if params.store else None,
        # The name of the checkpoint folder is the hash of parameters, inputs and code.
        resume_key=sha256_bytes(f"{context.checkpoints.name} {torch.__version__} {platform}".encode())[:32],
    )
    num_residues = sequences.groupby("split")["length"].sum().astype(int).to_dict()
    chunks = check_store(context.output, num_residues)
    num_masked = read_metadata(context.output).num_masked or {}
    require_sound_store(
        chunks.assign(chunk=chunks["split"] + "/" + chunks["chunk"]),
        num_rows=sum(num_residues[split] - num_masked.get(split, 0) for split in SPLITS),
        where=str(context.output),
    )
    publish(context.output)
    train = statistics["train"]
    num_proteins = {split: int((sequences["split"] == split).sum()) for split in SPLITS}
    metrics: dict[str, float | int] = {
        **{f"num_tokens_{split}": int(statistics[split].count) for split in SPLITS},
        **{f"num_proteins_{split}": number for split, number in num_proteins.items()},
        "normaliser_scale": train.scale,
        "median_norm": train.median_norm,
        "num_outlier_rows": train.num_outliers,
        "centred_fraction": train.centred_fraction,
        "relative_rounding_error": train.relative_rounding_error,
    }
    if params.non_finite == "mask":
        metrics |= {f"num_masked_{split}": num_masked.get(split, 0) for split in SPLITS}
    summary = (
        f"{metrics['num_tokens_train']:,} residues of {num_proteins['train']:,} train proteins and "
        f"{metrics['num_tokens_valid']:,} of {num_proteins['valid']:,} valid proteins: layer {params.layer} "
        f"({params.hook}) of {plm.name}, {plm.d_model} wide, stored as {params.dtype} with a relative "
        f"rounding error of {train.relative_rounding_error:.1e}. Rows are scaled by 1/{train.scale:.4g} for training; "
        f"{train.num_outliers:,} rows have a norm above ten times the median ({train.median_norm:.4g}), and "
        f"{train.centred_fraction:.0%} of the mean squared norm is around the mean row."
    )
    return StageResult(metrics, f"{summary} {describe_masked(context.output)}".rstrip())
