"""The report of a registered SAE: one self-contained HTML file that a person opens first."""

from __future__ import annotations

import csv
from pathlib import Path

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.manifest import manifest_sha256
from plmsae.registry.card import EXAMPLE
from plmsae.registry.evidence import Evidence
from plmsae.registry.headlines import HEADLINES
from plmsae.registry.latents import top_concepts
from plmsae.registry.page import cards, figures, page, paragraph, section, snippet, table
from plmsae.registry.tracking import flatten
from plmsae.saes import sparsity
from plmsae.saes.config import SaeConfig

_FIDELITY_FILE = "fidelity.csv"
# Quantity in the table of the fidelity evaluation -> what a reader calls it, decimals.
_FIDELITY = {
    "ce_clean": ("cross-entropy, untouched (nats)", 3),
    "ce_sae": ("cross-entropy, SAE in place (nats)", 3),
    "ce_random": ("cross-entropy, random error of the same length (nats)", 3),
    "ce_mean": ("cross-entropy, mean ablation (nats)", 3),
    "ce_zero": ("cross-entropy, zero ablation (nats)", 3),
    "delta_ce_sae": ("increase by the SAE (nats)", 4),
    "loss_recovered_mean": ("loss recovered, against mean (%)", 1),
    "loss_recovered_zero": ("loss recovered, against zero (%)", 1),
    "kl_ratio": ("KL by the SAE, over that by a random error", 2),
}
_PROTOCOLS = {
    "masked": "masked residues",
    "single": "one masked at a time",
    "unmasked": "unmasked residues",
    "causal": "next residues",
}


def write_report(path: Path, evidence: Evidence, config: SaeConfig, name: str, num_concepts: int) -> None:
    """Write the report; equal evidence gives equal bytes.

    Args:
        path: The HTML file.
        evidence: Verified outputs of the pipeline.
        config: The SAE's configuration.
        name: Registered name.
        num_concepts: Rows of the concept table.
    """
    lead = (
        f"A {config.architecture} sparse autoencoder: {config.dictionary_size:,} latents, {sparsity(config)}, on layer "
        f"{config.layer} ({config.hook}) of {config.plm}."
    )
    metrics = evidence.metrics()
    numbers = [
        (headline.value(metrics, metric), headline.interval(metrics, metric), headline.label)
        for metric, headline in HEADLINES.items()
        if metric in metrics
    ]
    parts = [
        cards(numbers),
        section(
            "Training",
            *_summaries(evidence, ("sae",)),
            figures(sorted((evidence.folders["sae"] / "figures").glob("*.png"))),
        ),
        *(_evaluation(evidence, evaluation, num_concepts) for evaluation in evidence.evaluations),
        section("Use it in five lines", snippet(_use(name))),
        section("Where it comes from", _lineage(evidence, config)),
        section(
            "Limits",
            paragraph(
                "The protein language model has seen Swiss-Prot; the splits keep homologous proteins apart for the SAE "
                "and its evaluation only. A concept that the residue letter alone predicts as well is not a discovery."
            ),
        ),
    ]
    write_text(path, page(name, lead, parts))


def _evaluation(evidence: Evidence, evaluation: str, num_concepts: int) -> str:
    """One section per evaluation: its summary, its tables where their form is known, its figures."""
    folder = evidence.folders[evaluation]
    return section(
        evaluation.replace("_", " ").capitalize(),
        *_summaries(evidence, (evaluation,)),
        # Other evaluations may have files of these names.
        _fidelity_table(folder / _FIDELITY_FILE) if evaluation == "fidelity" else "",
        _concept_table(folder, num_concepts) if evaluation == "concepts" else "",
        _readable_table(evidence, evaluation),
        figures(sorted((folder / "figures").glob("*.png"))),
    )


def _summaries(evidence: Evidence, ports: tuple[str, ...]) -> list[str]:
    paths = [evidence.folders[port] / "summary.md" for port in ports]
    return [paragraph(path.read_text(encoding="utf-8").strip()) for path in paths if path.is_file()]


def _fidelity_table(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["per"] == "token"]
    found = {(row["protocol"], row["quantity"]): row for row in rows}
    # A causal model's FVU is a row of the sequence as it is, but no loss of it is.
    protocols = [name for name in _PROTOCOLS if (name, "ce_clean") in found]
    lines = []
    for quantity, (label, digits) in _FIDELITY.items():
        cells = [_interval(found.get((protocol, quantity)), digits) for protocol in protocols]
        if any(cells):
            lines.append([label, *cells])
    header = ["per residue, test proteins", *(_PROTOCOLS[protocol] for protocol in protocols)]
    return table(header, lines, numeric=range(1, len(header)))


def _interval(row: dict[str, str] | None, digits: int) -> str:
    if row is None or "" in (row["value"], row["low"], row["high"]):
        return ""
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _concept_table(folder: Path, count: int) -> str:
    rows: list[list[str]] = []
    best: list[int | None] = []
    for row in top_concepts(folder, count):
        latent = "none" if row.latent is None else str(row.latent)
        letters = "yes" if row.beats_residue else "no"
        rows.append([row.concept, latent, row.interval(), f"{row.f1_neurons:.3f}", f"{row.f1_residue:.3f}", letters])
        scores = {2: row.f1, 3: row.f1_neurons, 4: row.f1_residue}
        best.append(max(scores, key=lambda column: scores[column]) if any(scores.values()) else None)
    if not rows:
        return ""
    header = ["concept", "latent", "F1 of the SAE, test", "best neuron", "residue letter", "beyond the letter"]
    note = paragraph(
        f"The {len(rows)} concepts with the highest test F1. Latent and threshold were selected on validation; the "
        "best of each row is in bold; brackets are bootstrap intervals over test proteins.",
        note=True,
    )
    return table(header, rows, numeric=(1, 2, 3, 4), best=best) + "\n" + note


def _readable_table(evidence: Evidence, evaluation: str) -> str:
    """What the evaluation wrote for people; cells with a digit are numbers."""
    header, rows = evidence.readable_table(evaluation)
    if not rows:
        return ""
    numeric = [place for place in range(len(header)) if any(row[place][:1].isdigit() for row in rows)]
    return table(header, rows, numeric=numeric)


def _lineage(evidence: Evidence, config: SaeConfig) -> str:
    source = evidence.source()
    rows = [
        ("protein language model", config.plm),
        ("its revision", config.plm_revision),
        ("layer and hook", f"{config.layer}, {config.hook}"),
        ("proteins", " ".join(str(source.get(key, "")) for key in ("source", "release", "file")).strip()),
        ("licence of the proteins", str(source.get("licence", "")) or "not stated"),
        ("sha256 of the protein file", str(source.get("sha256", ""))),
        *((f"training: {key}", str(value)) for key, value in flatten(dict(config.training)).items()),
        *((f"manifest of {port}", manifest_sha256(folder)) for port, folder in sorted(evidence.folders.items())),
        ("sha256 of the weights", evidence.sae_sha256()),
        ("evidence", evidence.sha256()),
    ]
    return table(("", ""), rows, code=(1,))


def _use(name: str) -> str:
    return (
        f'import plmsae\n\nsae = plmsae.load("models:/{name}@champion")\n'
        f'table = plmsae.features("{EXAMPLE[:32]}", sae)\nprint(table.head())'
    )
