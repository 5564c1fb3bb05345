"""Learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations


def warmup_decay(step: int, num_steps: int, warmup_steps: float, decay_steps: float, from_zero: bool = False) -> float:
    """Linear warm-up, constant, linear decay to zero at the end (Conerly et al. 2024: over the last fifth).

    Args:
        step: 0-based step that is about to be taken.
        num_steps: Length of the training.
        warmup_steps: Steps until the full rate; 0 for none.
        decay_steps: Steps over which the rate falls; 0 for none.
        from_zero: See `warmup`.

    Returns:
        Factor in [0, 1] for the learning rate, above 0 unless `from_zero`.
    """
    decay = min(1.0, (num_steps - step) / decay_steps) if decay_steps else 1.0
    return min(warmup(step, warmup_steps, from_zero), decay)


def warmup(step: int, warmup_steps: float, from_zero: bool = False) -> float:
    """Linear to 1 over the first steps: of the learning rate, or of a sparsity penalty.

    A penalty that is whole from the start silences latents before they mean anything (Conerly et al. 2024: linear over
    the first twentieth).

    Args:
        step: 0-based step that is about to be taken.
        warmup_steps: Steps until 1; 0 for none.
        from_zero: Begin with 0 instead of 1 / warmup_steps.
    """
    return min(1.0, (step if from_zero else step + 1) / warmup_steps) if warmup_steps else 1.0


def annealed_k(step: int, num_steps: int, k: int, start: int, fraction: float) -> int:
    """Latents per token to select: from `start` down to k over the first part, linearly, then k.

    While more latents are selected than in the end, more of them get a gradient (dictionary_learning, k annealing).

    Args:
        step: 0-based step that is about to be taken.
        num_steps: Length of the training.
        k: The number in the end.
        start: The number at the first step, at least k.
        fraction: Share of the training over which it falls; 0 for none.
    """
    anneal_steps = fraction * num_steps
    if step >= anneal_steps:
        return k
    return round(start + (k - start) * step / anneal_steps)


def default_learning_rate(dictionary_size: int) -> float:
    """Gao et al. 2024 (Figure 3): the best rate falls as 1/sqrt(n); 2e-4 at n = 2^14, as in dictionary_learning."""
    return float(2e-4 * (2**14 / dictionary_size) ** 0.5)
