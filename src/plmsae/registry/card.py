"""The model card: what a SAE is, what it was made from, how good it is, what it cannot do, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plmsae.registry.evidence import Evidence
from plmsae.registry.headlines import headline_rows
from plmsae.registry.latents import top_concepts
from plmsae.registry.tracking import flatten
from plmsae.saes import sparsity

if TYPE_CHECKING:
    from plmsae.saes.config import SaeConfig

NUM_CONCEPTS = 15
EXAMPLE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"

_LIMITS = """- The protein language model has seen Swiss-Prot: the splits keep homologous proteins apart for the SAE and
  its evaluation only, not for the language model.
- Concepts are Swiss-Prot annotations: they favour well-studied families, and a residue without an annotation is not
  known to lack the function. A concept that the residue's letter predicts as well is not a discovery.
- A latent that fires on a concept need not be used by the model for it. Sequences unlike natural proteins (designed,
  low complexity) are outside what was measured.
- The SAE fits exactly one PLM, revision, layer and hook; plmsae refuses any other."""

_DUAL_USE = """The SAE reads representations; it generates nothing. It can point at residues that matter for a function,
toxins included. Do not use it to help make harmful proteins more potent, and have people with the expertise judge its
findings before anything is built or released."""


def model_card(evidence: Evidence, config: SaeConfig, name: str, notes: str = "") -> str:
    """The card as Markdown; equal evidence gives equal text."""
    metrics = evidence.metrics()
    source = evidence.source()
    parts = [
        f"# {name}",
        f"A {config.architecture} sparse autoencoder with {config.dictionary_size:,} latents ({sparsity(config)}) on "
        f"layer {config.layer} of the protein language model {config.plm}.",
        notes.strip(),
        "## Numbers",
        _table(("metric", "what it is", "value [interval]"), headline_rows(metrics)),
        *(_summary(evidence, evaluation) for evaluation in evidence.evaluations),
        "`metrics.json` beside this card holds every metric of the training and of the evaluations.",
        "## What it reads",
        _table(
            ("field", "value"),
            (
                ("PLM", config.plm),
                ("PLM revision", config.plm_revision),
                ("layer", str(config.layer)),
                ("hook", config.hook),
                ("width", str(config.d_model)),
                ("takes", config.input),
            ),
        ),
        "## Data",
        _table(("field", "value"), _data_rows(evidence, source)),
        "## Training",
        _table(("field", "value"), [(key, _text(value)) for key, value in flatten(dict(config.training)).items()]),
        "## What the latents find",
        _concepts(evidence),
        "## Limits",
        _LIMITS,
        "## Dual use",
        _DUAL_USE,
        "## How to load it",
        "From the folder of this card, or by its name in the registry:",
        f'```python\nimport plmsae\n\nsae = plmsae.load("models:/{name}@champion")\n'
        f'table = plmsae.features("{EXAMPLE}", sae)\nprint(table.head())\n```',
        "This reads safetensors and JSON only. MLflow's own `mlflow.pyfunc.load_model` runs the `model.py` that lies "
        "in the registry: use it only with a registry that you trust.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def short_description(evidence: Evidence, config: SaeConfig) -> str:
    """A few lines of Markdown for the version's page in MLflow."""
    rows = headline_rows(evidence.metrics())
    return (
        f"{config.architecture}, {config.dictionary_size:,} latents, {sparsity(config)}, on layer {config.layer} of "
        f"{config.plm} ({config.plm_revision}).\n\n" + _table(("metric", "what it is", "value [interval]"), rows)
    )


def _summary(evidence: Evidence, evaluation: str) -> str:
    path = evidence.folders[evaluation] / "summary.md"
    text = f"**{evaluation}.** {path.read_text(encoding='utf-8').strip()}" if path.is_file() else ""
    header, rows = evidence.readable_table(evaluation)
    return "\n\n".join(part for part in (text, _table(header, rows)) if part)


def _data_rows(evidence: Evidence, source: Mapping[str, Any]) -> list[tuple[str, str]]:
    params = flatten(evidence.manifests["sequences"].params)
    rows = [(key, _text(value)) for key, value in source.items()]
    return rows + [(f"ingest.{key}", _text(value)) for key, value in params.items()]


def _concepts(evidence: Evidence) -> str:
    for folder in evidence.evaluations.values():
        rows = [
            (
                row.concept,
                "none" if row.latent is None else str(row.latent),
                row.interval(),
                f"{row.f1_neurons:.3f}",
                f"{row.f1_residue:.3f}",
            )
            for row in top_concepts(folder, NUM_CONCEPTS)
        ]
        if rows:
            head = ("concept", "latent", "F1 on test", "best neuron", "residue letter")
            return _table(head, rows) + "\n\nAll of them: `concepts.csv`; by latent: `latents.parquet`."
    return "No concept was frequent enough to be evaluated."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
