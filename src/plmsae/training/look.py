"""A row of the curves: how the training went since the last one, and how well held-out rows are reconstructed.

Measuring changes no state but a threshold for all latents, which is a function of the weights and the held-out rows:
it may be cut anywhere and done again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from plmsae.training.data import BatchSource, rows
from plmsae.training.member import Member
from plmsae.training.metrics import ReconstructionMetrics

# A reconstruction this many times worse than at the start (or than the mean) does not come back.
DIVERGED = 10.0


def check_error(member: Member) -> None:
    """Stop a training whose reconstruction got far worse.

    Raises:
        DataError: It did; the FVU is named.
    """
    fvu = _training_fvu(member)
    first = member.curves[0]["fvu"] if member.curves else fvu
    if fvu > DIVERGED * max(1.0, first):
        raise member.diverged(f"FVU is {fvu:.3g} at step {member.num_steps_done}")


def measure(
    members: Sequence[Member], valid: BatchSource, num_valid_rows: int, device: str
) -> list[ReconstructionMetrics]:
    """How well every member reconstructs held-out rows, which are read once for all.

    A threshold for all latents, where an architecture has one, is calibrated on the same held-out rows.

    Args:
        members: At least one; all have seen the same steps.
        valid: Held-out rows.
        num_valid_rows: How many of them.
        device: That of the members.
    """
    group = members[0].group
    if any(member.sae.calibrated for member in members):
        held_out = torch.cat(list(rows(valid, num_valid_rows, group))).to(device)
        for member in members:
            member.sae.calibrate(held_out)
        del held_out
    metrics = [ReconstructionMetrics(m.sae.config.d_model, m.sae.config.dictionary_size) for m in members]
    for x in rows(valid, num_valid_rows, group):
        x = x.to(device)
        for member, metric in zip(members, metrics):
            if len(x):
                metric.update(member.sae, x)
    for metric in metrics:
        metric.add_up(group)
    return metrics


def add_row(member: Member, metrics: ReconstructionMetrics) -> None:
    """Add a row to the curves of a member, and begin a new window.

    Raises:
        DataError: A number of the row is not finite, or held-out rows are reconstructed far worse than at the start.
    """
    row = _row(member, metrics)
    wrong = [name for name, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise member.diverged(f"{wrong[0]} is {row[wrong[0]]} at step {member.num_steps_done}")
    first = member.curves[0]["valid_fvu"] if member.curves else row["valid_fvu"]
    if row["valid_fvu"] > DIVERGED * max(1.0, first):
        raise member.diverged(f"FVU on held-out rows is {row['valid_fvu']:.3g} at step {member.num_steps_done}")
    member.curves.append(row)
    member.window.zero_()


def _row(member: Member, metrics: ReconstructionMetrics) -> dict[str, float]:
    measured = metrics.compute()
    loss, _, aux, active, num_steps = member.window.tolist()
    row = {
        "step": member.num_steps_done,
        "tokens": member.num_tokens_done,
        "loss": loss / num_steps,
        "fvu": _training_fvu(member),
        "l0": active / num_steps,
        "dead_fraction": float(member.dead.double().mean()),
        "aux_loss": aux / num_steps,
        "valid_fvu": float(measured["fvu"]),
        "valid_l0": float(measured["l0"]),
        "valid_dead_fraction": float(measured["dead_fraction"]),
        "learning_rate": member.optimizer.param_groups[0]["lr"],
    }
    if member.penalty is not None:
        row["penalty"] = member.penalty
    return row


def _training_fvu(member: Member) -> float:
    _, error, _, _, num_steps = member.window.tolist()
    return float(error / num_steps / member.variance)
