"""Fidelity: what the model loses when its hidden state is replaced by the SAE's reconstruction.

Cross-entropy of the true residues, in nats, with the hidden state at the SAE's hook untouched (`clean`), replaced by
the reconstruction (`sae`), by zeros (`zero`), by the mean activation of the training proteins (`mean`), and moved in a
random direction by as much as the reconstruction errs (`random`).

A masked model has the protocols `masked`, the task that it was trained on; `unmasked`, which feeds the sequence as it
is (InterPLM, Simon & Zou 2024), nearly copies it, and so mostly asks whether the identity of residues survives; and on
request `single`, which masks one residue at a time, as pseudo-perplexity does (Salazar et al. 2020). A causal model has
`causal` alone, the next residue. `protocols` says what is fed and scored in each.

Loss recovered is 100 · (CE_ablated − CE_sae) / (CE_ablated − CE_clean) percent, against zeros or mean, and never
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
from plmsae.evaluation.fidelity_figure import draw, draw_amino_acids
from plmsae.evaluation.fidelity_letters import by_amino_acid
from plmsae.evaluation.fidelity_quantities import ABLATIONS, compare, loss_names
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.protocols import CAUSAL, MASKED, PROTOCOLS, SINGLE, UNMASKED, protocols_of
from plmsae.evaluation.splice import CLEAN, MEAN, RANDOM, SAE, WITH_ERROR, ZERO, Sums, measure
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress

LEVELS = ("token", "sequence")


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    max_proteins: int | None,
    masked_share: float,
    single_mask_residues: int,
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
        output: Folder that gets `per_sequence.parquet`, `fidelity.csv`, `amino_acids.csv`, `cross_entropy.csv` and the
            figures.
        max_proteins: A seeded subset of this many test proteins; None for all.
        masked_share: Share of residues masked in the masked protocol.
        single_mask_residues: Residues of each sequence that are masked one at a time; 0: without this protocol.
        error_term: Also measure the reconstruction plus its error, which must cost nothing.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, masking, random errors and bootstrap.
    """
    proteins = inputs.split("test", max_proteins, seed)
    measured = _measure_all(inputs, proteins, masked_share, single_mask_residues, error_term, max_tokens, threads, seed)
    protocols = protocols_of(inputs.plm, single_mask_residues)
    interventions = (CLEAN, SAE, ZERO, MEAN, RANDOM, *((WITH_ERROR,) if error_term else ()))
    sums = measured.of_sequence
    owners = pd.factorize(proteins["accession"], sort=True)[0]
    _per_sequence(proteins, sums, protocols, interventions).to_parquet(output / "per_sequence.parquet", index=False)
    found = _statistics(sums, owners, protocols, interventions, num_resamples, confidence, seed)
    letters = by_amino_acid(
        measured.of_letter,
        owners,
        protocols,
        interventions,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )
    tables = {
        "fidelity.csv": _table(found),
        "amino_acids.csv": letters,
        "cross_entropy.csv": _plot_table(found, protocols),
    }
    for name, table in tables.items():
        table.to_csv(output / name, index=False, float_format="%.6g", lineterminator="\n")
    draw(found, protocols, confidence, inputs.sae.config.layer, output / "figures" / "fidelity.png")
    draw_amino_acids(letters, protocols[0], confidence, output / "figures" / "amino_acids.png")
    counts = {
        "num_proteins": int(proteins["accession"].nunique()),
        "num_residues": int(sums["num_residues"].sum()),
        **{f"num_{name}_residues": int(sums[f"{name}_num"].sum()) for name in protocols if name != UNMASKED},
    }
    return Outcome(
        metrics={**counts, **_metrics(found, protocols)}, summary=_summary(found, protocols, counts, inputs, confidence)
    )


