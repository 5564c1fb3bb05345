"""Runs the trainers of dictionary_learning 0.1.0 and InterPLM (commit 5f4cbf9) and writes their losses, step by step.

Weights and batches come from formulas, so that `tests/training/test_golden_trainers.py` can train on the same ones:

    python -m venv ENV && ENV/bin/pip install torch einops && ENV/bin/pip install --no-deps dictionary-learning==0.1.0
    git clone https://github.com/ElanaPearl/InterPLM CLONE && git -C CLONE checkout 5f4cbf9
    ENV/bin/python scripts/golden_trainers.py --interplm CLONE > tests/training/golden_trainers.json

All of it in fp64. `loss` is on a new batch every step; nothing is dead in it, since their 10 million tokens until then
are many. `aux_loss` is on the first batch again and again, with those 10 million shortened, so that AuxK takes part.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

D, N, B, K = 8, 32, 24, 3
STEPS = {"dictionary_learning": 28, "interplm": 40}
# What the test gives as explicit parameters: the libraries' own warm-ups are longer than these runs.
LEARNING_RATE, WARMUP, PENALTY_WARMUP, DECAY_START = 0.01, 4, 6, 20
DEAD_STEPS, AUX_STEPS, AUX_LEARNING_RATE = 4, 20, 1e-4
PENALTY = {"relu": 0.1, "l1_april": 0.4, "gated": 0.1, "jump_relu": 0.7}
BANDWIDTH, TARGET_L0 = 0.2, 4.0
GROUPS = (0.125, 0.25, 0.625)


def wave(rows: int, columns: int, step: float, phase: float) -> Tensor:
    """A matrix of sines without a pattern that matters, fp64."""
    grid = torch.arange(rows, dtype=torch.float64).unsqueeze(1) * 1.7 + torch.arange(columns, dtype=torch.float64) * 0.9
    return torch.sin(step * grid + phase)


def batch(step: int) -> Tensor:
    """Batch [24, 8] of a step, of about unit mean squared norm around a mean that is not zero."""
    x = wave(B, D, 0.77, 0.4 + 1.3 * step) + 0.6 * wave(B, D, 3.3, 1.4 + 0.7 * step) + 0.3 * wave(1, D, 1.1, 0.2)
    return x / math.sqrt(D * (0.5 + 0.18 + 0.045))


def start(norm: float) -> dict[str, Tensor]:
    """Starting weights by our names: atoms of a given norm, an encoder near them, biases and thresholds."""
    atoms = wave(N, D, 1.3, 0.2)
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    return {
        "W_dec": norm * atoms,
        "W_enc": norm * (atoms + 0.3 * wave(N, D, 2.1, 1.0)),
        "b_enc": 0.05 * wave(N, 1, 0.8, 0.5).flatten(),
        "b_gate": 0.05 * wave(N, 1, 0.8, 0.5).flatten(),
        "b_mag": 0.05 * wave(N, 1, 1.1, 0.1).flatten(),
        "r_mag": 0.1 * wave(N, 1, 0.6, 0.9).flatten(),
        "threshold": 0.5 + 0.05 * wave(N, 1, 1.9, 0.3).flatten(),
        "b_dec": 0.1 * wave(1, D, 1.0, 0.7).flatten(),
    }


def digest(tensor: Tensor) -> float:
    """One number for a tensor: its sum, weighted by the cosine of the entry's place."""
    places = torch.arange(tensor.numel(), dtype=torch.float64)
    return float((tensor.detach().double().contiguous().flatten() * torch.cos(places)).sum())


