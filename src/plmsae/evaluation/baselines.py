"""Baselines fitted to activations: `pca`, `ica` and `random`, each a `SparseAutoencoder` with measured maxima.

They take raw activations, as a folded SAE does, and belong to the same PLM, revision, layer and hook.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plmsae.activations.blocks import BlockStore
from plmsae.errors import DataError, UserError
from plmsae.evaluation.inputs import Inputs
from plmsae.plms.parallel import ordered_map
from plmsae.saes import SaeConfig, build
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.components import ICA, PCA

METHODS = ("sae", "neurons", "pca", "ica", "random")
ROWS_AT_ONCE = 16_384
# Eigenvalues below this share of the largest are rounding errors of fp32 activations: whitening would blow them up.
NO_VARIANCE = 1e-10


def fit_pca(
    batches: Iterable[Tensor], like: SaeConfig, *, num_components: int | None = None, k: int | None = None
) -> PCA:
    """Principal components of rows that pass by once, from fp64 sums.

    Args:
        batches: Raw activations [N, d], at least two rows in all.
        like: Configuration of the SAE to compare with: PLM, revision, layer, hook and width are taken from it.
        num_components: m; d if not given.
        k: Components per token; if not given, k of the SAE or m, whichever is less.

    Returns:
        The baseline; `config.training` holds the number of rows and the share of variance of the m components. The
        sign of a component makes its entry of largest magnitude positive.

    Raises:
        UserError: The width or a number does not fit.
        DataError: NaN or infinity, fewer than two rows, or rows that do not vary.
    """
    num_rows, shift = 0, torch.zeros(like.d_model, dtype=torch.float64)
    total = torch.zeros_like(shift)
    outer = torch.zeros(like.d_model, like.d_model, dtype=torch.float64)
    for batch in batches:
        rows = _checked(batch, like)
        if num_rows == 0 and len(rows):
            shift = rows.mean(0)  # sums of squares about a point near the mean do not cancel
        rows = rows - shift
        num_rows += len(rows)
        total += rows.sum(0)
        outer += rows.T @ rows
    if num_rows < 2:
        raise DataError(f"{num_rows} rows have no variance", where="rows", fix="pass more activations")
    mean = total / num_rows
    variances, vectors = torch.linalg.eigh(outer / num_rows - torch.outer(mean, mean))
    variances, components = variances.flip(0).clamp_min(0), vectors.T.flip(0)
    if float(variances[0]) == 0:
        raise DataError("the activations do not vary", where="rows", fix="pass different rows")
    signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    m = like.d_model if num_components is None else num_components
    share = float(variances[:m].sum() / variances.sum())
    config = _config("pca", like, m, k, {"rows": num_rows, "explained_variance": share})
    sae = PCA(config)
    sae.set_components((components * signs)[:m], mean + shift)
    return sae


def fit_ica(
    x: Tensor,
    like: SaeConfig,
    *,
    num_components: int | None = None,
    k: int | None = None,
    seed: int = 0,
    max_iterations: int = 200,
) -> ICA:
    """Independent components by FastICA (Hyvärinen & Oja 2000), from scikit-learn.

    Args:
        x: Raw activations [N, d].
        like: See `fit_pca`.
        num_components: m; d if not given.
        k: Components per token; if not given, k of the SAE or m, whichever is less.
        seed: Seed of FastICA's starting point.
        max_iterations: The most iterations. Whether it converged is in `config.training`, not an error: components
            that still rotate a little are a baseline too.

    Raises:
        UserError: The width or a number does not fit.
        DataError: NaN or infinity, or the rows span fewer than m directions.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    rows = _checked(x, like)
    m = like.d_model if num_components is None else num_components
    config = _config("ica", like, m, k, {})  # refuses sizes that do not fit before any time is spent
    mean = rows.mean(0) if len(rows) else rows.new_zeros(like.d_model)
    centred = rows - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / max(len(rows), 1))
    rank = int((variances > NO_VARIANCE * variances[-1]).sum())
    if rank < m:
        raise DataError(
            f"{len(rows)} rows vary in {rank} directions; {m} components need as many",
            where="rows",
            fix="pass more rows, or ask for fewer components",
        )
    # Whitened in fp64, rotated in fp32: the rotation takes all the time, and does not amplify what it rounds.
    scales, directions = variances[-m:].flip(0).sqrt()[:, None], vectors[:, -m:].T.flip(0)
    white = (centred @ (directions / scales).T).float()
    model = FastICA(m, whiten=False, random_state=seed, max_iter=max_iterations, tol=1e-5)
    # On one core: the bytes must not depend on how many there are, and more of them hardly help.
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
        warnings.simplefilter("always")
        model.fit(white.numpy())
    converged = not any(issubclass(item.category, ConvergenceWarning) for item in caught)
    training = {"rows": len(rows), "seed": seed, "iterations": int(model.n_iter_), "converged": converged}
    sae = ICA(config.replace(training=training))
    left, _, right = torch.linalg.svd(torch.from_numpy(model.components_).double())
    rotation = left @ right  # the nearest one that is exactly orthogonal
    unmixing, mixing = rotation @ (directions / scales), rotation @ (directions * scales)
    sae.set_components(unmixing, mixing, mean)
    return sae


