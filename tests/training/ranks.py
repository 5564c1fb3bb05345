"""Trainings that one process or several (`rank.py`) do, the same code for both: what comes out must be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plmsae.errors import DataError
from plmsae.saes import build
from plmsae.saes.group import SOLO, Group
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.loop import Trained, train_all
from plmsae.training.member import Member, Plan
from tests.training.streams import activations, small_config, small_settings
from tests.training.test_architectures import CONFIGS

BATCH = 256
CASES: dict[str, dict[str, Any]] = {
    **{name: {"architecture": name} for name in CONFIGS},
    "topk_reference": {"architecture": "topk", "kernel": "reference"},
    "batch_topk_reference": {"architecture": "batch_topk", "kernel": "reference"},
    "matryoshka_with_bias": {"architecture": "matryoshka", "reduction": "reference"},
    "relu_unsquared": {"architecture": "relu", "reconstruction": "unsquared"},
    "jump_relu_quadratic": {"architecture": "jump_relu", "l0_control": "quadratic", "penalty": 1.0},
}
Results = dict[str, Tensor]


class Shared:
    """The rows in order, again and again, in batches that are divided among the processes."""

    def __init__(self, x: Tensor, group: Group, stop: int = 10**9) -> None:
        self.x, self.group, self.stop = x, group, stop
        self.batch_size = BATCH // group.size

    @property
    def num_rows(self) -> int:
        return len(self.x)

    def state(self) -> dict[str, int]:
        return {"world_size": self.group.size, "batch_size": self.batch_size}

    def batch(self, step: int) -> Tensor:
        if step > self.stop:
            raise KeyboardInterrupt
        first = (step * self.group.size + self.group.rank) * self.batch_size
        return self.x[(torch.arange(self.batch_size) + first) % len(self.x)]


class Recorded(torch.optim.SGD):
    """Keeps the gradients of the first step as they reach it."""

    def __init__(self, sae: torch.nn.Module) -> None:
        super().__init__(sae.parameters(), lr=0.05)
        self.named = dict(sae.named_parameters())
        self.first: dict[str, Tensor] = {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if not self.first:
            self.first = {name: item.grad.clone() for name, item in self.named.items() if item.grad is not None}
        super().step(closure)


def plan(case: str, **settings: Any) -> Plan:
    options = dict(CASES[case])
    architecture, kernel = options.pop("architecture"), options.pop("kernel", "auto")
    config = small_config(architecture=architecture, **{**CONFIGS[architecture], **options})
    return Plan(config, small_settings(**settings), kernel, case)


def stepped(case: str, group: Group, dtype: torch.dtype, num_steps: int) -> Results:
    """Steps with SGD; a third of the latents is dead at first, and some of them hardly fire."""
    x = activations(8000).to(dtype)
    item = plan(case, clip_norm=0.5, dead_after_tokens=4000, num_steps=num_steps)
    sae = build(item.config, seed=4).to(dtype)
    sae.initialise(torch.Generator().manual_seed(4), x[:500].mean(0))
    sae.kernel = item.kernel
    with torch.no_grad():
        sae.get_parameter("b_gate" if case == "gated" else "b_enc")[:9] -= 0.6
    member = Member(item, sae, 1.0, group)
    member.optimizer = Recorded(sae)
    member.tokens_since_fired[::3] = 10**6
    source = Shared(x, group)
    for step in range(num_steps):
        member.step(source.batch(step))
    gradients = {f"gradient.{name}": tensor for name, tensor in member.optimizer.first.items()}
    weights = {f"weight.{name}": tensor.detach() for name, tensor in sae.named_parameters()}
    return {**gradients, **weights, "tokens_since_fired": member.tokens_since_fired, "window": member.window}


def trained(plans: list[Plan], x: Tensor, group: Group, folder: Path, stop: int = 10**9) -> Results:
    """A training from the beginning or from a checkpoint: curves, and what the checkpoint at its end holds."""
    valid = Shared(activations(2000, seed=1).to(x), group)
    ended = train_all(plans, Shared(x, group, stop), valid, folder, group=group)
    found: Results = {}
    checkpoint = latest_checkpoint(folder) if group.rank == 0 else None
    for place, (item, end) in enumerate(zip(plans, ended, strict=True)):
        assert isinstance(end, Trained)
        for name in end.curves[0]:
            values = [float(row[name]) for row in end.curves]
            found[f"{item.name}.curve.{name}"] = torch.tensor(values, dtype=torch.float64)
        for name, tensor in end.sae.state_dict().items():
            found[f"{item.name}.{name}"] = tensor
        if checkpoint is not None:
            found[f"{item.name}.tokens_since_fired"] = checkpoint.tensors[f"{place}.tokens_since_fired"]
    return found


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def curves(group: Group, folder: Path) -> Results:
    """500 steps of Adam in fp32, of two SAEs that share the batches."""
    settings = {"num_steps": 500, "validate_every": 25, "checkpoint_every": 500, "num_valid_rows": 500}
    plans = [plan(case, **settings) for case in ("topk", "batch_topk")]
    return trained(plans, activations(8000), group, folder / "curves")


def resampled(group: Group, folder: Path) -> Results:
    """In fp64, with dead latents that are started anew, and rows that do not fill the last batch."""
    settings = {"num_steps": 80, "dead_after_tokens": 1024, "resample_steps": (40, 60), "num_resample_rows": 900}
    settings |= {"learning_rate": 5e-3, "penalty_warmup_fraction": 0.0}
    with double():
        plans = [
            Plan(
                small_config(architecture=name, dictionary_size=256, k=k, **options),
                small_settings(**settings, num_valid_rows=900, num_init_rows=1900),
                name=name,
            )
            for name, k, options in (("batch_topk", 2, {"aux_alpha": 0.0}), ("relu", 256, {"penalty": 0.6}))
        ]
        return trained(plans, activations(8000).double(), group, folder / "resampled")


def resumed(group: Group, folder: Path) -> Results:
    """The same training in one go and from checkpoints after 25 and 50 steps."""
    found: Results = {}
    item = plan("batch_topk", num_steps=60)
    for name, stops in (("whole", ()), ("parts", (30, 55))):
        for stop in stops:
            with pytest.raises(KeyboardInterrupt):
                trained([item], activations(8000), group, folder / name, stop)
        ended = trained([item], activations(8000), group, folder / name)
        found |= {f"{name}.{key}": value for key, value in ended.items()}
    return found


def failing(group: Group, folder: Path) -> Results:
    """A training that diverges, and rows of one process that are not finite: the loss of all."""
    wild = replace(plan("topk"), settings=small_settings(learning_rate=1e25))
    with pytest.raises(DataError, match=r"loss of step 1 is not finite|loss of step 2 is not finite"):
        trained([wild], activations(8000), group, folder / "wild")
    x = activations(8000)
    x[30 * BATCH + 5, 2] = float("nan")
    with pytest.raises(DataError, match="loss of step 30 is not finite") as error:
        trained([plan("topk")], x, group, folder / "nan")
    assert group.rank or "last good checkpoint: step 25" in (error.value.where or "")
    return {"failed": torch.ones(1)}


def everything(group: Group, folder: Path) -> Results:
    """All of them."""
    torch.set_num_threads(1)
    found: Results = {}
    for case in CASES:
        for dtype, num_steps in ((torch.float32, 1), (torch.float64, 20)):
            steps = stepped(case, group, dtype, num_steps)
            found |= {f"{case}.{num_steps}.{name}": tensor for name, tensor in steps.items()}
    for act in (curves, resampled, resumed, failing):
        found |= {f"{act.__name__}.{name}": tensor for name, tensor in act(group, folder).items()}
    return found


def alone(folder: Path) -> Results:
    """What one process with the whole batch gives."""
    return everything(SOLO, folder)
