"""Steer the model with one latent on chosen proteins, and report what its predictions do about it.

Predictions are those of the unmasked sequence, where a protein language model mostly copies its input: a change of
the predicted residue takes a strong push there, a change of the distribution does not. Beside the latent stand random
directions that move every hidden state by exactly the same length: an effect that they have too is not the latent's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress
from plmsae.steering.choice import checked_latent, choose_latent
from plmsae.steering.clamp import random_directions
from plmsae.steering.figure import draw
from plmsae.steering.inputs import Source
from plmsae.steering.measure import Batch, Floats, measure
from plmsae.steering.statistics import Estimate, Sums, estimates, sums_of
from plmsae.steering.tables import LETTERS, write_tables


@dataclass(frozen=True)
class Outcome:
    """What was found: flat snake_case name -> finite number, and one paragraph of Markdown for people."""

    metrics: Mapping[str, float | int]
    summary: str


def steer(
    source: Source,
    rows: pd.DataFrame,
    output: Path,
    *,
    latent: int | None,
    clamp: float,
    strength: float,
    num_random_directions: int,
    num_top: int,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Hold a latent at `clamp` times its maximum and measure the change of the predictions.

    Args:
        source: Model and SAE.
        rows: The proteins, as `inputs.chosen_rows` gives them.
        output: Folder that gets `residues.parquet`, the CSV tables and the figure.
        latent: The latent; None takes the one of `choice.choose_latent`.
        clamp: The value it is held at, as a multiple of its maximum (0 switches it off).
        strength: Share of the way from its activation to that value; 0 is the untouched model.
        num_random_directions: Number of controls.
        num_top: Rows of `top_residues.csv`.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that run at once; the numbers do not depend on it.
        seed: Seed of the random directions and of the bootstrap.

    Raises:
        UserError: There is no such latent, or it is dead.
        DataError: No latent fires, a sequence cannot be encoded, or a result is not finite.
    """
    batches = length_sorted_batches(rows["length"].to_numpy(), max_tokens)
    sequences = rows["sequence"].to_numpy(dtype=object)
    how = "asked for"
    if latent is None:
        how = "chosen: half of its maximum or more on the most residues, of latents active on at most a tenth of them"
        latent = choose_latent(source, (list(sequences[batch]) for batch in batches), threads)
    latent = checked_latent(source.sae, latent)
    highest = float(source.sae.latent_max[latent])
    directions = random_directions(num_random_directions, source.sae.config.d_model, seed)

    def run(batch: NDArray[np.int64]) -> tuple[pd.DataFrame, Sums]:
        part = rows.iloc[batch]
        edited = _edited(part)
        measured = measure(
            source,
            part["sequence"].tolist(),
            part["accession"].tolist(),
            edited,
            latent=latent,
            value=clamp * highest,
            strength=strength,
            directions=directions,
        )
        return _residues(part, edited, measured), sums_of(measured, part["length"].tolist())

    tables, pieces = [], []
    with Progress("steer", int(rows["length"].sum()), "residues") as progress:
        for table, sums in ordered_map(run, batches, threads):
            tables.append(table)
            pieces.append(sums)
            progress.update(len(table))
    place = np.argsort(np.concatenate(batches))
    totals = {name: np.concatenate([piece[name] for piece in pieces])[place] for name in pieces[0]}
    owners = pd.factorize(rows["accession"], sort=True)[0]
    found = estimates(totals, owners, num_resamples=num_resamples, confidence=confidence, seed=seed)
    residues = pd.concat(tables).sort_values(["accession", "offset", "position"], kind="stable").reset_index(drop=True)
    write_tables(residues, found, output, num_top)
    random_kl = totals["random_kl"].sum(axis=0) / totals["num"].sum()
    draw(found, random_kl, latent, confidence, output / "figures" / "steer.png")
    metrics = _metrics(residues, found, random_kl, latent, highest, clamp, strength)
    return Outcome(metrics, _summary(metrics, found, how, source, confidence))


