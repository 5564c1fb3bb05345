"""Run a protein language model with something else in place of its hidden states, and measure what that costs.

Only residue rows are replaced; special tokens keep their state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.protocols import (
    AMINO_ACIDS,
    DIRECTION_STREAM,
    SINGLE,
    Batch,
    Case,
    one_at_a_time,
    protocols_of,
    sequence_rng,
    together,
)
from plmsae.plms.base import Edit, ProteinLM, Tokens
from plmsae.saes.base import SparseAutoencoder

CLEAN, SAE, ZERO, MEAN, RANDOM, WITH_ERROR = "clean", "sae", "zero", "mean", "random", "sae_with_error"
Replacement = Callable[[Tensor], Tensor]


class Reconstruction:
    """The SAE in place of the hidden state; remembers the last activations that it saw.

    Attributes:
        x: [R, d_model] activations.
        out: [R, d_model] their reconstruction.
        num_active: [R] latents above zero.
    """

    x: Tensor
    out: Tensor
    num_active: Tensor

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self.x = torch.empty(0)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """[R, d_model] -> its reconstruction, which is not computed again for equal activations."""
        if not torch.equal(x, self.x):
            indices, values = self._sae.encode_sparse(x)
            self.x, self.out = x, self._sae.decode_sparse(indices, values, x)
            self.num_active = (values > 0).sum(dim=1)
        return self.out


def replacements(
    reconstruction: Reconstruction, mean: Tensor, directions: Tensor, *, error_term: bool
) -> dict[str, Replacement]:
    """What is put in place of the hidden states [R, d_model] at the hook.

    Args:
        reconstruction: The SAE.
        mean: [d_model] mean activation.
        directions: [R, d_model] unit vectors u of the random error x + |x - x_hat| u, as long as the SAE's: what an
            error of that size costs if it has no structure (Gurnee 2024, "SAE reconstruction errors are (empirically)
            pathological").
        error_term: Also add the reconstruction with its error, x_hat + (x - x_hat): a check that must cost nothing.
    """

    def random(x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x - reconstruction(x), dim=1, keepdim=True)
        return x + length * directions.to(x.dtype)

    found: dict[str, Replacement] = {
        SAE: reconstruction,
        ZERO: torch.zeros_like,
        MEAN: lambda x: mean.to(x.dtype).expand_as(x),
        RANDOM: random,
    }
    if error_term:

        def with_error(x: Tensor) -> Tensor:
            out = reconstruction(x)
            return out + (x - out)

        found[WITH_ERROR] = with_error
    return found


def random_directions(keys: Sequence[str], lengths: Sequence[int], d_model: int, seed: int) -> Tensor:
    """Directions drawn uniformly from the sphere, one per residue.

    Args:
        keys: Name of each sequence; with the seed it alone decides its directions.
        lengths: Residues of each sequence, R in all.
        d_model: Dimensions.
        seed: Seed.

    Returns:
        fp32 [R, d_model], rows of length 1.
    """
    pieces = [
        sequence_rng(key, seed, DIRECTION_STREAM).standard_normal((length, d_model))
        for key, length in zip(keys, lengths, strict=True)
    ]
    rows = np.concatenate(pieces)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


@dataclass(frozen=True)
class Sums:
    """What B sequences contribute.

    Attributes:
        of_sequence: fp64 [B] under `<protocol>_num` (scored residues), `<protocol>_ce_<intervention>` (cross-entropy,
            nats) and `<protocol>_kl_<intervention>` (KL from the clean distribution, nats); and, over all residues of
            the sequence as it is, `num_residues`, `num_active`, `squared_error` |x - x_hat|^2, `squared_norm` |x|^2,
            and `total` [B, d_model], the sum of x.
        of_letter: The names with a protocol again, fp64 [B, 20] by the amino acid that is scored.
    """

    of_sequence: dict[str, Floats]
    of_letter: dict[str, Floats]


def measure(
    plm: ProteinLM,
    sae: SparseAutoencoder,
    mean: Tensor,
    sequences: Sequence[str],
    keys: Sequence[str],
    *,
    masked_share: float,
    single_mask_residues: int,
    error_term: bool,
    max_tokens: int,
    seed: int,
) -> Sums:
    """Sums over the residues of each of B sequences, under every protocol of the model and every intervention.

    Args:
        plm: The model that the SAE was trained on.
        sae: The SAE; its configuration names layer and hook.
        mean: [d_model] mean activation.
        sequences: B sequences.
        keys: Their names, which seed masking and random errors.
        masked_share: Share of residues masked in the masked protocol.
        single_mask_residues: Residues of each sequence that are masked one at a time; 0: without this protocol.
        error_term: Also measure the reconstruction with its error.
        max_tokens: Tokens that go through the model at once where each residue needs a copy of its sequence.
        seed: Seed of masking and random errors.

    Raises:
        DataError: A sequence of which no residue can be scored.
    """
    batch = Batch.of(plm, sequences, keys)
    lengths = np.diff(batch.starts)
    directions = random_directions(batch.keys, lengths.tolist(), plm.d_model, seed)
    reconstruction = Reconstruction(sae)
    count = len(sequences)
    by_sequence: dict[str, Floats] = {}
    by_letter: dict[str, Floats] = {}

    def run(case: Case) -> dict[str, Tensor]:
        functions = replacements(reconstruction, mean, directions[case.sources], error_term=error_term)
        return losses(plm, sae, functions, case.tokens, case.rows, batch.targets[case.scored])

    # The last protocol runs the sequence as it is: its activations are the ones that the reconstruction remembers.
    for protocol in protocols_of(plm, single_mask_residues):
        passes: Iterable[Case]
        if protocol == SINGLE:
            passes = one_at_a_time(plm, batch, count=single_mask_residues, max_tokens=max_tokens, seed=seed)
        else:
            passes = [together(plm, batch, protocol, masked_share=masked_share, seed=seed)]
        found = [(case.scored, run(case)) for case in passes]
        scored = np.concatenate([rows for rows, _ in found])
        owners = batch.owners[scored]
        cells = owners * len(AMINO_ACIDS) + batch.letters[scored]
        values = {name: torch.cat([piece[name] for _, piece in found]) for name in found[0][1]}
        for name, value in {"num": torch.ones(len(scored)), **values}.items():
            by_sequence[f"{protocol}_{name}"] = _summed(value, owners, count)
            letters = _summed(value, cells, count * len(AMINO_ACIDS))
            by_letter[f"{protocol}_{name}"] = letters.reshape(count, len(AMINO_ACIDS))
    x, error = reconstruction.x.double(), reconstruction.x.double() - reconstruction.out.double()
    by_sequence |= {
        "num_residues": lengths.astype(np.float64),
        "num_active": _summed(reconstruction.num_active, batch.owners, count),
        "squared_error": _summed(error.square().sum(dim=1), batch.owners, count),
        "squared_norm": _summed(x.square().sum(dim=1), batch.owners, count),
        "total": np.add.reduceat(x.numpy(), batch.starts[:-1], axis=0),
    }
    return Sums(by_sequence, by_letter)


def losses(
    plm: ProteinLM,
    sae: SparseAutoencoder,
    functions: Mapping[str, Replacement],
    tokens: Tokens,
    rows: Tensor,
    targets: Tensor,
) -> dict[str, Tensor]:
    """Cross-entropy and divergence from the clean distribution, in nats, where scores are read.

    Args:
        plm: The model.
        sae: Its configuration names layer and hook.
        functions: Intervention -> what replaces the hidden states.
        tokens: The sequences.
        rows: int64 [n], residue rows whose scores are read.
        targets: int64 [n], the true token of each.

    Returns:
        fp64 [n] under `ce_clean`, and under `ce_<intervention>` and `kl_<intervention>`.
    """
    wanted = targets[:, None]
    edits = [Edit(sae.config.layer, sae.config.hook, function) for function in functions.values()]
    every = plm.logits_each(tokens, [None, *edits])
    clean = torch.log_softmax(next(every)[rows].double(), dim=1)
    found = {f"ce_{CLEAN}": -clean.gather(1, wanted)[:, 0]}
    for name, logits in zip(functions, every, strict=True):
        edited = torch.log_softmax(logits[rows].double(), dim=1)
        found[f"ce_{name}"] = -edited.gather(1, wanted)[:, 0]
        found[f"kl_{name}"] = (clean.exp() * (clean - edited)).sum(dim=1)
    return found


def _summed(values: Tensor, cells: NDArray[np.int64], num_cells: int) -> Floats:
    return np.bincount(cells, weights=values.double().numpy(), minlength=num_cells).astype(np.float64)
