"""Rewrites the table and the picture of README.md from the outputs of the demo run.

    python scripts/readme_tables.py            # after `make run`; `make reproduce` does both
    python scripts/readme_tables.py --check    # exit 1 if README.md says something else than docs/results/demo.json

The numbers go to docs/results/demo.json as well, so that the text can be checked without running the demo.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path("docs/results/demo.json")
README = Path("README.md")
PICTURE = (Path("outputs/evaluate/concepts/figures/concepts.png"), Path("docs/images/concepts.png"))
STAGES = (
    "ingest",
    "extract_activations",
    "train_sae",
    "evaluate/fidelity",
    "evaluate/concepts",
    "evaluate/baselines",
    "evaluate/amortisation",
)
METHODS = {"sae": "SAE", "pca": "PCA", "ica": "ICA", "neurons": "neurons", "random": "random"}
MARKERS = re.compile(r"(<!-- demo table: begin -->\n).*?(<!-- demo table: end -->)", re.DOTALL)


def collect() -> dict[str, dict[str, Any]]:
    """Metrics and parameters of the stages that the table speaks of."""
    found = {}
    for stage in STAGES:
        folder = Path("outputs", stage)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        found[stage] = {
            "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
            "params": manifest["params"],
        }
    config = json.loads(Path("outputs/train_sae/sae/config.json").read_text(encoding="utf-8"))
    found["train_sae"]["params"]["dictionary_size"] = config["dictionary_size"]
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown table."""
    ingest, store = found["ingest"]["metrics"], found["extract_activations"]
    sae, train = found["train_sae"]["metrics"], found["train_sae"]["params"]
    fidelity, concepts = found["evaluate/fidelity"]["metrics"], found["evaluate/concepts"]["metrics"]

    baselines, amortisation = found["evaluate/baselines"]["metrics"], found["evaluate/amortisation"]["metrics"]

    def interval(values: dict[str, Any], name: str, digits: int) -> str:
        value, low, high = (values[f"{name}{suffix}"] for suffix in ("", "_low", "_high"))
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    rows = [
        ("proteins, residues", f"{ingest['num_proteins']:,}, {ingest['num_residues']:,}"),
        ("protein LM, layer", f"`{store['params']['plm']}`, {store['params']['layer']}"),
        ("SAE", f"{train['architecture']}, {train['dictionary_size']:,} latents, k = {train['k']}"),
        ("FVU on held-out residues, L0", f"{sae['fvu']:.3f}, {sae['l0']:.1f}"),
        ("dead latents", f"{sae['dead_fraction']:.1%}"),
        (
            "masked loss recovered against mean ablation, %",
            interval(fidelity, "masked_loss_recovered_mean", 1),
        ),
        ("Swiss-Prot concepts scored on test", f"{concepts['num_concepts']}"),
        ("mean best F1: SAE latents", interval(concepts, "mean_f1_sae", 3)),
        ("mean best F1: neurons of the same layer", interval(concepts, "mean_f1_neurons", 3)),
        ("mean best F1: the residue's letter alone", interval(concepts, "mean_f1_residue", 3)),
        ("SAE minus neurons, paired", interval(concepts, "f1_gain_over_neurons", 3)),
        (
            "concepts with test F1 > 0.5: SAE, neurons, letter",
            ", ".join(str(concepts[f"num_concepts_above_half_{name}"]) for name in ("sae", "neurons", "residue")),
        ),
    ]
    rows.append(
        (
            "objective of the encoder above the optimum on the same decoder, at equal λ",
            _percent(amortisation, "excess"),
        )
    )
    rows.append(
        (
            "FVU at equal L0, refitted: encoder's atoms, matching pursuit's",
            f"{amortisation['fvu_encoder_refit']:.4f}, {amortisation['fvu_pursuit']:.4f}",
        )
    )
    lines = ["| demo run (seed 0) | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    side = [
        (f"FVU with {baselines['budget']} active units", [_value(baselines, f"fvu_{name}", 3) for name in METHODS]),
        ("active units per residue (L0)", [f"{baselines[f'l0_{name}']:.0f}" for name in METHODS]),
        ("directions per dimension", [f"{_directions(baselines, name):g}" for name in METHODS]),
        ("largest \\|cosine\\| of two directions", [f"{baselines[f'max_cosine_{name}']:.2f}" for name in METHODS]),
        (
            f"mean best F1, {baselines['num_concepts']} concepts",
            [_value(baselines, f"mean_f1_{name}", 3) for name in METHODS],
        ),
        (
            f"effective concepts per unit, of {baselines['num_classes']}",
            [_value(baselines, f"effective_concepts_{name}", 1) for name in METHODS],
        ),
    ]
    proteins = baselines["num_proteins_test"]
    lines += [
        f"| side by side ({proteins} test proteins) | " + " | ".join(METHODS.values()) + " |",
        "|---|" + "---|" * len(METHODS),
        *(f"| {name} | {' | '.join(values)} |" for name, values in side),
        "",
    ]
    return "\n".join(lines)


def _value(metrics: dict[str, Any], name: str, digits: int) -> str:
    """A number with its interval, or `none`."""
    if name not in metrics:
        return "none"
    value, low, high = (metrics[f"{name}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _percent(metrics: dict[str, Any], name: str) -> str:
    value, low, high = (100 * metrics[f"{name}{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _directions(baselines: dict[str, Any], method: str) -> float:
    """Directions per dimension; neurons are one each."""
    return float(baselines[f"num_directions_{method}"]) / float(baselines["num_directions_neurons"])


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md differs")
    args = parser.parse_args(argv)
    if not args.check:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(collect(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PICTURE[1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(*PICTURE)
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    new, count = MARKERS.subn(lambda match: match[1] + table(found) + match[2], text)
    if count != 1:
        print(f"{README} has no table markers")
        return 1
    if args.check:
        if new != text:
            print(f"{README} differs from {RESULTS}: run make reproduce")
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
