"""The structures of proteins from all sources, written as the tables of `structure_tables`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plmsae.proteins.alphafold import AlphaFold
from plmsae.proteins.structure_folder import read_structures
from plmsae.proteins.structure_tables import StructureWriter


def write_structures(
    output: Path, sequences: Mapping[str, str], *, folder: Path | None, alphafold: AlphaFold | None
) -> dict[str, int]:
    """Write what is known of the proteins' structures.

    Args:
        output: Folder of the tables.
        sequences: Accession -> whole sequence.
        folder: Folder of PDB and mmCIF files, or None.
        alphafold: Client of AlphaFold DB, or None.

    Returns:
        Counts, for `metrics.json`.

    Raises:
        UserError: The folder is empty.
        DataError: A file or an answer is malformed.
        TryAgainError: AlphaFold DB cannot be reached.
    """
    with StructureWriter(output) as writer:
        if folder is not None:
            for placed in read_structures(folder, sequences):
                writer.add(placed)
        if alphafold is not None:
            for placed in alphafold.all_placed(sequences):
                writer.add(placed)
    return writer.metrics()
