"""Losses and gradients against dictionary_learning's own trainers (commit 60ec6bf), run once in fp64 on `golden.py`.

Each gradient is pinned by one number: its sum, weighted by the cosine of the entry's place. Latents 0, 3, 6, ... are
dead for AuxK. `l1_april` is its April trainer with the latents as they are: its AutoEncoderNew returns latents times
norms already, and the trainer multiplies by the norms again.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plmsae.saes import build
from plmsae.saes.dictionary import Dictionary
from tests.saes.conftest import config_of
from tests.saes.golden import ROWS, D, N, weights

GOLDEN: dict[str, dict[str, float]] = {
    "topk": {
        "total": 8.039146411318768,
        "W_enc": -0.7277090582459165,
        "b_enc": 0.6398091756641766,
        "W_dec": -0.7627806323978434,
        "b_dec": 0.7207503934301811,
    },
    "batch_topk": {
        "total": 13.729995078202409,
        "W_enc": -12.623230338371382,
        "b_enc": 0.5699990315204262,
        "W_dec": -9.538383966546562,
        "b_dec": 3.454426649666675,
    },
    "matryoshka": {
        "total": 2.5781976544266527,
        "W_enc": -2.9873113852041673,
        "b_enc": 0.24766167628384952,
        "W_dec": -1.4473394765510967,
        "b_dec": 0.6586700266726228,
    },
    "relu": {
        "total": 20.430121467652626,
        "W_enc": -9.575623599160078,
        "b_enc": 1.3791422380075276,
        "W_dec": -10.660724852845833,
        "b_dec": -3.7050804163246935,
    },
    "l1_april": {
        "total": 47.46681010521012,
        "W_enc": 4.108180013780853,
        "b_enc": 6.179126083854728,
        "W_dec": 0.06922040227900705,
        "b_dec": 3.64324359706895,
    },
    "gated": {
        "total": 43.45644649407006,
        "W_enc": -20.593651814283163,
        "W_dec": -14.351327862752576,
        "b_dec": -4.466323267753742,
        "b_gate": 1.3791422380075276,
        "b_mag": 1.8709629807875263,
        "r_mag": 10.835429185981582,
    },
    # Its penalty looks at latents instead of pre-activations: the threshold's gradient is another estimate.
    "jump_relu": {
        "total": 18.92359686656799,
        "W_enc": 1.6375546322914811,
        "b_enc": 2.3496801366217728,
        "W_dec": 0.37810712180756667,
        "b_dec": 2.728736005562854,
    },
}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "matryoshka": {"k": 3, "options": {"group_sizes": [4, 4, 8], "reduction": "dictionary_learning"}},
    "relu": {"k": N, "options": {"penalty": 0.1}},
    "l1_april": {"k": N, "options": {"penalty": 0.1}},
    "gated": {"k": N, "options": {"penalty": 0.1}},
    "jump_relu": {"k": N, "options": {"target_l0": 5.0, "l0_control": "quadratic", "bandwidth": 0.05}},
}


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("architecture", sorted(GOLDEN))
def test_losses_and_gradients_are_those_of_dictionary_learning(architecture: str, kernel: str) -> None:
    changes = {"options": {}, **SETTINGS[architecture]}
    sae = build(config_of(architecture, d_model=D, dictionary_size=N, **changes)).double()
    assert isinstance(sae, Dictionary)
    sae.kernel = kernel
    values = weights()
    values["b_gate"] = values["b_enc"]
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(values[name])
        if architecture == "l1_april":
            sae.W_dec.mul_(1.5)
    total = sae.loss(ROWS, torch.arange(N) % 3 == 0).total
    total.backward()  # type: ignore[no-untyped-call]
    found = {"total": float(total)}
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None
        places = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
        found[name] = float((parameter.grad * torch.cos(places)).sum())
    for name, value in GOLDEN[architecture].items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
