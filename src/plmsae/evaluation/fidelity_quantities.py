"""What is reported of mean losses: what an intervention costs, what is recovered, and how it stands to a random error.

Every array may have any shape; the first axis is the bootstrap's resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.splice import CLEAN, MEAN, RANDOM, SAE, ZERO

ABLATIONS = (ZERO, MEAN)
_SMALLEST_GAP = 1e-9  # nats; a ratio to something smaller says nothing


def means(sums: Floats, counts: Floats) -> Floats:
    """Sums by counts; NaN where there is nothing to average."""
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), np.nan)


def loss_names(interventions: Sequence[str]) -> list[str]:
    """`ce_<intervention>` of all and `kl_<intervention>` of all but the first, which is `clean`."""
    return [f"ce_{name}" for name in interventions] + [f"kl_{name}" for name in interventions[1:]]


def compare(losses: Mapping[str, Floats]) -> dict[str, Floats]:
    """The reported quantities of one protocol.

    Args:
        losses: `ce_<intervention>`, mean cross-entropy in nats, and `kl_<intervention>`, mean KL from the clean
            distribution in nats.

    Returns:
        The losses; `delta_ce_<intervention>`, the increase above the clean cross-entropy; `loss_recovered_zero` and
        `loss_recovered_mean`, 100 · (CE_ablated - CE_sae) / (CE_ablated - CE_clean) percent, not clipped; and, against
        the random error of the same length, `excess_ce` and `excess_kl`, SAE minus random in nats, and `kl_ratio`, SAE
        by random. The increases of cross-entropy have no such ratio: that of a random error may be zero or negative.
    """
    found = dict(losses)
    for name in losses:
        if name.startswith("kl_"):
            intervention = name.removeprefix("kl_")
            found[f"delta_ce_{intervention}"] = losses[f"ce_{intervention}"] - losses[f"ce_{CLEAN}"]
    for ablation in ABLATIONS:
        ablated = losses[f"ce_{ablation}"]
        found[f"loss_recovered_{ablation}"] = 100 * _ratio(
            ablated - losses[f"ce_{SAE}"], ablated - losses[f"ce_{CLEAN}"]
        )
    for kind in ("ce", "kl"):
        found[f"excess_{kind}"] = losses[f"{kind}_{SAE}"] - losses[f"{kind}_{RANDOM}"]
    found["kl_ratio"] = _ratio(losses[f"kl_{SAE}"], losses[f"kl_{RANDOM}"])
    return found


def _ratio(over: Floats, under: Floats) -> Floats:
    valid = np.abs(under) > _SMALLEST_GAP
    return np.where(valid, over / np.where(valid, under, 1.0), np.nan)
