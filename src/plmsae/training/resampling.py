"""Dead latents started anew at what the SAE reconstructs worst (Bricken et al. 2023, "Neuron resampling")."""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.saes.dictionary import Dictionary
from plmsae.training.data import BatchSource, rows


@torch.no_grad()
def new_directions(
    sae: Dictionary, source: BatchSource, latents: Tensor, num_rows: int, generator: torch.Generator
) -> Tensor | None:
    """Where to point latents: at rows drawn with probability proportional to the square of their loss.

    The loss is the squared error, so a row that is reconstructed twice as badly in norm is drawn 16 times as often.
    Directions are rows minus b_dec, what the encoder sees. No row is drawn twice while there are enough.

    Args:
        sae: The SAE, whose `group` has the rows; a threshold for all latents is measured anew on the first batch,
            since none stands in training.
        source: Training rows, scaled as in the training.
        latents: int64 [m], which to start anew; see `Dictionary.revive`.
        num_rows: Rows, at most, to look at; Bricken et al. take 819,200.
        generator: CPU generator of the draw.

    Returns:
        Directions [m, d] for `Dictionary.revive`; None if nothing is left to explain. No weight was changed.
    """
    device = sae.b_dec.device
    if sae.calibrated:
        sae.calibrate(source.batch(0).to(device))
    losses, starts, start, group = [], [], 0, sae.group
    for x in rows(source, num_rows, group):
        x = x.to(device)
        own = (x - sae(x)).square().sum(1).cpu() if len(x) else x.new_zeros(0, device="cpu")
        losses.append(group.gather(own))
        lengths = group.gather(torch.tensor([len(x)])).tolist()
        starts.append(start + sum(lengths[: group.rank]))
        start += sum(lengths)
    weights = torch.cat(losses).double().square()
    if not bool(weights.sum() > 0):
        return None
    weights = weights / weights.sum()
    enough = int((weights > 0).sum()) >= len(latents)
    chosen = torch.multinomial(weights, len(latents), replacement=not enough, generator=generator)
    directions = torch.zeros(len(latents), sae.config.d_model, dtype=sae.b_dec.dtype, device=device)
    for first, x in zip(starts, rows(source, num_rows, group)):
        inside = (chosen >= first) & (chosen < first + len(x))
        directions[inside.to(device)] = x[chosen[inside] - first].to(directions)
    return group.sum_(directions) - sae.b_dec
