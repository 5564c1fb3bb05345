"""What papers published about their runs that no parameter of this pipeline holds: how many SAEs, and what is unclear.

The settings that are parameters lie in `presets/NAME.yaml`; both have their sources beside them. docs/adr/0020 has what
contradicts itself in the papers, and which side is taken.
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
        notes: What is inconsistent, missing or assumed, for the reader of a plan.
    """

    title: str
    saes_per_layer: int
    mean_length: float = UNIREF50_MEAN
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
    "the methods do not say which of the twenty rates and penalties were chosen; the preset has the largest rate and "
    "the default penalty of the paper's code"
)
_NORMALISER = (
    "the paper trains on raw activations, this pipeline on those of unit mean squared norm; with the unsquared error "
    "the penalty does not depend on that"
)
_RETICULAR_STEPS = (
    "steps are not published for the TopK and L1 SAEs; one pass over the corpus is assumed (the released Matryoshka "
    "SAEs stop at 300,000 steps = 614 million tokens)"
)
_AFTER_NORM = "layer 36 is the stream after the final LayerNorm, unlike layer 18"
_SIZE_8M = (
    'published as "16x expansion" with 10,240 latents, but 16 x 320 = 5,120 and 10,240 = 32 x 320: the number '
    "of latents is taken, which is also that of the paper's code",
    "the layer is not published; 3 is that of its data configuration",
)
_INTERPLM_NOTES = (_MEAN_NOTE, _LIMITS, _PENALTY, _NORMALISER)
_VARIANTS = {
    "": ("TopK", ()),
    "-matryoshka": (
        "Matryoshka",
        ("k of the Matryoshka SAEs is published for the released ones of layer 36 alone (1, 2, 4, ... 128); 100 is "
         "the code's default",),
    ),
    "-l1": (
        "L1",
        ("the paper follows Conerly et al. 2024, but writes their penalty without the norms of the atoms, and its code "
         "can run only the older form: the architecture is theirs, rate, weight and warm-ups are the code's",),
    ),
}  # fmt: skip
_PLACES = {
    "reticular-3b-l18": ("ESM-2 3B, layer 18", ()),
    "reticular-3b-l36": ("ESM-2 3B, layer 36", (_AFTER_NORM,)),
    "reticular-8m": ("ESM-2 8M", _SIZE_8M),
}

_PAPERS = {
    "interplm-8m": Paper(
        "InterPLM (Simon and Zou 2024), ESM-2 8M, layers 1 to 6, 20 SAEs each",
        20, notes=_INTERPLM_NOTES,
    ),
    "interplm-650m": Paper(
        "InterPLM (Simon and Zou 2024), ESM-2 650M, six layers, 20 SAEs each",
        20, notes=_INTERPLM_NOTES,
    ),
    **{
        place + variant: Paper(
            f"Reticular, SAEFold (Parsan et al. 2025), {where}, {architecture}",
            1, notes=(_RETICULAR_STEPS, *place_notes, *notes),
        )
        for place, (where, place_notes) in _PLACES.items()
        for variant, (architecture, notes) in _VARIANTS.items()
    },
    "interprot-650m": Paper(
        "InterProt (Adams et al. 2025), ESM-2 650M, layer 24, TopK",
        1,
        notes=(
            _MEAN_NOTE,
            "one epoch and 48 sequences a step are published; tokens and batch follow from the assumed mean",
            "one million sequences, split 90 : 1 : 9; this pipeline holds out as many for validation as for test",
            "it trains while the PLM runs and stores nothing, on special tokens and padding too: the plan here is of "
            "this pipeline, which stores residues",
        ),
    ),
    "esmc-600m": Paper(
        "ESM C interpretability (VictorGtn/sparse-esm-interp), ESM C 600M, MLP of layers 5, 15 and 25",
        1,
        notes=(
            "the number of sequences is not published; InterPLM's 5 million are assumed, and ten epochs of them",
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
    """`presets/NAME.yaml` below the working folder, or below the repository that this code lies in.

    Raises:
        UserError: There is no such preset, or no such file.
    """
    paper(name)
    relative = Path("presets", f"{name}.yaml")
    for folder in (root, Path(__file__).parents[3]):
        if (folder / relative).is_file():
            return folder / relative
    raise UserError(f"'{relative}' does not exist", fix="run in a clone of plmsae, where the presets lie")
