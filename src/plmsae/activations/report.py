"""What a finished store says of itself: the metrics and the summary of the stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plmsae.activations.metadata import read_metadata
from plmsae.activations.non_finite import describe_masked
from plmsae.activations.plan import Settings
from plmsae.activations.statistics import RowStatistics


def measured(
    folder: Path, settings: Settings, statistics: Mapping[str, RowStatistics], precision_error: float | None
) -> dict[str, float | int]:
    """Metric -> value; `precision_error` is that of `precision.relative_errors`, None in fp32."""
    train = statistics["train"]
    metrics: dict[str, float | int] = {
        **{f"num_tokens_{split}": int(counted.count) for split, counted in statistics.items()},
        "normaliser_scale": train.scale,
        "median_norm": train.median_norm,
        "num_outlier_rows": train.num_outliers,
        "centred_fraction": train.centred_fraction,
        "relative_rounding_error": train.relative_rounding_error,
    }
    if precision_error is not None:
        metrics["relative_precision_error"] = precision_error
    if settings.non_finite == "mask":
        num_masked = read_metadata(folder).num_masked or {}
        metrics |= {f"num_masked_{split}": num_masked.get(split, 0) for split in statistics}
    return metrics


def described(
    folder: Path,
    settings: Settings,
    statistics: Mapping[str, RowStatistics],
    precision_error: float | None,
    num_proteins: Mapping[str, int],
) -> str:
    """One paragraph for people."""
    train, store = statistics["train"], read_metadata(folder)
    text = (
        f"{int(train.count):,} residues of {num_proteins['train']:,} train proteins and "
        f"{int(statistics['valid'].count):,} of {num_proteins['valid']:,} valid proteins: layer {settings.layer} "
        f"({settings.hook}) of {store.plm}, {store.d_model} wide, stored as {settings.dtype} with a relative "
        f"rounding error of {train.relative_rounding_error:.1e}. Rows are scaled by 1/{train.scale:.4g} for training; "
        f"{train.num_outliers:,} rows have a norm above ten times the median ({train.median_norm:.4g}), and "
        f"{train.centred_fraction:.0%} of the mean squared norm is around the mean row."
    )
    if precision_error is not None:
        text += (
            f" The model's products were made in {settings.precision}: on a sample the hidden states differ from those "
            f"of float32 by {precision_error:.1e} of their norm."
        )
    return f"{text} {describe_masked(folder)}".rstrip()
