"""How each source trains each architecture: every number that a reader would otherwise look for in four codebases.

| preset | what it is |
|---|---|
| `plmsae` | our own defaults, chosen on layer 3 of the demo's language model; what is not said elsewhere is in here |
| `paper` | the paper of each architecture, see its module under `plmsae/saes` |
| `dictionary_learning` | trainers of dictionary_learning 0.1.0 (saprmarks/dictionary_learning) |
| `interplm` | trainers of InterPLM at commit 5f4cbf9 (ElanaPearl/InterPLM; Simon and Zou 2024) |

All of them are for activations of unit mean squared norm, to which every training here scales its input. A preset says
what is left null in the parameters; what is given there wins. `resolve` in `resolution.py` makes numbers of both.

`tests/training/test_golden_trainers.py` has the two libraries' own losses, step by step, which these values reproduce.
docs/architectures.md says where a preset deviates from its source, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from plmsae.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Span:
    """A number of steps: fixed, of so many tokens, or as a share of the training. It is the sum of the three.

    Attributes:
        steps: Steps, whatever the size of a batch.
        tokens: Tokens.
        share: Share of the training.
        whole: Round the sum down or up to whole steps.
    """

    steps: float = 0.0
    tokens: float = 0.0
    share: float = 0.0
    whole: Literal["no", "down", "up"] = "no"

    def of(self, num_steps: int, batch_size: int) -> float:
        """Steps of this span in a training of so many steps on batches of so many tokens."""
        total = self.steps + self.tokens / batch_size + self.share * num_steps
        return {"no": total, "down": math.floor(total), "up": math.ceil(total)}[self.whole]


def half_width(d_model: int, dictionary_size: int) -> int:
    """d // 2 latents for AuxK (dictionary_learning), at least 1 and at most all."""
    return min(max(1, d_model // 2), dictionary_size)


def power_of_two(d_model: int, dictionary_size: int) -> int:
    """The power of two next to d / 2 (Gao et al. 2024, appendix B.1)."""
    return min(1 << max(0, round(math.log2(d_model / 2))), dictionary_size)


def at_most_512(d_model: int, dictionary_size: int) -> int:
    """512 latents for AuxK (bartbussmann/BatchTopK), or all."""
    del d_model
    return min(512, dictionary_size)


@dataclass(frozen=True)
class Recipe:
    """How one source trains one architecture.

    Attributes:
        learning_rate: Adam's rate; None for 2e-4 sqrt(2^14 / n), the rule of Gao et al. 2024 (figure 3) with the
            constant of dictionary_learning.
        batch_size: Tokens of a step.
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        clip_norm: Bound of the gradient's norm; None for none.
        clip_first: Clip before the atoms' parallel gradient is removed.
        clip_together: One norm for all parameters; otherwise thresholds are clipped by themselves.
        warmup: Linear warm-up of the rate.
        decay: Linear decay of the rate to zero, at the end.
        penalty_warmup: Linear warm-up of the sparsity penalty.
        warmup_from_zero: Both warm-ups begin with 0, not with 1 / steps.
        center: Where the decoder's bias starts, see `plmsae.training.center`.
        center_on_batch: It starts from the first batch, not from the first 16,384 tokens.
        dead_after_tokens: Silence after which a latent is dead; None for an eightieth of the training, at most 10
            million tokens.
        resample_steps: Steps after which dead latents start anew.
        num_resample_rows: Tokens whose errors then say where.
        anneal_fraction: Share of the training over which k falls from the width of the activations.
        aux_k: Dead latents that AuxK may use, from width and dictionary size; None where there is no AuxK.
        options: `SaeConfig.options`; what is absent is the architecture's default.
    """

    learning_rate: float | None = None
    batch_size: int = 2048
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    clip_first: bool = False
    clip_together: bool = True
    warmup: Span = Span()
    decay: Span = Span()
    penalty_warmup: Span = Span()
    warmup_from_zero: bool = False
    center: str = "zero"
    center_on_batch: bool = False
    dead_after_tokens: int | None = 10_000_000
    resample_steps: tuple[int, ...] = ()
    num_resample_rows: int = 819_200
    anneal_fraction: float = 0.0
    aux_k: Callable[[int, int], int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


# --- plmsae: one recipe, of which architectures differ in their options alone.
_OURS = Recipe(
    # Gao et al.'s eps: gradients of rare latents are far below the usual 1e-8.
    eps=6.25e-10,
    clip_together=False,
    warmup=Span(tokens=204_800),  # 100 steps of 2,048; in tokens, so that another batch size has the same
    decay=Span(share=0.2),
    penalty_warmup=Span(share=0.05),
    center="geometric_median",
    dead_after_tokens=None,
)
_SLOW_FIRST_MOMENT = replace(_OURS, betas=(0.0, 0.999))
_AUX = {"aux_alpha": 1 / 32}

# --- dictionary_learning: lr 2e-4 / sqrt(n / 2^14), a warm-up of 1000 steps that begins with 0, no decay unless asked.
_DL = Recipe(warmup=Span(steps=1000), penalty_warmup=Span(steps=2000), warmup_from_zero=True)
_DL_TOPK = replace(_DL, center="geometric_median", center_on_batch=True, aux_k=half_width, options=_AUX)
# Its Adam with unit-norm atoms (ConstrainedAdam) does not clip.
_DL_CONSTRAINED = replace(_DL, clip_norm=None)

# --- InterPLM: warm-ups of rate and lambda over a twentieth, decay over the second half, b_dec from zero.
_PLM = Recipe(
    warmup=Span(share=0.05),
    decay=Span(share=0.5, whole="up"),
    penalty_warmup=Span(share=0.05, whole="down"),
    warmup_from_zero=True,
)
_PLM_TOPK = replace(_PLM, aux_k=half_width, options=_AUX)

# --- papers.
_BUSSMANN = Recipe(
    # bartbussmann/BatchTopK, config.py: the code of both papers. A bound of 100,000 clips nothing.
    learning_rate=3e-4,
    batch_size=4096,
    betas=(0.9, 0.99),
    clip_norm=None,
    dead_after_tokens=5 * 4096,
    aux_k=at_most_512,
    options=_AUX,
)

PRESETS: Mapping[str, Mapping[str, Recipe]] = {
    "plmsae": {
        "batch_topk": replace(_OURS, aux_k=half_width, options=_AUX),
        "gated": _SLOW_FIRST_MOMENT,
        "jump_relu": _SLOW_FIRST_MOMENT,
        "l1_april": _OURS,
        "matryoshka": replace(_OURS, aux_k=half_width, options={**_AUX, "reduction": "paper"}),
        "relu": _OURS,
        "topk": replace(_OURS, aux_k=half_width, options=_AUX),
    },
    "paper": {
        "batch_topk": _BUSSMANN,
        "gated": Recipe(
            # Rate: the authors' note under their announcement. lambda was swept; 0.1 is dictionary_learning's.
            learning_rate=3e-4,
            batch_size=4096,
            betas=(0.0, 0.999),
            clip_norm=None,
            options={"penalty": 0.1},
        ),
        "jump_relu": Recipe(
            # Appendix on training, and Gemma Scope section 3.2. lambda was swept.
            learning_rate=7e-5,
            batch_size=4096,
            betas=(0.0, 0.999),
            clip_norm=None,
            warmup=Span(steps=1000),
            penalty_warmup=Span(steps=10_000),
            options={"penalty": 1e-3, "bandwidth": 0.001, "initial_threshold": 0.001},
        ),
        "l1_april": Recipe(
            # lambda = 5 for a mean norm of sqrt(d) is the default of the architecture, 5 / sqrt(d), for a norm of 1.
            learning_rate=5e-5,
            batch_size=4096,
            decay=Span(share=0.2),
            penalty_warmup=Span(share=0.05),
        ),
        "matryoshka": replace(_BUSSMANN, options={**_AUX, "reduction": "paper"}),
        "relu": Recipe(
            # lambda depends on their scale of the activations; 0.1 is dictionary_learning's.
            learning_rate=1e-3,
            batch_size=8192,
            clip_norm=None,
            center="geometric_median",
            dead_after_tokens=12_500 * 8192,
            resample_steps=(25_000, 50_000, 75_000, 100_000),
            options={"penalty": 0.1},
        ),
        "topk": Recipe(
            # openai/sparse_autoencoder: eps 6.25e-10, median of 32,768 samples, clipping optional.
            batch_size=131_072,
            eps=6.25e-10,
            clip_norm=1.0,
            center="geometric_median",
            aux_k=power_of_two,
            options=_AUX,
        ),
    },
    "dictionary_learning": {
        "batch_topk": _DL_TOPK,
        "gated": replace(_DL_CONSTRAINED, learning_rate=5e-5, betas=(0.0, 0.999), options={"penalty": 0.1}),
        "jump_relu": replace(
            _DL,
            learning_rate=7e-5,
            betas=(0.0, 0.999),
            options={
                "penalty": 1.0,
                "target_l0": 20.0,
                "l0_control": "quadratic",
                "penalty_kernel": "latents",
                "bandwidth": 0.001,
                "initial_threshold": 0.001,
            },
        ),
        "l1_april": replace(_DL, learning_rate=1e-3, options={"penalty": 0.1, "pre_bias": True}),
        "matryoshka": replace(_DL_TOPK, options={**_AUX, "reduction": "dictionary_learning"}),
        "relu": replace(_DL_CONSTRAINED, learning_rate=1e-3, options={"penalty": 0.1, "initial_norm": 0.1}),
        "topk": _DL_TOPK,
    },
    "interplm": {
        "batch_topk": _PLM_TOPK,
        "jump_relu": replace(
            _PLM,
            # Its trainer has no rate of its own; that of the code it descends from.
            learning_rate=7e-5,
            betas=(0.0, 0.999),
            penalty_warmup=Span(steps=2000),
            options={
                "penalty": 1.0,
                "target_l0": 20.0,
                "l0_control": "quadratic",
                "penalty_kernel": "latents",
                "bandwidth": 0.001,
                "initial_threshold": 0.001,
            },
        ),
        "relu": replace(
            _PLM,
            # Rate and lambda of examples/train_basic_sae.py; the paper sweeps 1e-4 to 1e-8 and 0.07 to 0.2.
            learning_rate=2e-4,
            clip_first=True,
            options={"penalty": 0.06, "reconstruction": "unsquared", "initial_encoder": "uniform"},
        ),
        "topk": _PLM_TOPK,
    },
}


def recipe(preset: str, architecture: str) -> Recipe:
    """How a preset trains an architecture.

    Raises:
        UserError: There is no such preset, or it has no such architecture.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'", where="train_sae.preset", fix=did_you_mean(preset, PRESETS))
    known = PRESETS[preset]
    if architecture not in known:
        others = [name for name, recipes in PRESETS.items() if architecture in recipes]
        raise UserError(
            f"preset '{preset}' has no {architecture}; it has {', '.join(known)}",
            where="train_sae.preset",
            fix=f"choose one of {', '.join(others)} for {architecture}" if others else "choose another architecture",
        )
    return known[architecture]
