"""Active latents per residue: sequences through the PLM that the SAE was trained on, then through the SAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from plmsae.errors import UserError

if TYPE_CHECKING:
    from plmsae.plms.base import ProteinLM
    from plmsae.saes.base import SparseAutoencoder

QUERY = "query"
COLUMNS = ("accession", "position", "residue", "latent", "activation", "normalised_activation", "concept")
MAX_TOKENS = 8192


def features(
    sequence: str | Mapping[str, str],
    sae: SparseAutoencoder,
    plm: ProteinLM | None = None,
    *,
    top: int | None = None,
    concepts: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Active latents of every residue of one or more proteins.

    Args:
        sequence: One sequence (its accession becomes `query`), or accession -> sequence. Lower case is accepted.
        sae: A SAE that takes raw activations, as `plmsae.load` returns it.
        plm: The PLM, if it is loaded already; by default the one that `sae.config` names.
        top: Only this many latents per residue, the strongest.
        concepts: Latent -> concept; by default those that came with the SAE's package.

    Returns:
        One row per residue and active latent, in the order of the proteins and residues, strongest latent first:
        `accession`, `position` (1-based), `residue`, `latent`, `activation` (> 0, in units of the residual stream, or
        of the scaled token where the SAE scales every token), `normalised_activation` (divided by the latent's maximum
        in training; NaN where that was never measured), and `concept` ("" where none is known).

    Raises:
        UserError: The PLM is not the one that the SAE was trained on, or a sequence is too long for it.
        DataError: An empty sequence or an illegal residue; the message names the accession and the position.
    """
    proteins = {QUERY: sequence} if isinstance(sequence, str) else sequence
    tables = list(iterate(proteins, sae, plm, top=top, concepts=concepts))
    if not tables:
        raise UserError("there is no sequence", fix="give at least one")
    return pd.concat(tables, ignore_index=True)


def iterate(
    proteins: Mapping[str, str],
    sae: SparseAutoencoder,
    plm: ProteinLM | None = None,
    *,
    top: int | None = None,
    concepts: Mapping[int, str] | None = None,
) -> Iterator[pd.DataFrame]:
    """`features` in pieces of some proteins each, for more of them than fit into memory.

    All sequences are checked before the first piece is made.
    """
    if top is not None and top < 1:
        raise UserError(f"top = {top} must be at least 1", fix="leave it out to get every active latent")
    config = sae.config
    if plm is None:
        plm = _load_plm(config.plm, config.plm_revision)
    sae.check_source(plm.name, plm.revision, config.layer, config.hook)
    plm.check_hook(config.layer, config.hook)
    if concepts is None:
        concepts = sae.concepts
    names = np.full(config.dictionary_size, "", dtype=object)
    for latent, concept in concepts.items():
        names[latent] = concept
    accessions, sequences = list(proteins), [text.strip().upper() for text in proteins.values()]
    for accession, text in zip(accessions, sequences):
        plm.tokenize([text], [accession])
    return _pieces(accessions, sequences, sae, plm, top, names)


def _pieces(
    accessions: list[str],
    sequences: list[str],
    sae: SparseAutoencoder,
    plm: ProteinLM,
    top: int | None,
    names: np.ndarray,
) -> Iterator[pd.DataFrame]:
    start = 0
    while start < len(sequences):
        stop, tokens = start, 0
        while stop < len(sequences) and (stop == start or tokens + len(sequences[stop]) + 2 <= MAX_TOKENS):
            tokens += len(sequences[stop]) + 2
            stop += 1
        yield _table(accessions[start:stop], sequences[start:stop], sae, plm, top, names)
        start = stop


def _table(
    accessions: list[str],
    sequences: list[str],
    sae: SparseAutoencoder,
    plm: ProteinLM,
    top: int | None,
    names: np.ndarray,
) -> pd.DataFrame:
    import torch

    config = sae.config
    with torch.inference_mode():
        rows = plm.hidden(plm.tokenize(sequences, accessions), config.layer, config.hook)
        found, strengths = (part.cpu().numpy() for part in sae.encode_sparse(rows))
    # Strongest first, ties by the lower latent, so that equal inputs give equal tables.
    order = np.lexsort((found, -strengths), axis=1)[:, :top]
    latents = np.take_along_axis(found, order, axis=1)
    values = np.take_along_axis(strengths, order, axis=1)
    row, column = np.nonzero(values > 0)
    latent, value = latents[row, column], values[row, column]
    lengths = np.array([len(text) for text in sequences])
    owner = np.repeat(np.arange(len(sequences)), lengths)[row]
    starts = np.cumsum(lengths) - lengths
    letters = np.array(list("".join(sequences)), dtype=object)
    maxima = sae.latent_max.cpu().numpy()[latent]
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = np.where(maxima > 0, value / maxima, np.nan)
    return pd.DataFrame(
        {
            "accession": np.array(accessions, dtype=object)[owner],
            "position": (row - starts[owner] + 1).astype(np.int64),
            "residue": letters[row],
            "latent": latent.astype(np.int64),
            "activation": value.astype(np.float32),
            "normalised_activation": normalised.astype(np.float32),
            "concept": names[latent],
        },
        columns=list(COLUMNS),
    )


@lru_cache(maxsize=1)
def _load_plm(name: str, revision: str) -> ProteinLM:
    """Load the PLM; the last one is kept, because people ask for one protein after another."""
    from plmsae.plms import load_plm

    return load_plm(name, revision)
