"""One SAE per layer, all trained alike: what is lost, what is found, and what stays the same over the depth of a model.

Per layer, on the same proteins: FVU, L0 and the share of dead latents; cross-entropy with the reconstruction in place
(`fidelity`, by the task that the model was trained on: masked residues, or the next one); concepts, unit and threshold
selected on validation proteins and scored on test proteins. Layers are resampled with the same proteins, so that
differences from one of them are paired. FVU compares how well each reconstructs what it reads, which is easier at some
layers than at others.

Latents of neighbouring layers are matched by the correlation of their activations (`matching`), and by the cosine of
their atoms where both read one residual stream: not across the final norm, which the last layer lies behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plmsae.evaluation.bootstrap import Interval, percentile_bounds
from plmsae.evaluation.concept_compare import Resampling, Tested, mean_interval
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.concepts import F1_BOUND, residue_letters
from plmsae.evaluation.fidelity import evaluate as evaluate_fidelity
from plmsae.evaluation.inputs import Inputs, Outcome, Proteins
from plmsae.evaluation.latent_matches import KINDS, Matched
from plmsae.evaluation.layer_matching import match_neighbours
from plmsae.evaluation.layers_figure import draw
from plmsae.evaluation.member_pass import Member
from plmsae.evaluation.protocols import protocols_of
from plmsae.evaluation.sae_compare import Comparison, compare
from plmsae.evaluation.sae_compare_report import concept_table, latent_table
from plmsae.plms.base import RESIDUAL

_ABOVE = "num_concepts_above_0_5"
_COMPARED = {"fvu": "fvu", "l0": "l0", "dead": "dead_fraction", "mean_f1": "mean_f1"}
_FIDELITY = ("delta_ce", "loss_recovered_mean", "loss_recovered_zero")


def evaluate(
    layers: Mapping[int, Inputs],
    output: Path,
    *,
    reference: int,
    failed: Mapping[int, str],
    fidelity: Mapping[str, Any],
    max_proteins: int | None,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    match_thresholds: Sequence[float],
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Measure the SAEs of several layers of one model.

    Args:
        layers: Layer -> proteins, SAE, model and store; ascending, all with the same model object.
        output: Folder that gets `layers`, `matches`, `latents`, `concepts` (Parquet and CSV), `table.csv` for people,
            the figure, and below `fidelity/layer<l>` the files of that evaluation.
        reference: The layer that differences are taken from.
        failed: Layer -> why it has no SAE.
        fidelity: Parameters of `fidelity.evaluate`.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_instances: Annotations that a concept needs in each split.
        min_proteins: Proteins with one that it needs.
        thresholds: Ascending thresholds on normalised activations.
        match_thresholds: Ascending similarities that shares of matched latents are given for.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, permutation and bootstrap.
    """
    how = Resampling(num_resamples, confidence, seed)
    order = [reference, *(layer for layer in layers if layer != reference)]
    found = compare(
        Proteins(layers[reference].sequences),
        [_member(layer, layers[layer]) for layer in order],
        max_proteins=max_proteins,
        min_instances=min_instances,
        min_proteins=min_proteins,
        thresholds=thresholds,
        match=False,
        match_thresholds=[],
        num_resamples=num_resamples,
        confidence=confidence,
        max_tokens=max_tokens,
        threads=threads,
        seed=seed,
    )
    matched = match_neighbours(
        [_member(layer, inputs) for layer, inputs in layers.items()],
        [inputs.mean for inputs in layers.values()],
        found.data,
        thresholds=match_thresholds,
        how=how,
        threads=threads,
    )
    folder = output / "fidelity"
    lost = {layer: _fidelity(inputs, folder / f"layer{layer}", fidelity) for layer, inputs in layers.items()}
    letters = mean_interval(residue_letters(found.data, how).tested, confidence) if found.tested else None
    rows = [_row(layer, order.index(layer), found, lost[layer], confidence) for layer in layers]
    table = pd.DataFrame([*rows, *({"layer": layer, "failed": reason} for layer, reason in failed.items())])
    table = table.sort_values("layer", ignore_index=True)
    write_table(table, output / "layers")
    matches = pd.DataFrame(_matches(list(layers), matched, layers))
    middle = match_thresholds[len(match_thresholds) // 2]
    _readable(table, matches, middle).to_csv(output / "table.csv", index=False, lineterminator="\n")
    if len(matches):
        write_table(matches, output / "matches")
        names = [f"layer{layer}" for layer in layers][1:]
        latents = [latent_table(name, each) for name, each in zip(names, matched, strict=True)]
        write_table(pd.concat(latents, ignore_index=True).rename(columns={"sae": "layer"}), output / "latents")
    if found.tested:
        write_table(concept_table(found), output / "concepts")
    config = layers[reference].sae.config
    draw(table, matches, middle, letters, f"{config.plm}, {config.hook}", output / "figures" / "layers.png")
    metrics = _metrics(found, rows, matches, middle) | {"num_layers": len(rows), "num_failed_layers": len(failed)}
    return Outcome(metrics, _summary(found, table, failed, letters, how))


def _member(layer: int, inputs: Inputs) -> Member:
    return Member(f"layer{layer}", inputs.sae.requires_grad_(False), inputs.plm)


def _fidelity(inputs: Inputs, folder: Path, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """`protocol`, the task that the model was trained on, and metrics by it; none where the model has no scores."""
    if inputs.plm.objective == "none":
        return {}
    folder.mkdir(parents=True)
    protocol = protocols_of(inputs.plm, 0)[0]
    prefix, found = f"{protocol}_", evaluate_fidelity(inputs, folder, **parameters).metrics
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)} | {
        "protocol": protocol
    }


