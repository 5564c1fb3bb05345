"""What the latents of a SAE mean, read from the tables of the concept evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from plmsae.errors import DataError

LATENTS_FILE = "latents.parquet"
CONCEPTS_FILE = "concepts.csv"
MIN_F1 = 0.5


def latent_names(folder: Path) -> dict[int, str]:
    """Latent -> concept, for latents that are good predictors of one; empty if the folder has no such table.

    A latent gets the name of the concept that it predicts best on validation if its F1 is above 0.5 there and on test
    (the bar of Simon & Zou 2024), and on test above what the residue letter alone reaches.

    Raises:
        DataError: The table cannot be read.
    """
    path = folder / LATENTS_FILE
    if not path.is_file():
        return {}
    import pandas as pd

    try:
        table = pd.read_parquet(path)
        good = table[
            (table["rank"] == 1)
            & (table["f1_valid"] > MIN_F1)
            & (table["f1_test"] > MIN_F1)
            & (table["f1_test"] > table["f1_residue"])
        ]
        return {int(latent): str(concept) for latent, concept in zip(good["latent"], good["concept"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("the table of latents cannot be read", where=str(path), fix="pull the SAE again") from error


class ConceptRow(NamedTuple):
    """A concept and how well it is found on the test proteins.

    Attributes:
        concept: Its name.
        latent: The latent selected for it on validation; None if none was.
        f1: F1 of that latent.
        low: Lower bound of the interval of `f1`.
        high: Upper bound.
        f1_neurons: F1 of the best neuron of the layer.
        f1_residue: F1 of the best set of residue letters.
        beats_residue: The latent is better than the letters beyond the interval.
    """

    concept: str
    latent: int | None
    f1: float
    low: float
    high: float
    f1_neurons: float
    f1_residue: float
    beats_residue: bool

    def interval(self) -> str:
        """For people, e.g. `0.920 [0.910, 0.930]`."""
        return f"{self.f1:.3f} [{self.low:.3f}, {self.high:.3f}]"


def top_concepts(folder: Path, count: int) -> list[ConceptRow]:
    """The concepts that single latents find best, best first; none where nothing was evaluated.

    Args:
        folder: Output of the concept evaluation, or a package.
        count: Number of concepts.

    Raises:
        DataError: The table cannot be read.
    """
    path = folder / CONCEPTS_FILE
    if not path.is_file():
        return []
    import pandas as pd

    try:
        table = pd.read_csv(path)
        if table.empty:
            return []
        neurons = table[table["method"] == "neurons"].set_index("concept")["f1_test"]
        ranked = (
            table[table["method"] == "sae"].sort_values(["f1_test", "concept"], ascending=[False, True]).head(count)
        )
        return [
            ConceptRow(
                concept=str(row.concept),
                latent=None if pd.isna(row.latent) else int(row.latent),
                f1=float(row.f1_test),
                low=float(row.ci_low),
                high=float(row.ci_high),
                f1_neurons=float(neurons[row.concept]),
                f1_residue=float(row.f1_residue),
                beats_residue=bool(row.beats_residue),
            )
            for row in ranked.itertuples()
        ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError("the table of concepts cannot be read", where=str(path), fix="dvc repro evaluate") from error