# Our name -> theirs, by dictionary class; a `*` marks a matrix that they store transposed.
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight*"}
PLAIN = {"W_enc": "W_enc*", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
NAMES: dict[str, dict[str, str]] = {
    "AutoEncoder": {**LINEAR, "b_dec": "bias"},
    "ReLUSAE": {**LINEAR, "b_dec": "bias"},
    "AutoEncoderTopK": {**LINEAR, "b_dec": "b_dec"},
    "TopKSAE": {**LINEAR, "b_dec": "b_dec"},
    "BatchTopKSAE": {**LINEAR, "b_dec": "b_dec"},
    "MatryoshkaBatchTopKSAE": PLAIN,
    "JumpReluAutoEncoder": {**PLAIN, "threshold": "threshold"},
    "JumpReLUSAE": {**LINEAR, "b_dec": "decoder.bias", "threshold": "threshold"},
    "GatedAutoEncoder": {
        "W_enc": "encoder.weight", "W_dec": "decoder.weight*", "b_dec": "decoder_bias",
        "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag",
    },
}  # fmt: skip


def start_of(trainer: Any) -> dict[str, Any]:
    """How their dictionary begins, in our terms."""
    values = read(trainer)
    return {
        "atom_norm": round(float(values["W_dec"].norm(dim=1).mean()), 6),
        "encoder_norm": float(values["W_enc"].norm(dim=1).mean()),
        "encoder_is_atoms": bool(torch.allclose(values["W_enc"], values["W_dec"])),
        "biases_are_zero": not any(bool(value.any()) for name, value in values.items() if name[0] == "b"),
        "threshold": float(values["threshold"].mean()) if "threshold" in values else None,
    }


def read(trainer: Any) -> dict[str, Tensor]:
    """Their parameters by our names, in our layout."""
    parameters, names = dict(trainer.ae.named_parameters()), NAMES[type(trainer.ae).__name__]
    values = {ours: parameters[theirs.rstrip("*")].detach() for ours, theirs in names.items()}
    return {ours: value.T if names[ours].endswith("*") else value for ours, value in values.items()}


def run(trainer: Any, steps: int, norm: float, dead_steps: float, one_batch: bool = False) -> list[float]:
    """Losses of a training from `start(norm)`."""
    parameters, values = dict(trainer.ae.named_parameters()), start(norm)
    for ours, theirs in NAMES[type(trainer.ae).__name__].items():
        value = values[ours].T if theirs.endswith("*") else values[ours]
        parameters[theirs.rstrip("*")].data = value.clone().contiguous()
    trainer.dead_feature_threshold = dead_steps * B
    losses, original = [], trainer.loss

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        # `loss` has side effects on counters, so it is read where `update` computes it.
        value: Tensor = original(*args, **kwargs)
        losses.append(value.item())
        return value

    trainer.loss = loss
    for step in range(steps):
        trainer.update(step, batch(0 if one_batch else step))
    return losses


def record(make: Callable[[int, float], Any], steps: int, norm: float, aux: bool) -> dict[str, Any]:
    """Both runs of a trainer, which `make` builds from steps and learning rate."""
    trainer = make(steps, LEARNING_RATE)
    found: dict[str, Any] = {"loss": run(trainer, steps, norm, math.inf)}
    found["end"] = {name: digest(value) for name, value in read(trainer).items()}
    if aux:
        trainer = make(AUX_STEPS, AUX_LEARNING_RATE)
        found["aux_loss"] = run(trainer, AUX_STEPS, norm, DEAD_STEPS, one_batch=True)
        found["num_dead"] = int((trainer.num_tokens_since_fired >= DEAD_STEPS * B).sum())
    return found


def dictionary_learning() -> dict[str, Any]:
    """The trainers of the package, without its buffers, which need a language model's tools."""
    spec = importlib.util.find_spec("dictionary_learning")
    assert spec is not None, "pip install --no-deps dictionary-learning==0.1.0"
    package = types.ModuleType("dictionary_learning")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["dictionary_learning"] = package
    prefix = "dictionary_learning.trainers"
    classes = {
        "topk": (f"{prefix}.top_k", "TopKTrainer"),
        "batch_topk": (f"{prefix}.batch_top_k", "BatchTopKTrainer"),
        "matryoshka": (f"{prefix}.matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
        "relu": (f"{prefix}.standard", "StandardTrainer"),
        "l1_april": (f"{prefix}.standard", "StandardTrainerAprilUpdate"),
        "gated": (f"{prefix}.gdm", "GatedSAETrainer"),
        "jump_relu": (f"{prefix}.jumprelu", "JumpReluTrainer"),
    }
    out: dict[str, Any] = {}
    for name, (module, trainer) in classes.items():
        kind = getattr(importlib.import_module(module), trainer)
        needed = {"activation_dim": D, "dict_size": N, "layer": 0, "lm_name": "none", "device": "cpu"}
        selects = name in ("topk", "batch_topk", "matryoshka")
        if selects:
            needed["k"] = K
        if name == "matryoshka":
            needed["group_fractions"] = list(GROUPS)
        given: dict[str, Any] = {"warmup_steps": WARMUP}
        if not selects:
            given["sparsity_warmup_steps"] = PENALTY_WARMUP
        if name == "jump_relu":
            given |= {"sparsity_penalty": PENALTY[name], "bandwidth": BANDWIDTH, "target_l0": TARGET_L0}
        elif name in PENALTY:
            given["l1_penalty"] = PENALTY[name]
        plain = kind(steps=10_000, **needed)
        group = plain.optimizer.param_groups[0]
        defaults = {
            key: getattr(plain, key)
            for key in ("warmup_steps", "sparsity_warmup_steps", "decay_start", "l1_penalty", "auxk_alpha", "bandwidth",
                        "sparsity_coefficient", "target_l0", "dead_feature_threshold", "top_k_aux")
            if hasattr(plain, key)
        }  # fmt: skip
        # Asked for anew: the scheduler has set the group's rate to that of the first step, 0.
        defaults |= {"lr": plain.lr, "betas": list(group["betas"]), "eps": group["eps"]}

        def make(steps: int, rate: float, kind: Any = kind, needed: Any = needed, given: Any = given) -> Any:
            return kind(steps=steps, lr=rate, decay_start=min(DECAY_START, steps - 1), **needed, **given)

        begin = start_of(plain)
        found = record(make, STEPS["dictionary_learning"], begin["atom_norm"], aux=selects)
        out[name] = {"defaults": defaults, "start": begin, **found}
    return out


def interplm(clone: str) -> dict[str, Any]:
    """The trainers of InterPLM with everything that it does by default, rate and penalty aside: it has none."""
    sys.path.insert(0, clone)
    prefix = "interplm.train.trainers"
    classes: dict[str, tuple[str, str, dict[str, Any]]] = {
        "relu": (f"{prefix}.relu", "ReLUTrainer", {"l1_penalty": PENALTY["relu"]}),
        "topk": (f"{prefix}.top_k", "TopKTrainer", {"k": K}),
        "batch_topk": (f"{prefix}.batch_top_k", "BatchTopKTrainer", {"k": K}),
        "jump_relu": (
            f"{prefix}.jump_relu",
            "JumpReLUTrainer",
            {
                "sparsity_penalty": PENALTY["jump_relu"],
                "bandwidth": BANDWIDTH,
                "target_l0": TARGET_L0,
                "sparsity_warmup_steps": PENALTY_WARMUP,
            },
        ),
    }
    out: dict[str, Any] = {}
    for name, (module, trainer, given) in classes.items():
        loaded = importlib.import_module(module)

        def make(steps: int, rate: float, loaded: Any = loaded, trainer: str = trainer, given: Any = given) -> Any:
            config = getattr(loaded, f"{trainer}Config")(
                activation_dim=D, expansion_factor=N // D, steps=steps, lr=rate, **given
            )
            config.set_and_validate_activation_dim(D)
            config.validate_and_check_training_steps(1000)
            return getattr(loaded, trainer)(config)

        plain = make(10_001, LEARNING_RATE)
        group = plain.optimizer.param_groups[0]
        defaults = {
            "warmup_steps": plain.config.warmup_steps,
            "decay_start": plain.config.decay_start,
            "penalty_warmup_steps": getattr(plain, "l1_penalty_warmup_steps", None),
            "clip_norm": plain.config.grad_clip_norm,
            "betas": list(group["betas"]),
            "eps": group["eps"],
        }
        begin = start_of(plain)
        found = record(make, STEPS["interplm"], begin["atom_norm"], aux="k" in given)
        out[name] = {"defaults": defaults, "start": begin, **found}
    return out


def main() -> int:
    """Run both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interplm", required=True, help="clone of InterPLM at commit 5f4cbf9")
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        found = {"dictionary_learning": dictionary_learning(), "interplm": interplm(args.interplm)}
    print(json.dumps(found, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
