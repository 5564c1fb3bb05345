"""What papers published about their runs that no parameter of this pipeline holds: how many SAEs, how long.

The settings that are parameters lie in `presets/papers/NAME.yaml`; both have their sources beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plmsae.errors import UserError, did_you_mean

# Mean length that follows from "10 million sequences of at most 1,022 residues, 2.5 billion tokens" (Reticular).
UNIREF50_MEAN = 250.0


@dataclass(frozen=True)
class Paper:
    """Facts of one published run.

    Attributes:
        title: What it is.
        saes_per_layer: SAEs trained on each.
        mean_length: Mean length of the corpus in residues.
        assumed_sequences: Sequences to train on, where their number is not published.
        epochs: Passes over the training residues, where the length of a training is published so and not in steps.
        batch_sequences: Sequences of a step, where its size is published so.
        notes: What is inconsistent, missing or assumed, for the reader of a plan.
    """

    title: str
    saes_per_layer: int
    mean_length: float = UNIREF50_MEAN
    assumed_sequences: int | None = None
    epochs: int | None = None
    batch_sequences: int | None = None
    notes: tuple[str, ...] = ()


_MEAN_NOTE = (
    "the mean length is not published; 250 residues are assumed, as in Reticular's 2.5 billion tokens of 10 million "
    "UniRef50 sequences of at most 1,022"
)
_LIMITS = (
    "the paper evaluates on proteins of at most 1,024 residues, but ESM-2 takes 1,022 beside its two special tokens; "
    "this pipeline drops what is longer than 1,022"
)
_PENALTY = (
    "the paper's penalties belong to a loss with the norm of the error instead of its square: they are not carried over"
)
_RETICULAR_NOTES = (
    "steps are not published for the TopK SAEs; one pass over the corpus is assumed (the released Matryoshka SAEs stop "
    "at 300,000 steps = 614 million tokens)",
)
_INTERPLM_NOTES = (_MEAN_NOTE, _LIMITS, _PENALTY)

_PAPERS = {
    "interplm-8m": Paper(
        "InterPLM (Simon and Zou 2024), ESM-2 8M, layers 1 to 6, 20 SAEs each",
        20, notes=_INTERPLM_NOTES,
    ),
    "interplm-650m": Paper(
        "InterPLM (Simon and Zou 2024), ESM-2 650M, six layers, 20 SAEs each",
        20, notes=_INTERPLM_NOTES,
    ),
    "reticular-3b-l18": Paper(
        "Reticular, SAEFold (Parsan et al. 2025), ESM-2 3B, layer 18, TopK",
        1, notes=_RETICULAR_NOTES,
    ),
    "reticular-3b-l36": Paper(
        "Reticular, SAEFold (Parsan et al. 2025), ESM-2 3B, layer 36, TopK",
        1,
        notes=(*_RETICULAR_NOTES, "layer 36 is the stream after the final LayerNorm, unlike layer 18"),
    ),
    "reticular-8m": Paper(
        "Reticular, SAEFold (Parsan et al. 2025), ESM-2 8M, TopK",
        1,
        notes=(
            *_RETICULAR_NOTES,
            'published as "16x expansion" with 10,240 latents, but 16 x 320 = 5,120 and 10,240 = 32 x 320: the number '
            "of latents is taken, which is also that of the paper's code",
            "the layer is not published; 3 is that of its data configuration",
        ),
    ),
    "interprot-650m": Paper(
        "InterProt (Adams et al. 2025), ESM-2 650M, layer 24, TopK",
        1, epochs=1, batch_sequences=48,
        notes=(
            _MEAN_NOTE,
            "one million sequences, split 90 : 1 : 9; this pipeline holds out as many for validation as for test",
            "it trains while the PLM runs and stores nothing, on special tokens and padding too: the plan here is of "
            "this pipeline, which stores residues",
        ),
    ),
    "esmc-600m": Paper(
        "ESM C interpretability (VictorGtn/sparse-esm-interp), ESM C 600M, MLP of layers 5, 15 and 25",
        1, assumed_sequences=5_000_000, epochs=10,
        notes=(
            "no corpus is published (it takes the user's file); InterPLM's 5 million sequences are assumed: pass "
            "--num-sequences or --sequences",
            _MEAN_NOTE,
        ),
    ),
}  # fmt: skip


def paper_names() -> tuple[str, ...]:
    """Names for `--preset`."""
    return tuple(_PAPERS)


def paper(name: str) -> Paper:
    """The facts of a preset.

    Raises:
        UserError: There is no such preset.
    """
    if name not in _PAPERS:
        raise UserError(f"unknown preset '{name}'", where="--preset", fix=did_you_mean(name, _PAPERS))
    return _PAPERS[name]


def preset_file(name: str, root: Path = Path()) -> Path:
    """`presets/papers/NAME.yaml` below the working folder, or below the repository that this code lies in.

    Raises:
        UserError: There is no such preset, or no such file.
    """
    paper(name)
    relative = Path("presets", "papers", f"{name}.yaml")
    for folder in (root, Path(__file__).parents[3]):
        if (folder / relative).is_file():
            return folder / relative
    raise UserError(f"'{relative}' does not exist", fix="run in a clone of plmsae, where the presets lie")
