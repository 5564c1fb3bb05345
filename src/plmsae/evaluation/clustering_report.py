"""Tables, metrics, figure and summary of the clustering evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.clustering_figure import draw
from plmsae.evaluation.clustering_pairs import Floats, Ints, Neighbourhoods, Pairs
from plmsae.evaluation.clustering_sample import Sampled
from plmsae.evaluation.clustering_tests import corrected, effect_intervals, permutation_p, structural_only, t_test
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.inputs import Outcome
from plmsae.saes.config import SaeConfig


def report(
    sampled: Sampled,
    proteins: pd.DataFrame,
    num_left_out: int,
    how: Neighbourhoods,
    config: SaeConfig,
    output: Path,
    *,
    splits: Sequence[str],
    threshold: float,
    min_proteins: int,
    num_permutations: int | None,
    margin: float,
    alpha: float,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> Outcome:
    """Test the sampled pairs and write everything; arguments as `clustering.evaluate`."""
    latents = np.flatnonzero(sampled.available >= min_proteins)
    number = np.full(len(sampled.available), -1, dtype=np.int64)
    number[latents] = np.arange(len(latents))
    groups = number[sampled.pairs.latent]
    pairs, groups = sampled.pairs.take(np.flatnonzero(groups >= 0)), groups[groups >= 0]
    table = latent_table(
        pairs,
        groups,
        latents,
        sampled.available[latents],
        how,
        permuted=num_permutations is not None,
        margin=margin,
        alpha=alpha,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )
    write_table(table, output / "latents")
    _readable(table, how, alpha).to_csv(output / "table.csv", index=False, lineterminator="\n")
    _pair_table(pairs, proteins, how).to_parquet(output / "pairs.parquet", index=False)
    draw(table, alpha, config.layer, output / "figures" / "clustering.png")
    metrics: dict[str, float | int] = {
        "num_proteins": int(proteins["accession"].nunique()),
        "num_residues": int(proteins["length"].sum()),
        "num_sequences_left_out": num_left_out,
        "num_latents_tested": len(latents),
        "num_latents_above_threshold": int((sampled.available > 0).sum()),
        "num_pairs": len(pairs),
    }
    for name in how.names:
        for prefix in ("", "held_out_"):
            found = (table[f"{name}_{prefix}p_corrected"] < alpha) & (table[f"{name}_{prefix}d"] > 0)
            metrics[f"num_{name}_{prefix}clustered"] = int(found.sum())
        metrics[f"num_{name}_permutation_clustered"] = int((table[f"{name}_permutation_p_corrected"] < alpha).sum())
        effects = table[f"{name}_d"].dropna()
        if len(effects):
            metrics[f"median_{name}_d"] = float(effects.median())
    if how.structure:
        metrics["num_structural_only_published"] = int(table["structural_only_published"].sum())
        clustered = table["structural_only_published"] & (table["structure_d"] > 0)
        metrics["num_structural_only_published_above_null"] = int(clustered.sum())
        metrics["num_structural_only"] = int(table["structural_only"].sum())
    return Outcome(metrics, _summary(metrics, how, config, splits, threshold, min_proteins, num_permutations, alpha))


def latent_table(
    pairs: Pairs,
    groups: Ints,
    latents: Ints,
    available: Ints,
    how: Neighbourhoods,
    *,
    permuted: bool,
    margin: float,
    alpha: float,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """One row per tested latent.

    Args:
        pairs: Pairs of the tested latents, by ascending latent.
        groups: [P] place of each pair's latent among the tested ones.
        latents: [K] the tested latents.
        available: [K] proteins on which each is above the threshold.
        how: Neighbourhoods.
        permuted: Whether the published null is the average of drawn permutations rather than its exact mean.
        margin: See `clustering.evaluate`.
        alpha: See there.
        num_resamples: See there.
        confidence: See there.
        seed: See there.
    """
    num = len(latents)
    exact, variance = pairs.exact_null()
    third = pairs.exact_third()
    held_out, _ = pairs.held_out_null()
    published = pairs.observed - (pairs.permuted if permuted else exact)
    conditional = pairs.observed - held_out
    low, high = effect_intervals(published, groups, num, num_resamples=num_resamples, confidence=confidence, seed=seed)
    columns: dict[str, object] = {
        "latent": latents,
        "num_proteins_above_threshold": available,
        "num_proteins": np.bincount(groups, minlength=num),
    }
    for place, name in enumerate(how.names):
        test = t_test(published[:, place], groups, num)
        columns |= {
            f"{name}_n": test.number,
            f"{name}_score": _means(pairs.observed[:, place], groups, num),
            f"{name}_null": _means((pairs.observed - published)[:, place], groups, num),
            f"{name}_t": test.t,
            f"{name}_p": test.p,
            f"{name}_p_corrected": corrected(test.p, num),
            f"{name}_d": test.d,
            f"{name}_d_low": low[:, place],
            f"{name}_d_high": high[:, place],
        }
        p = permutation_p(pairs.observed[:, place] - exact[:, place], variance[:, place], third[:, place], groups, num)
        columns |= {f"{name}_permutation_p": p, f"{name}_permutation_p_corrected": corrected(p, num)}
        test = t_test(conditional[:, place], groups, num)
        columns |= {
            f"{name}_held_out_t": test.t,
            f"{name}_held_out_p": test.p,
            f"{name}_held_out_p_corrected": corrected(test.p, num),
            f"{name}_held_out_d": test.d,
        }
    table = pd.DataFrame(columns)
    if not how.structure:
        return table
    only = structural_only(
        table["sequence_p_corrected"].to_numpy(),
        table["structure_p_corrected"].to_numpy(),
        conditional[:, 0],
        conditional[:, -1],
        groups,
        margin=margin,
        alpha=alpha,
    )
    return table.assign(
        ratio=table["structure_d"] / table["sequence_d"],
        structural_only_published=only.published,
        structural_only=only.tested,
        structural_only_p_corrected=only.p,
        sequence_below_margin_p=only.p_margin,
        structure_minus_sequence=only.difference,
        structure_minus_sequence_p=only.p_difference,
    )


def _readable(table: pd.DataFrame, how: Neighbourhoods, alpha: float) -> pd.DataFrame:
    """For people: one row per neighbourhood."""
    places = {"sequence": f"within {how.window} residues", "structure": f"within {how.radius:g} angstrom"}
    rows = []
    for name in how.names:
        above = table[f"{name}_d"] > 0
        apart = f"within {how.radius:g} angstrom, more than {name.removeprefix('apart_')} residues apart"
        effects = table[f"{name}_d"].dropna()
        rows.append(
            {
                "neighbours": places.get(name, apart),
                "latents tested": str(int((table[f"{name}_n"] > 0).sum())),
                "above the null by t test": str(int(((table[f"{name}_p_corrected"] < alpha) & above).sum())),
                "anchor held out": str(
                    int(((table[f"{name}_held_out_p_corrected"] < alpha) & (table[f"{name}_held_out_d"] > 0)).sum())
                ),
                "by permutation test": str(int((table[f"{name}_permutation_p_corrected"] < alpha).sum())),
                "median d": f"{effects.median():.2f}" if len(effects) else "none",
            }
        )
    return pd.DataFrame(rows)


def _means(values: Floats, groups: Ints, num: int) -> Floats:
    some = ~np.isnan(values)
    count = np.bincount(groups[some], minlength=num)
    total = np.bincount(groups[some], values[some], minlength=num)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _pair_table(pairs: Pairs, proteins: pd.DataFrame, how: Neighbourhoods) -> pd.DataFrame:
    """One row per pair; positions are 1-based in the protein."""
    rows = proteins.iloc[pairs.row]
    letters = [sequence[anchor] for sequence, anchor in zip(rows["sequence"], pairs.anchor, strict=True)]
    table = pd.DataFrame(
        {
            "latent": pairs.latent,
            "accession": rows["accession"].to_numpy(),
            "position": rows["offset"].to_numpy(dtype=np.int64) + pairs.anchor + 1,
            "residue": letters,
            "activation": pairs.highest,
            "mean_activation": pairs.mean,
        }
    )
    for place, name in enumerate(how.names):
        table[f"{name}_neighbours"] = pairs.sizes[:, place]
        table[f"{name}_score"] = pairs.observed[:, place]
        if not np.isnan(pairs.permuted).all():
            table[f"{name}_null_permuted"] = pairs.permuted[:, place]
    return table


def _summary(
    metrics: dict[str, float | int],
    how: Neighbourhoods,
    config: SaeConfig,
    splits: Sequence[str],
    threshold: float,
    min_proteins: int,
    num_permutations: int | None,
    alpha: float,
) -> str:
    tested = metrics["num_latents_tested"]
    kind = "proteins with a structure" if how.structure else "proteins"
    if not tested:
        return (
            f"No latent could be tested: none exceeds {threshold:g} of its maximum on {min_proteins} of the "
            f"{metrics['num_proteins']:,} {kind} ({', '.join(splits)})."
        )
    null = "the exact mean of the permutation null" if num_permutations is None else f"{num_permutations} permutations"
    left_out = f"; {metrics['num_sequences_left_out']:,} sequences without one are left out" if how.structure else ""
    in_sequence = (
        f"Of {config.dictionary_size:,} latents {tested:,} exceed {threshold:g} of their maximum on at least "
        f"{min_proteins} of {metrics['num_proteins']:,} {kind} ({', '.join(splits)}{left_out}). Against {null}, at "
        f"corrected p < {alpha:g}, {metrics['num_sequence_clustered']} cluster in sequence (within {how.window} "
        f"residues; median d {metrics.get('median_sequence_d', float('nan')):.2f})"
    )
    if not how.structure:
        return (
            f"{in_sequence}; by the permutation test itself {metrics['num_sequence_permutation_clustered']}. "
            "Neighbours in structure were not looked at: that takes structures (ingest.alphafold or ingest.structures)."
        )
    return (
        f"{in_sequence} and {metrics['num_structure_clustered']} in structure "
        f"(within {how.radius:g} Å; median d {metrics.get('median_structure_d', float('nan')):.2f}); of structural "
        f"neighbours more than {how.separations[-1]} residues away, "
        f"{metrics[f'num_{how.names[-1]}_clustered']}. By the permutation test itself these are "
        f"{metrics['num_sequence_permutation_clustered']}, {metrics['num_structure_permutation_clustered']} and "
        f"{metrics[f'num_{how.names[-1]}_permutation_clustered']}. Structural only: "
        f"{metrics['num_structural_only_published']} by the published rule, which counts a large sequential p as no "
        f"effect ({metrics['num_structural_only_published_above_null']} of them above their null); "
        f"{metrics['num_structural_only']} by a test of both halves."
    )