def random_dictionary(like: SaeConfig, center: Tensor, *, k: int | None = None, seed: int = 0) -> SparseAutoencoder:
    """As many random unit atoms as the SAE has, with the mean activation [d] as `b_dec`.

    Raises:
        UserError: The mean or k does not fit.
    """
    config = like.replace(
        architecture="random", k=like.k if k is None else k, options={}, training={"seed": seed}, normaliser=_raw(like)
    )
    if center.shape != (like.d_model,):
        raise UserError(f"a mean of shape {tuple(center.shape)}", where="center", fix=f"pass [{like.d_model}]")
    sae = build(config, seed=seed)
    sae.b_dec.copy_(center)
    return sae


@dataclass(frozen=True)
class Fitted:
    """The SAE and its baselines, all with maxima over the same rows.

    Attributes:
        methods: Name -> units: `sae`, `neurons`, `pca`, `ica`, `random`, in this order. PCA, ICA and neurons keep all
            their coordinates.
        num_rows: Training rows that everything was fitted to and measured on.
        ica_rows: How many of them ICA was fitted to.
        k: Latents that the SAE uses on one of these rows, rounded: the budget of the comparison at equal L0. `random`
            keeps as many.
    """

    methods: dict[str, SparseAutoencoder]
    num_rows: int
    ica_rows: int
    k: int


def fit_baselines(
    inputs: Inputs,
    *,
    num_rows: int | None,
    ica_rows: int,
    ica_components: int | None,
    ica_iterations: int,
    threads: int,
    seed: int,
) -> Fitted:
    """Fit every baseline to training rows of the store, which are shuffled, and measure all maxima on them.

    Args:
        inputs: The SAE to compare with, and its store.
        num_rows: Rows; as many as the SAE's maxima were taken over if not given.
        ica_rows: The most of them that ICA is fitted to.
        ica_components: Components of ICA, d if not given; its time grows with their cube.
        ica_iterations: The most iterations of FastICA.
        threads: Baselines that are fitted at once, on one core each; the numbers do not depend on it.
        seed: Seed of ICA's start and of the random atoms.

    Raises:
        UserError: The number of components does not fit.
        DataError: The rows do not suffice.
    """
    batches = list(training_rows(inputs, num_rows))
    like, d = inputs.sae.config, inputs.sae.config.d_model
    sae = copy.deepcopy(inputs.sae)
    k = max(1, round(_measure(sae, batches)))
    m = d if ica_components is None else ica_components
    some = torch.cat(batches)[:ica_rows]

    def neurons() -> SparseAutoencoder:
        config = like.replace(
            architecture="neurons", dictionary_size=2 * d, k=d, options={}, training={}, normaliser=_raw(like)
        )
        found = build(config)
        found.initialise(torch.Generator().manual_seed(0), center=inputs.mean)
        return found

    fits: dict[str, Callable[[], SparseAutoencoder]] = {
        "ica": lambda: fit_ica(some, like, num_components=m, k=m, seed=seed, max_iterations=ica_iterations),
        "random": lambda: random_dictionary(like, inputs.mean, k=min(k, like.dictionary_size), seed=seed),
        "pca": lambda: fit_pca(batches, like, k=d),
        "neurons": neurons,
    }

    def run(name: str) -> SparseAutoencoder:
        found = fits[name]()
        measure_maxima(found, batches)
        return found

    found = {"sae": sae, **dict(zip(fits, ordered_map(run, fits, threads)))}
    return Fitted({name: found[name] for name in METHODS}, sum(map(len, batches)), len(some), k)