def _measure_all(
    inputs: Inputs,
    proteins: pd.DataFrame,
    masked_share: float,
    single_mask_residues: int,
    error_term: bool,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Sums:
    """`splice.measure` over batches, put back into the order of `proteins`."""
    batches = length_sorted_batches(proteins["length"].to_numpy(), max_tokens)
    sequences = proteins["sequence"].tolist()
    keys = [
        f"{accession}:{offset}" for accession, offset in zip(proteins["accession"], proteins["offset"], strict=True)
    ]

    def run(batch: NDArray[np.int64]) -> Sums:
        return measure(
            inputs.plm,
            inputs.sae,
            inputs.mean,
            [sequences[row] for row in batch],
            [keys[row] for row in batch],
            masked_share=masked_share,
            single_mask_residues=single_mask_residues,
            error_term=error_term,
            max_tokens=max_tokens,
            seed=seed,
        )

    pieces = []
    with Progress("evaluate@fidelity", int(proteins["length"].sum()), "residues") as progress:
        for piece in ordered_map(run, batches, threads):
            pieces.append(piece)
            progress.update(int(piece.of_sequence["num_residues"].sum()))
    place = np.argsort(np.concatenate(batches))
    return Sums(
        _in_order([piece.of_sequence for piece in pieces], place),
        _in_order([piece.of_letter for piece in pieces], place),
    )


def _in_order(pieces: list[dict[str, Floats]], place: NDArray[np.int64]) -> dict[str, Floats]:
    return {name: np.concatenate([piece[name] for piece in pieces])[place] for name in pieces[0]}


def _per_sequence(
    proteins: pd.DataFrame, sums: dict[str, Floats], protocols: tuple[str, ...], interventions: tuple[str, ...]
) -> pd.DataFrame:
    table = proteins[["accession", "offset"]].assign(num_residues=sums["num_residues"].astype(np.int64))
    for protocol in protocols:
        table[f"num_{protocol}"] = sums[f"{protocol}_num"].astype(np.int64)
        for name in loss_names(interventions):
            table[f"{protocol}_{name}"] = sums[f"{protocol}_{name}"] / sums[f"{protocol}_num"]
    count = sums["num_residues"]
    mean = sums["total"].sum(axis=0) / count.sum()
    # About the mean of all of these residues, so that FVU is a ratio of two sums over sequences.
    variation = sums["squared_norm"] - 2 * np.einsum("sd,d->s", sums["total"], mean) + count * np.square(mean).sum()
    return table.assign(
        mean_squared_error=sums["squared_error"] / count, variance=variation / count, l0=sums["num_active"] / count
    )


def _statistics(
    sums: dict[str, Floats],
    owners: NDArray[np.int64],
    protocols: tuple[str, ...],
    interventions: tuple[str, ...],
    num_resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Named intervals; a protein that was cut into windows is one unit of the bootstrap."""
    columns = dict(sums)
    columns["num_sequences"] = np.ones(len(owners))
    names = loss_names(interventions)
    for protocol in protocols:
        for name in names:
            column = f"{protocol}_{name}"
            columns[f"{column}_of_sequence"] = sums[column] / sums[f"{protocol}_num"]
    total = columns.pop("total")
    stacked = list(columns)
    wide = np.concatenate([np.stack([columns[name] for name in stacked], axis=1), total], axis=1)
    by_protein = group_sums(wide, owners)

    def statistics(values: Floats) -> dict[str, Floats]:
        parts = {name: values[:, place] for place, name in enumerate(stacked)}
        return _quantities(parts, values[:, len(stacked) :], protocols, names)

    return intervals(by_protein, statistics, num_resamples=num_resamples, confidence=confidence, seed=seed)


def _quantities(
    parts: dict[str, Floats], total: Floats, protocols: tuple[str, ...], names: list[str]
) -> dict[str, Floats]:
    """Every reported quantity from sums over proteins; the leading axis is the resample."""
    found: dict[str, Floats] = {}
    for protocol in protocols:
        for level in LEVELS:
            suffix, count = ("", f"{protocol}_num") if level == "token" else ("_of_sequence", "num_sequences")
            losses = {name: parts[f"{protocol}_{name}{suffix}"] / parts[count] for name in names}
            found |= {f"{protocol}_{level}_{name}": value for name, value in compare(losses).items()}
    variance = parts["squared_norm"] - np.square(total).sum(axis=1) / parts["num_residues"]
    found["fvu"] = np.where(variance > 0, parts["squared_error"] / np.where(variance > 0, variance, 1.0), np.nan)
    found["l0"] = parts["num_active"] / parts["num_residues"]
    return found


def _table(found: dict[str, Interval]) -> pd.DataFrame:
    rows = []
    for name, interval in found.items():
        protocol, _, rest = name.partition("_")
        level, _, quantity = rest.partition("_")
        if protocol not in PROTOCOLS:  # of the sequence as it is, which is no loss
            protocol, level, quantity = UNMASKED, "token", name
        rows.append((protocol, level, quantity, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["protocol", "per", "quantity", "value", "low", "high"])


def _plot_table(found: dict[str, Interval], protocols: tuple[str, ...]) -> pd.DataFrame:
    """Empty columns where the declared ones were not measured."""
    names = (CLEAN, RANDOM, SAE, MEAN, ZERO)
    columns = {protocol: [np.nan] * len(names) for protocol in (MASKED, UNMASKED)}
    columns |= {protocol: [found[f"{protocol}_token_ce_{name}"].value for name in names] for protocol in protocols}
    return pd.DataFrame({"hidden_state": names, **columns})


def _metrics(found: dict[str, Interval], protocols: tuple[str, ...]) -> dict[str, float]:
    """The headline: per residue, with bounds for what a decision may rest on; `fidelity.csv` has all of it."""
    metrics: dict[str, float] = {}

    def put(name: str, interval: Interval, *, bounds: bool) -> None:
        if np.isfinite([interval.value, interval.low, interval.high]).all():
            metrics[name] = interval.value
            if bounds:
                metrics[f"{name}_low"], metrics[f"{name}_high"] = interval.low, interval.high

    put("fvu", found["fvu"], bounds=True)
    put("l0", found["l0"], bounds=False)
    for protocol in protocols:
        for name in (CLEAN, SAE, *ABLATIONS, RANDOM):
            put(f"{protocol}_ce_{name}", found[f"{protocol}_token_ce_{name}"], bounds=False)
        put(f"{protocol}_kl", found[f"{protocol}_token_kl_{SAE}"], bounds=False)
        put(f"{protocol}_kl_{RANDOM}", found[f"{protocol}_token_kl_{RANDOM}"], bounds=False)
        for name in (f"delta_ce_{WITH_ERROR}", f"delta_ce_{RANDOM}"):
            if f"{protocol}_token_{name}" in found:
                put(f"{protocol}_{name}", found[f"{protocol}_token_{name}"], bounds=False)
        for quantity in (f"delta_ce_{SAE}", *(f"loss_recovered_{ablation}" for ablation in ABLATIONS)):
            short = f"{protocol}_{quantity.removesuffix(f'_{SAE}')}"
            put(short, found[f"{protocol}_token_{quantity}"], bounds=True)
            put(f"{short}_per_sequence", found[f"{protocol}_sequence_{quantity}"], bounds=False)
        for quantity in ("excess_ce", "excess_kl", "kl_ratio"):
            put(f"{protocol}_{quantity}", found[f"{protocol}_token_{quantity}"], bounds=True)
    return metrics


def _summary(
    found: dict[str, Interval], protocols: tuple[str, ...], counts: dict[str, int], inputs: Inputs, confidence: float
) -> str:
    config, first = inputs.sae.config, protocols[0]

    def of(protocol: str, quantity: str) -> Interval:
        return found[f"{protocol}_token_{quantity}"]

    sentences = [
        f"On {counts['num_proteins']:,} test proteins ({counts['num_residues']:,} residues, "
        f"{counts[f'num_{first}_residues']:,} of them {_SCORED[first]}), putting the SAE's reconstruction in place of "
        f"layer {config.layer} of {config.plm} changes the {_TASK[first]} cross-entropy from "
        f"{of(first, 'ce_clean').value:.3f} by {of(first, 'delta_ce_sae').text()} nats and recovers "
        f"{of(first, 'loss_recovered_mean').text(1)} % of what the mean ablation loses "
        f"({of(first, 'loss_recovered_zero').text(1)} % of the zero ablation's)."
    ]
    for protocol in protocols[1:]:
        sentences.append(
            f"{_OTHER[protocol]} it changes from {of(protocol, 'ce_clean').value:.3f} by "
            f"{of(protocol, 'delta_ce_sae').text()} nats, {of(protocol, 'loss_recovered_mean').text(1)} % recovered."
        )
    ratio = of(first, "kl_ratio")
    if np.isfinite(ratio.value):
        sentences.append(
            f"An error of the same length in a random direction costs {of(first, f'delta_ce_{RANDOM}').text()} nats; "
            f"the SAE's error changes the predictions {ratio.text(2)} times as much (KL)."
        )
    sentences.append(
        f"FVU on the same residues is {found['fvu'].text()} at {found['l0'].value:.1f} active latents per residue. "
        f"Brackets: {confidence:.0%} bootstrap intervals over proteins; percentages are not clipped."
    )
    return " ".join(sentences)


_SCORED = {MASKED: "masked", CAUSAL: "scored"}
_TASK = {MASKED: "masked", CAUSAL: "next-residue"}
_OTHER = {SINGLE: "With one residue masked at a time", UNMASKED: "Unmasked"}
