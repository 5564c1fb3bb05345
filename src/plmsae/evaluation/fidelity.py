"""Fidelity: what the model loses when its hidden state is replaced by the SAE's reconstruction.

Cross-entropy of the true residues, in nats, with the hidden state at the SAE's hook untouched (`clean`), replaced by
the reconstruction (`sae`), by zeros (`zero`) and by the mean activation of the training proteins (`mean`).

Two protocols. `unmasked` feeds the sequence as it is (InterPLM, Simon & Zou 2024): a protein language model nearly
copies its input, so this mostly asks whether the identity of residues survives. `masked` replaces a share of each
sequence's residues by the mask token, always the same ones, and scores those: what the model was trained to do.

Loss recovered is 100 · (CE_ablated − CE_sae) / (CE_ablated − CE_clean) percent, against either ablation, and never
clipped: below 0 the reconstruction is worse than the ablation. `token` averages over residues, `sequence` first
within and then over sequences. FVU = E|x − x̂|² / E|x − μ|² with the mean μ of the same residues. Intervals are
percentile bootstraps over proteins, paired across interventions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats, Interval, group_sums, intervals
from plmsae.evaluation.fidelity_figure import draw
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.splice import CLEAN, MEAN, PROTOCOLS, SAE, WITH_ERROR, ZERO, measure
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress

ABLATIONS = (ZERO, MEAN)
LEVELS = ("token", "sequence")
_SMALLEST_GAP = 1e-9  # nats between an ablation and the clean model, below which a ratio to it says nothing


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    max_proteins: int | None,
    masked_share: float,
    error_term: bool,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Measure fidelity on the test split.

    Args:
        inputs: Proteins, SAE, model and mean activation.
        output: Folder that gets `per_sequence.parquet`, `fidelity.csv`, `cross_entropy.csv` and the figure.
        max_proteins: A seeded subset of this many test proteins; None for all.
        masked_share: Share of residues masked in the masked protocol.
        error_term: Also measure the reconstruction plus its error, which must cost nothing.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, masking and bootstrap.
    """
    proteins = inputs.split("test", max_proteins, seed)
    sums = _measure_all(inputs, proteins, masked_share, error_term, max_tokens, threads, seed)
    interventions = (CLEAN, SAE, *ABLATIONS, *((WITH_ERROR,) if error_term else ()))
    _per_sequence(proteins, sums, interventions).to_parquet(output / "per_sequence.parquet", index=False)
    found = _statistics(proteins, sums, interventions, num_resamples, confidence, seed)
    table = _table(found)
    table.to_csv(output / "fidelity.csv", index=False, float_format="%.6g", lineterminator="\n")
    _plot_table(found).to_csv(output / "cross_entropy.csv", index=False, float_format="%.6g", lineterminator="\n")
    draw(found, confidence, inputs.sae.config.layer, output / "figures" / "fidelity.png")
    counts = {
        "num_proteins": int(proteins["accession"].nunique()),
        "num_residues": int(sums["num_residues"].sum()),
        "num_masked_residues": int(sums["masked_num"].sum()),
    }
    return Outcome(metrics={**counts, **_metrics(found)}, summary=_summary(found, counts, inputs, confidence))


def _measure_all(
    inputs: Inputs,
    proteins: pd.DataFrame,
    masked_share: float,
    error_term: bool,
    max_tokens: int,
    threads: int,
    seed: int,
) -> dict[str, Floats]:
    """`splice.measure` over batches, put back into the order of `proteins`."""
    batches = length_sorted_batches(proteins["length"].to_numpy(), max_tokens)
    sequences = proteins["sequence"].tolist()
    keys = [
        f"{accession}:{offset}" for accession, offset in zip(proteins["accession"], proteins["offset"], strict=True)
    ]

    def run(batch: NDArray[np.int64]) -> dict[str, Floats]:
        return measure(
            inputs.plm,
            inputs.sae,
            inputs.mean,
            [sequences[row] for row in batch],
            [keys[row] for row in batch],
            masked_share=masked_share,
            error_term=error_term,
            seed=seed,
        )

    pieces = []
    with Progress("evaluate@fidelity", int(proteins["length"].sum()), "residues") as progress:
        for piece in ordered_map(run, batches, threads):
            pieces.append(piece)
            progress.update(int(piece["num_residues"].sum()))
    place = np.argsort(np.concatenate(batches))
    return {name: np.concatenate([piece[name] for piece in pieces])[place] for name in pieces[0]}


