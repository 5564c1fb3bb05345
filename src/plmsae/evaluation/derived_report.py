"""Table, metrics and summary of derived concepts: those of the others, in files and under names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.concept_compare import Resampling, difference, mean_interval
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_report import MethodResult, concept_metrics, concept_table, write_table
from plmsae.evaluation.inputs import Outcome

_OF_THE_SPLITS = ("num_proteins_valid", "num_proteins_test", "num_residues_valid", "num_residues_test")


def report_derived(data: ConceptData, results: Sequence[MethodResult], how: Resampling, output: Path) -> Outcome:
    """Write `derived` (Parquet and CSV), `derived_left_out.csv`, and `table.csv` for people.

    Args:
        data: The derived concepts (`ConceptData.part`).
        results: Methods `sae`, `neurons` and `residue` on them.
        how: How intervals were made.
        output: Folder to write into.

    Returns:
        Metrics whose names begin with `derived_`, and a sentence for the summary.
    """
    data.left_out.to_csv(output / "derived_left_out.csv", index=False, lineterminator="\n")
    if not data.concepts:
        write_table(pd.DataFrame(columns=["concept", "method"]), output / "derived")
        metrics = {"derived_num_concepts": 0, "derived_num_concepts_left_out": len(data.left_out)}
        return Outcome(metrics, f"None of the {len(data.left_out)} derived concepts is frequent enough to be scored.")
    by_name = {result.name: result for result in results}
    letters = by_name["residue"].tested
    over_letters = {r.name: difference(r.tested, letters, how.confidence) for r in results if r.name != "residue"}
    over_neurons = difference(by_name["sae"].tested, by_name["neurons"].tested, how.confidence)
    table = concept_table(data, results, over_letters, how)
    write_table(table, output / "derived")
    _readable(table).to_csv(output / "table.csv", index=False, lineterminator="\n")
    means = {result.name: mean_interval(result.tested, how.confidence) for result in results}
    found = concept_metrics(data, results, over_letters, over_neurons, means, how.confidence)
    summary = (
        f"On {len(data.concepts)} derived concepts ({len(data.left_out)} others are too rare) it is "
        f"{means['sae'].text()}, {means['neurons'].text()} and {means['residue'].text()}."
    )
    return Outcome({f"derived_{name}": value for name, value in found.items() if name not in _OF_THE_SPLITS}, summary)


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """One row per concept."""
    by = {name: part.set_index("concept") for name, part in table.groupby("method")}
    ours = by["sae"]
    intervals = [Interval(*row).text() for row in ours[["f1_test", "ci_low", "ci_high"]].to_numpy()]
    readable = pd.DataFrame({"derived concept": ours.index, "unit": ours["unit"].to_numpy()})
    readable["F1 of the SAE, test"] = intervals
    for name, title in (("neurons", "best neuron"), ("residue", "residue letter")):
        readable[title] = [f"{value:.3f}" for value in by[name].loc[ours.index, "f1_test"]]
    readable["beyond the letter"] = ["yes" if beats else "no" for beats in ours["beats_residue"]]
    readable["AUPRC"] = [f"{value:.3f}" for value in ours["auprc"]]
    readable["test proteins"] = ours["num_proteins_test"].to_numpy()
    return readable
