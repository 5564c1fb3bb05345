"""The files of a trained SAE: the SAE itself, its curves, how often its latents fire, figures and a paragraph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from plmsae.saes import sparsity
from plmsae.training.export import export
from plmsae.training.figures import draw_curves, draw_density
from plmsae.training.parameters import SELECTS_K
from plmsae.training.session import Result
from plmsae.training.tables import write_csv


def write_result(result: Result, folder: Path) -> None:
    """Write `sae/`, `curves.csv`, `density.csv` and `figures/`.

    Args:
        result: The SAE and what was measured of it.
        folder: Folder to write into.
    """
    config, measured = result.resolved.config, result.measured
    export(result.sae, result.record, result.metrics, folder / "sae")
    histogram = measured.density_histogram()
    num_silent = int((measured.counts == 0).sum())
    write_csv(folder / "curves.csv", result.curves)
    write_csv(folder / "density.csv", [{"log10_density": low, "num_latents": number} for low, number in histogram])
    selects = config.architecture in SELECTS_K
    wanted = config.k if selects else config.options.get("target_l0")
    draw_curves(result.curves, wanted, "AuxK" if selects else "penalty", folder / "figures" / "curves.png")
    draw_density(histogram, num_silent, measured.num_tokens, folder / "figures" / "density.png")


def write_json(path: Path, metrics: Mapping[str, float]) -> None:
    """Write metrics as the wrapper of stages does."""
    path.write_text(json.dumps(dict(metrics), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def summary(result: Result) -> str:
    """One paragraph of Markdown: what was trained on what, and how well it reconstructs."""
    config, metrics = result.resolved.config, result.metrics
    return (
        f"A {config.architecture} SAE with {config.dictionary_size:,} latents ({sparsity(config)}) on layer "
        f"{config.layer} ({config.hook}) of {config.plm}, trained on {metrics['training_tokens']:,} residues "
        f"({metrics['training_epochs']:.1f} epochs, {result.record['steps']:,} steps). On {metrics['num_tokens']:,} "
        f"residues of held-out proteins it leaves {metrics['fvu']:.1%} of the variance unexplained with "
        f"{metrics['l0']:.1f} latents active per residue; {metrics['dead_fraction']:.1%} of the latents never fire "
        "there."
    )
