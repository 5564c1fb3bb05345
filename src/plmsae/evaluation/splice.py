"""Run a protein language model with something else in place of its hidden states, and measure what that costs.

Only residue rows are replaced and only the 20 amino acids are scored; special tokens keep their state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import DataError
from plmsae.evaluation.bootstrap import Floats
from plmsae.plms.base import Edit, ProteinLM, Tokens
from plmsae.saes.base import SparseAutoencoder

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
MASKED, UNMASKED = "masked", "unmasked"
PROTOCOLS = (MASKED, UNMASKED)
CLEAN, SAE, ZERO, MEAN, WITH_ERROR = "clean", "sae", "zero", "mean", "sae_with_error"
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

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """[R, d_model] -> its reconstruction."""
        indices, values = self._sae.encode_sparse(x)
        self.x, self.out = x, self._sae.decode_sparse(indices, values, x)
        self.num_active = (values > 0).sum(dim=1)
        return self.out


def replacements(reconstruction: Reconstruction, mean: Tensor, *, error_term: bool) -> dict[str, Replacement]:
    """What is put in place of the hidden states [R, d_model] at the hook.

    Args:
        reconstruction: The SAE.
        mean: [d_model] mean activation.
        error_term: Also add the reconstruction with its error, x_hat + (x - x_hat): a check that must cost nothing.
    """
    found: dict[str, Replacement] = {
        SAE: reconstruction,
        ZERO: torch.zeros_like,
        MEAN: lambda x: mean.to(x.dtype).expand_as(x),
    }
    if error_term:

        def with_error(x: Tensor) -> Tensor:
            out = reconstruction(x)
            return out + (x - out)

        found[WITH_ERROR] = with_error
    return found


def masked_rows(
    keys: Sequence[str], scored: NDArray[np.bool_], starts: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    """The residue rows to mask: a share of the scored residues of every sequence, at least one.

    Args:
        keys: Name of each sequence; with the seed it alone decides which of its residues are masked.
        scored: [R] true at the 20 amino acids.
        starts: [num_sequences + 1] residue rows before each sequence.
        share: Share in (0, 1].
        seed: Seed.

    Returns:
        Rows, ascending.
    """
    chosen = []
    for key, low, high in zip(keys, starts[:-1], starts[1:], strict=True):
        candidates = low + np.flatnonzero(scored[low:high])
        rng = np.random.default_rng([seed, int(sha256_bytes(key.encode())[:16], 16)])
        count = max(1, int(share * len(candidates) + 0.5))
        chosen.append(np.sort(rng.choice(candidates, size=count, replace=False)))
    return np.concatenate(chosen)


def measure(
    plm: ProteinLM,
    sae: SparseAutoencoder,
    mean: Tensor,
    sequences: Sequence[str],
    keys: Sequence[str],
    *,
    masked_share: float,
    error_term: bool,
    seed: int,
) -> dict[str, Floats]:
    """Sums over the residues of each of B sequences, under both protocols and every intervention.

    Args:
        plm: The model that the SAE was trained on.
        sae: The SAE; its configuration names layer and hook.
        mean: [d_model] mean activation.
        sequences: B sequences.
        keys: Their names, which seed the masking.
        masked_share: Share of residues masked in the masked protocol.
        error_term: Also measure the reconstruction with its error.
        seed: Seed of the masking.

    Returns:
        fp64 [B] under `<protocol>_num` (scored residues), `<protocol>_ce_<intervention>` (cross-entropy, nats) and
        `<protocol>_kl_<intervention>` (KL from the clean distribution, nats); and, over all residues of the unmasked
        sequence, `num_residues`, `num_active`, `squared_error` |x - x_hat|^2, `squared_norm` |x|^2, and `total` [B,
        d_model], the sum of x.

    Raises:
        DataError: A sequence without any of the 20 amino acids.
    """
    tokens = plm.tokenize(sequences, keys)
    targets = plm.residue_ids(tokens)
    lengths = np.array([len(sequence) for sequence in sequences])
    owners = np.repeat(np.arange(len(sequences)), lengths)
    scored = scored_rows(plm, targets, owners, keys)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    masked = torch.from_numpy(masked_rows(keys, scored, starts, masked_share, seed))
    cases = {  # the unmasked sequence last: its activations are the ones that the reconstruction remembers
        MASKED: (plm.with_masked(tokens, masked), masked),
        UNMASKED: (tokens, torch.from_numpy(np.flatnonzero(scored))),
    }
    reconstruction = Reconstruction(sae)
    functions = replacements(reconstruction, mean, error_term=error_term)
    sums: dict[str, Floats] = {}
    for protocol, (inputs, rows) in cases.items():
        values = {"num": torch.ones(len(rows)), **losses(plm, sae, functions, inputs, rows, targets)}
        owned = owners[rows.numpy()]
        sums |= {f"{protocol}_{name}": _by_sequence(value, owned, len(sequences)) for name, value in values.items()}
    x, error = reconstruction.x.double(), reconstruction.x.double() - reconstruction.out.double()
    sums |= {
        "num_residues": lengths.astype(np.float64),
        "num_active": _by_sequence(reconstruction.num_active, owners, len(sequences)),
        "squared_error": _by_sequence(error.square().sum(dim=1), owners, len(sequences)),
        "squared_norm": _by_sequence(x.square().sum(dim=1), owners, len(sequences)),
        "total": np.add.reduceat(x.numpy(), starts[:-1], axis=0),
    }
    return sums


def losses(
    plm: ProteinLM,
    sae: SparseAutoencoder,
    functions: Mapping[str, Replacement],
    tokens: Tokens,
    rows: Tensor,
    targets: Tensor,
) -> dict[str, Tensor]:
    """Cross-entropy and divergence from the clean distribution, in nats, where a position is scored.

    Args:
        plm: The model.
        sae: Its configuration names layer and hook.
        functions: Intervention -> what replaces the hidden states.
        tokens: The sequences.
        rows: Residue rows that are scored.
        targets: [R] the true residues.

    Returns:
        fp64 [len(rows)] under `ce_clean`, and under `ce_<intervention>` and `kl_<intervention>`.
    """
    wanted = targets[rows, None]
    edits = [Edit(sae.config.layer, sae.config.hook, function) for function in functions.values()]
    every = plm.logits_each(tokens, [None, *edits])
    clean = torch.log_softmax(next(every)[rows].double(), dim=1)
    found = {f"ce_{CLEAN}": -clean.gather(1, wanted)[:, 0]}
    for name, logits in zip(functions, every, strict=True):
        edited = torch.log_softmax(logits[rows].double(), dim=1)
        found[f"ce_{name}"] = -edited.gather(1, wanted)[:, 0]
        found[f"kl_{name}"] = (clean.exp() * (clean - edited)).sum(dim=1)
    return found


def scored_rows(plm: ProteinLM, targets: Tensor, owners: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.bool_]:
    """[R] true at the 20 amino acids.

    Raises:
        DataError: A sequence without any.
    """
    amino_acids = torch.tensor([plm.vocabulary[letter] for letter in AMINO_ACIDS])
    scored: NDArray[np.bool_] = torch.isin(targets, amino_acids).numpy()
    empty = np.flatnonzero(np.bincount(owners[scored], minlength=len(keys)) == 0)
    if len(empty):
        raise DataError(
            "a sequence with none of the 20 amino acids cannot be scored", where=keys[int(empty[0])], fix="remove it"
        )
    return scored


def _by_sequence(values: Tensor, owners: NDArray[np.int64], num_sequences: int) -> Floats:
    return np.bincount(owners, weights=values.double().numpy(), minlength=num_sequences).astype(np.float64)