def measure_maxima(sae: SparseAutoencoder, batches: Iterable[Tensor]) -> None:
    """Set `latent_max` [n] to the largest value of each latent on some rows."""
    _measure(sae, batches)


@torch.no_grad()
def _measure(sae: SparseAutoencoder, batches: Iterable[Tensor]) -> float:
    """Set `latent_max`, and return the mean number of latents above zero."""
    highest, num_active, num_rows = torch.zeros_like(sae.latent_max), 0, 0
    for rows in batches:
        indices, values = sae.encode_sparse(rows)
        highest.scatter_reduce_(0, indices.flatten(), values.flatten(), reduce="amax")
        num_active += int((values > 0).sum())
        num_rows += len(rows)
    sae.latent_max.copy_(highest)
    return num_active / max(num_rows, 1)


def training_rows(inputs: Inputs, most: int | None) -> Iterator[Tensor]:
    """The first rows of the store, in batches [R, d]; `most` None: as many as the SAE's maxima were taken over."""
    store = BlockStore(inputs.store, "train")
    left = int(inputs.sae.config.training.get("latent_max_rows", store.num_rows)) if most is None else most
    for rows in store.rows(ROWS_AT_ONCE):
        yield rows[:left]
        left -= min(left, len(rows))
        if left == 0:
            return


def _raw(like: SaeConfig) -> dict[str, Any]:
    """A baseline is fitted to raw activations: there is no scale left to fold."""
    return {"kind": "rms", "scale": like.normaliser.get("scale", 1.0), "folded": True}


def _config(architecture: str, like: SaeConfig, m: int, k: int | None, training: dict[str, Any]) -> SaeConfig:
    if type(m) is not int or not 1 <= m <= like.d_model:
        raise UserError(
            f"num_components {m!r} is not in 1..{like.d_model}", where="num_components", fix="ask for at most d_model"
        )
    k = min(like.k, m) if k is None else k
    if type(k) is not int or not 1 <= k <= m:
        raise UserError(f"k = {k!r} is not in 1..{m}", where="k", fix="keep at most all components")
    return like.replace(
        architecture=architecture, dictionary_size=2 * m, k=k, options={}, training=training, normaliser=_raw(like)
    )


def _checked(rows: Tensor, like: SaeConfig) -> Tensor:
    """Rows in float64 on the CPU, if they are numbers of the right width."""
    if rows.ndim != 2 or rows.shape[1] != like.d_model:
        raise UserError(
            f"activations of shape {tuple(rows.shape)}; the SAE takes width {like.d_model}",
            where="rows",
            fix="use activations of the layer that the SAE was trained on",
        )
    bad = ~torch.isfinite(rows).all(dim=1)
    if bool(bad.any()):
        raise DataError(
            f"{int(bad.sum())} of {len(rows)} activation rows hold NaN or infinity",
            where=f"row {int(bad.nonzero()[0])}",
            fix="extract the activations again; half precision overflows above 65504",
        )
    return rows.detach().cpu().double()