def _put(row: dict[str, Any], name: str, interval: Interval) -> None:
    for suffix, number in (("", interval.value), ("_low", interval.low), ("_high", interval.high)):
        row[name + suffix] = float(number) if np.isfinite(number) else np.nan


def _row(layer: int, place: int, found: Comparison, lost: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """One layer; `place` is its number in the comparison, 0 for the one that differences are taken from."""
    config = found.members[place].sae.config
    row: dict[str, Any] = {
        "layer": layer,
        "hook": config.hook,
        "architecture": config.architecture,
        "dictionary_size": config.dictionary_size,
    }
    for name, title in _COMPARED.items():
        if name in found.values[place]:
            _put(row, title, found.values[place][name])
            same = Interval(0.0, 0.0, 0.0)
            _put(row, f"{title}_minus_reference", found.differences[place - 1][name] if place else same)
    if found.tested:
        _put(row, _ABOVE, _above(found.tested[place], confidence))
    row |= {"protocol": lost.get("protocol", ""), "ce_clean": lost.get("ce_clean", np.nan)}
    for name in _FIDELITY:
        for suffix in ("", "_low", "_high"):
            row[name + suffix] = lost.get(name + suffix, np.nan)
    return row | {"failed": ""}


def _above(tested: Tested, confidence: float) -> Interval:
    """Concepts whose best latent has a test F1 above one half."""
    low, high = percentile_bounds((tested.samples > F1_BOUND).sum(axis=1).astype(np.float64), confidence)
    return Interval(float((tested.scores.f1 > F1_BOUND).sum()), float(low), float(high))


def _matches(order: Sequence[int], matched: Sequence[Matched], layers: Mapping[int, Inputs]) -> list[dict[str, Any]]:
    """One row per layer but the first and threshold: shares of latents with a match in the layer before."""
    names = {"of_other": "of_layer", "of_first": "of_previous", "one_to_one": "one_to_one"}
    rows = []
    for place, each in enumerate(matched, start=1):
        previous, layer = order[place - 1], order[place]
        same_stream = layers[layer].sae.config.hook != RESIDUAL or layer < layers[layer].plm.num_layers
        for number, threshold in enumerate(each.thresholds):
            row: dict[str, Any] = {"previous": previous, "layer": layer, "threshold": threshold}
            for kind in KINDS:
                row[f"num_{names[kind]}"] = int(each.fired[kind].sum())
                _put(row, names[kind], each.shares[kind][number])
                row[f"{names[kind]}_null"] = each.null[kind][number].value
            atoms = same_stream and each.cosine_shares is not None and each.cosine_null is not None
            row["atoms"] = each.cosine_shares[number] if atoms and each.cosine_shares else np.nan
            row["atoms_null"] = each.cosine_null[number] if atoms and each.cosine_null else np.nan
            rows.append(row)
    return rows


def _metrics(
    found: Comparison, rows: Sequence[Mapping[str, Any]], matches: pd.DataFrame, threshold: float
) -> dict[str, float | int]:
    metrics: dict[str, float | int] = dict(found.data.sizes())
    for row in rows:
        for title in (*_COMPARED.values(), _ABOVE, *_FIDELITY):
            values = [float(row.get(title + suffix, np.nan)) for suffix in ("", "_low", "_high")]
            if np.isfinite(values).all():
                task = f"{row['protocol']}_" if title in _FIDELITY else ""
                name = f"layer{row['layer']}_{task}{title}"
                metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = values
    if len(matches):
        text = f"{threshold:g}".replace(".", "_")
        for _, row in matches[matches["threshold"] == threshold].iterrows():
            metrics[f"layer{row['layer']}_matched_above_{text}"] = float(row["of_layer"])
            metrics[f"layer{row['layer']}_matched_above_{text}_null"] = float(row["of_layer_null"])
    return metrics


def _readable(table: pd.DataFrame, matches: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The table for people; what is not known stays empty."""
    shown = {
        "fvu": ("FVU", 4),
        "l0": ("L0", 1),
        "dead_fraction": ("dead", 3),
        "mean_f1": ("mean best F1", 3),
        _ABOVE: ("concepts above 0.5", 0),
        "delta_ce": ("increase of the loss (nats)", 4),
        "loss_recovered_mean": ("loss recovered, against mean (%)", 1),
    }
    part = matches[matches["threshold"] == threshold].set_index("layer") if len(matches) else matches
    rows = []
    for _, row in table.iterrows():
        cells = {"layer": str(row["layer"])}
        for name, (title, digits) in shown.items():
            if name in table:
                cells[title] = _interval(row, name).text(digits) if np.isfinite(row[name]) else ""
        if row["layer"] in part.index:
            match = part.loc[row["layer"]]
            null = f" (permuted: {match['of_layer_null']:.2f})"
            cells[f"latents of the layer before, r >= {threshold:g}"] = f"{match['of_layer']:.2f}{null}"
        if row["failed"]:
            cells["FVU"] = row["failed"]
        rows.append(cells)
    return pd.DataFrame(rows).fillna("")


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(*(float(row[name + suffix]) for suffix in ("", "_low", "_high")))


def _summary(
    found: Comparison, table: pd.DataFrame, failed: Mapping[int, str], letters: Interval | None, how: Resampling
) -> str:
    sizes, config = found.data.sizes(), found.members[0].sae.config

    def over(name: str, digits: int) -> str:
        known = table[table[name].notna()] if name in table else table[:0]
        return "; ".join(f"{row['layer']}: " + _interval(row, name).text(digits) for _, row in known.iterrows())

    text = (
        f"One {config.architecture} SAE of {config.dictionary_size:,} latents per layer of {config.plm} "
        f"({config.hook}), on {sizes['num_proteins_test']:,} test proteins ({sizes['num_residues_test']:,} residues). "
        f"FVU by layer: {over('fvu', 4)}. Share of latents that never fire there: {over('dead_fraction', 3)}. "
    )
    if recovered := over("loss_recovered_mean", 1):
        text += f"Loss recovered against the mean ablation, %: {recovered}. "
    if found.tested and letters is not None:
        text += (
            f"Mean best F1 over {sizes['num_concepts']} concepts: {over('mean_f1', 3)}; the residue's letter reaches "
            f"{letters.text()}. "
        )
    for layer, reason in failed.items():
        text += f"Layer {layer} has no SAE: {reason}. "
    return text + f"Brackets: {how.confidence:.0%} bootstrap intervals over test proteins, seed {how.seed}."
