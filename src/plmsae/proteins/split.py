"""Train, validation and test: whole homology clusters, by a hash of the cluster's representative.

A cluster goes where its own hash says, whatever else the data hold, so a later release with more proteins leaves the
clusters of the earlier one where they are. The price is that fractions are met only on average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from plmsae.errors import DataError
from plmsae.proteins.hashing import unit_hash

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def split_of(representative: str, *, seed: int, valid_fraction: float, test_fraction: float) -> Split:
    """The split of a cluster."""
    place = unit_hash(seed, "split", representative)
    if place < test_fraction:
        return "test"
    return "valid" if place < test_fraction + valid_fraction else "train"


def assign_splits(
    clusters: Mapping[str, str], *, seed: int, valid_fraction: float, test_fraction: float
) -> dict[str, Split]:
    """Accession -> split.

    Args:
        clusters: Accession -> accession of its cluster's representative.
        seed: Seed of the assignment.
        valid_fraction: Expected fraction of clusters (and so of proteins) in `valid`.
        test_fraction: The same for `test`.

    Raises:
        DataError: A split came out empty; the message names a seed that fills all three, if one is near.
    """

    def places(chosen_seed: int) -> dict[str, Split]:
        return {
            name: split_of(name, seed=chosen_seed, valid_fraction=valid_fraction, test_fraction=test_fraction)
            for name in set(clusters.values())
        }

    by_cluster = places(seed)
    if missing := _missing(by_cluster.values()):
        good = next((other for other in range(seed + 1, seed + 101) if not _missing(places(other).values())), None)
        raise DataError(
            f"split '{missing[0]}' is empty: {len(clusters)} proteins form {len(by_cluster)} homology clusters, "
            "and clusters are never divided",
            fix=(f"set seed to {good}, " if good is not None else "")
            + "use more proteins, larger valid_fraction and test_fraction, or a higher cluster_identity",
        )
    return {accession: by_cluster[representative] for accession, representative in clusters.items()}


def _missing(found: Iterable[Split]) -> list[Split]:
    present = set(found)
    return [split for split in SPLITS if split not in present]