def _edited(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """bool [R] over the residues of all rows."""
    ranges = zip(rows["length"], rows["edit_start"], rows["edit_end"], strict=True)
    pieces = [(np.arange(length) >= start) & (np.arange(length) < end) for length, start, end in ranges]
    return np.concatenate(pieces)


def _residues(rows: pd.DataFrame, edited: NDArray[np.bool_], measured: Batch) -> pd.DataFrame:
    """One row per residue of `residues.parquet`."""
    change = measured.latent
    positions = [offset + 1 + np.arange(length) for offset, length in zip(rows["offset"], rows["length"], strict=True)]
    return pd.DataFrame(
        {
            "accession": np.repeat(rows["accession"].to_numpy(), rows["length"]),
            "offset": np.repeat(rows["offset"].to_numpy(), rows["length"]),
            "position": np.concatenate(positions).astype(np.int32),
            "residue": list("".join(rows["sequence"])),
            "edited": edited,
            "activation": measured.activation,
            "shift": measured.shift,
            "predicted_before": LETTERS[change.before],
            "predicted_after": LETTERS[change.after],
            "mean_abs_delta_logit": change.mean_abs,
            "max_abs_delta_logit": change.max_abs,
            "kl": change.kl,
            "random_kl": np.mean([control.kl for control in measured.controls], axis=0),
        }
    )


def _metrics(
    residues: pd.DataFrame,
    found: dict[str, Estimate],
    random_kl: Floats,
    latent: int,
    highest: float,
    clamp: float,
    strength: float,
) -> dict[str, float | int]:
    edited = residues["edited"].to_numpy()
    kl = residues["kl"].to_numpy()
    metrics: dict[str, float | int] = {
        "num_proteins": int(residues["accession"].nunique()),
        "num_residues": len(residues),
        "num_edited_residues": int(edited.sum()),
        "latent": latent,
        "latent_max": highest,
        "clamp_value": clamp * highest,
        "strength": strength,
        "mean_activation": float(residues["activation"].to_numpy()[edited].mean()),
        "active_share": float((residues["activation"].to_numpy()[edited] > 0).mean()),
        "mean_shift": float(residues["shift"].to_numpy()[edited].mean()),
        "max_abs_delta_logit": float(residues["max_abs_delta_logit"].max()),
        "kl_edited": float(kl[edited].mean()),
        "num_random_directions": len(random_kl),
        "num_random_directions_as_strong": int((random_kl >= found["kl"].value).sum()),
    }
    if not edited.all():
        metrics["kl_elsewhere"] = float(kl[~edited].mean())
    for quantity, name in (("kl", "kl"), ("mean_abs", "mean_abs_delta_logit"), ("changed", "changed_share")):
        for prefix in ("", "random_", "excess_"):
            estimate = found[prefix + quantity]
            metrics[prefix + name] = float(estimate.value)
            metrics[f"{prefix}{name}_low"] = float(estimate.low)
            metrics[f"{prefix}{name}_high"] = float(estimate.high)
    return metrics


def _summary(
    metrics: Mapping[str, float | int], found: dict[str, Estimate], how: str, source: Source, confidence: float
) -> str:
    config = source.sae.config
    change = found["probability"]
    order = np.argsort(change.value, kind="stable")
    up, down = int(order[-1]), int(order[0])
    return (
        f"Latent {metrics['latent']} ({how}) was held at {metrics['clamp_value']:.4g} (its maximum is "
        f"{metrics['latent_max']:.4g}; strength {metrics['strength']:g}) at layer {config.layer} of {config.plm} on "
        f"{metrics['num_edited_residues']:,} of {metrics['num_residues']:,} residues of {metrics['num_proteins']:,} "
        f"proteins, where it is {metrics['mean_activation']:.4g} on average. Per residue, the prediction moves by "
        f"{found['kl'].text()} nats (KL), logits by {found['mean_abs'].text()} in the mean and "
        f"{metrics['max_abs_delta_logit']:.3g} at most, and the likeliest amino acid changes at "
        f"{100 * metrics['changed_share']:.2f} % of the residues. {metrics['num_random_directions']} random directions "
        f"of the same length give {found['random_kl'].text()} nats and {100 * metrics['random_changed_share']:.2f} %; "
        f"{metrics['num_random_directions_as_strong']} of them are as strong as the latent. "
        f"Most gained: {LETTERS[up]} ({100 * change.value[up]:+.2f} percentage points); most lost: {LETTERS[down]} "
        f"({100 * change.value[down]:+.2f}). Nothing is masked. Brackets: {confidence:.0%} bootstrap intervals over "
        "proteins."
    )
