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
STAGES = ("ingest", "extract_activations", "train_sae", "evaluate/fidelity", "evaluate/concepts")
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
    return "\n".join(["| demo run (seed 0) | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])


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