def _per_sequence(proteins: pd.DataFrame, sums: dict[str, Floats], interventions: tuple[str, ...]) -> pd.DataFrame:
    table = proteins[["accession", "offset"]].assign(num_residues=sums["num_residues"].astype(np.int64))
    for protocol in PROTOCOLS:
        table[f"num_{protocol}"] = sums[f"{protocol}_num"].astype(np.int64)
        for kind, names in (("ce", interventions), ("kl", interventions[1:])):
            for name in names:
                column = f"{protocol}_{kind}_{name}"
                table[column] = sums[column] / sums[f"{protocol}_num"]
    return table.assign(
        mean_squared_error=sums["squared_error"] / sums["num_residues"], l0=sums["num_active"] / sums["num_residues"]
    )


def _statistics(
    proteins: pd.DataFrame,
    sums: dict[str, Floats],
    interventions: tuple[str, ...],
    num_resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Named intervals; a protein that was cut into windows is one unit of the bootstrap."""
    columns = dict(sums)
    columns["num_sequences"] = np.ones(len(proteins))
    for protocol in PROTOCOLS:
        for kind, names in (("ce", interventions), ("kl", interventions[1:])):
            for name in names:
                column = f"{protocol}_{kind}_{name}"
                columns[f"{column}_of_sequence"] = sums[column] / sums[f"{protocol}_num"]
    total = columns.pop("total")
    stacked = list(columns)
    owners = pd.factorize(proteins["accession"], sort=True)[0]
    wide = np.concatenate([np.stack([columns[name] for name in stacked], axis=1), total], axis=1)
    by_protein = group_sums(wide, owners)

    def statistics(values: Floats) -> dict[str, Floats]:
        parts = {name: values[:, place] for place, name in enumerate(stacked)}
        return _quantities(parts, values[:, len(stacked) :], interventions)

    return intervals(by_protein, statistics, num_resamples=num_resamples, confidence=confidence, seed=seed)


def _quantities(parts: dict[str, Floats], total: Floats, interventions: tuple[str, ...]) -> dict[str, Floats]:
    """Every reported quantity from sums over proteins; the leading axis is the resample."""
    found: dict[str, Floats] = {}
    for protocol in PROTOCOLS:
        for level in LEVELS:
            suffix, count = ("", f"{protocol}_num") if level == "token" else ("_of_sequence", "num_sequences")
            prefix = f"{protocol}_{level}"
            for name in interventions:
                found[f"{prefix}_ce_{name}"] = parts[f"{protocol}_ce_{name}{suffix}"] / parts[count]
            for name in interventions[1:]:
                found[f"{prefix}_kl_{name}"] = parts[f"{protocol}_kl_{name}{suffix}"] / parts[count]
                found[f"{prefix}_delta_ce_{name}"] = found[f"{prefix}_ce_{name}"] - found[f"{prefix}_ce_{CLEAN}"]
            for ablation in ABLATIONS:
                gap = found[f"{prefix}_ce_{ablation}"] - found[f"{prefix}_ce_{CLEAN}"]
                kept = found[f"{prefix}_ce_{ablation}"] - found[f"{prefix}_ce_{SAE}"]
                valid = np.abs(gap) > _SMALLEST_GAP
                found[f"{prefix}_loss_recovered_{ablation}"] = np.where(
                    valid, 100 * kept / np.where(valid, gap, 1.0), np.nan
                )
    variance = parts["squared_norm"] - np.square(total).sum(axis=1) / parts["num_residues"]
    found["fvu"] = np.where(variance > 0, parts["squared_error"] / np.where(variance > 0, variance, 1.0), np.nan)
    found["l0"] = parts["num_active"] / parts["num_residues"]
    return found


def _table(found: dict[str, Interval]) -> pd.DataFrame:
    rows = []
    for name, interval in found.items():
        protocol, _, rest = name.partition("_")
        level, _, quantity = rest.partition("_")
        if protocol not in PROTOCOLS:
            protocol, level, quantity = "unmasked", "token", name
        rows.append((protocol, level, quantity, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["protocol", "per", "quantity", "value", "low", "high"])


def _plot_table(found: dict[str, Interval]) -> pd.DataFrame:
    names = (CLEAN, SAE, MEAN, ZERO)
    columns = {protocol: [found[f"{protocol}_token_ce_{name}"].value for name in names] for protocol in PROTOCOLS}
    return pd.DataFrame({"hidden_state": names, **columns})


def _metrics(found: dict[str, Interval]) -> dict[str, float]:
    """The headline: per residue, with bounds for what a decision may rest on; `fidelity.csv` has all of it."""
    metrics: dict[str, float] = {}

    def put(name: str, interval: Interval, *, bounds: bool) -> None:
        if np.isfinite([interval.value, interval.low, interval.high]).all():
            metrics[name] = interval.value
            if bounds:
                metrics[f"{name}_low"], metrics[f"{name}_high"] = interval.low, interval.high

    put("fvu", found["fvu"], bounds=True)
    put("l0", found["l0"], bounds=False)
    for protocol in PROTOCOLS:
        for name in (CLEAN, SAE, *ABLATIONS):
            put(f"{protocol}_ce_{name}", found[f"{protocol}_token_ce_{name}"], bounds=False)
        put(f"{protocol}_kl", found[f"{protocol}_token_kl_{SAE}"], bounds=False)
        if f"{protocol}_token_delta_ce_{WITH_ERROR}" in found:
            name = f"delta_ce_{WITH_ERROR}"
            put(f"{protocol}_{name}", found[f"{protocol}_token_{name}"], bounds=False)
        for quantity in (f"delta_ce_{SAE}", *(f"loss_recovered_{ablation}" for ablation in ABLATIONS)):
            short = f"{protocol}_{quantity.removesuffix(f'_{SAE}')}"
            put(short, found[f"{protocol}_token_{quantity}"], bounds=True)
            put(f"{short}_per_sequence", found[f"{protocol}_sequence_{quantity}"], bounds=False)
    return metrics


def _summary(found: dict[str, Interval], counts: dict[str, int], inputs: Inputs, confidence: float) -> str:
    config = inputs.sae.config
    masked, unmasked = ({name: found[f"{p}_token_{name}"] for name in _NAMED} for p in PROTOCOLS)
    return (
        f"On {counts['num_proteins']:,} test proteins ({counts['num_residues']:,} residues, "
        f"{counts['num_masked_residues']:,} of them masked), putting the SAE's reconstruction in place of layer "
        f"{config.layer} of {config.plm} changes the masked cross-entropy from {masked['ce_clean'].value:.3f} by "
        f"{masked['delta_ce_sae'].text()} nats and recovers {masked['loss_recovered_mean'].text(1)} % of what the mean "
        f"ablation loses ({masked['loss_recovered_zero'].text(1)} % of the zero ablation's). Unmasked it changes from "
        f"{unmasked['ce_clean'].value:.3f} by {unmasked['delta_ce_sae'].text()} nats, "
        f"{unmasked['loss_recovered_mean'].text(1)} % recovered. FVU on the same residues is {found['fvu'].text()} at "
        f"{found['l0'].value:.1f} active latents per residue. Brackets: {confidence:.0%} bootstrap intervals over "
        "proteins; percentages are not clipped."
    )


_NAMED = ("ce_clean", "delta_ce_sae", "loss_recovered_mean", "loss_recovered_zero")
