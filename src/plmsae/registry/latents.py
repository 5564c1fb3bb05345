"""What the latents of a SAE mean, read from the tables of the concept evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

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


def top_concepts(folder: Path, count: int) -> pd.DataFrame:
    """The concepts that a latent predicts best on test, beside the neurons and the residue letter.

    Args:
        folder: Output of the concept evaluation, or a package.
        count: Number of concepts.

    Returns:
        Columns `concept`, `latent`, `threshold`, `f1`, `low`, `high` (of the SAE), `f1_neurons`, `f1_residue` and
        `beats_residue`, best first; no rows where nothing was evaluated.
    """
    import pandas as pd

    columns = ["concept", "latent", "threshold", "f1", "low", "high", "f1_neurons", "f1_residue", "beats_residue"]
    path = folder / CONCEPTS_FILE
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    try:
        table = pd.read_csv(path, keep_default_na=True)
        if table.empty:
            return pd.DataFrame(columns=columns)
        sae = table[table["method"] == "sae"].rename(columns={"f1_test": "f1", "ci_low": "low", "ci_high": "high"})
        neurons = table[table["method"] == "neurons"].set_index("concept")["f1_test"]
        sae = sae.assign(f1_neurons=sae["concept"].map(neurons), latent=sae["latent"].astype("Int64"))
        ranked = sae.sort_values(["f1", "concept"], ascending=[False, True], kind="stable")
        return ranked[columns].head(count).reset_index(drop=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError("the table of concepts cannot be read", where=str(path), fix="dvc repro evaluate") from error
