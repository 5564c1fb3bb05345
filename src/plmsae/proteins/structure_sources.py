"""The structures of proteins from all sources, written as the tables of `structure_tables`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plmsae.artifacts.archive import is_archive, unpack
from plmsae.proteins.alphafold import AlphaFold
from plmsae.proteins.structure_folder import read_structures
from plmsae.proteins.structure_tables import StructureWriter


def write_structures(
    output: Path, sequences: Mapping[str, str], *, files: Path | None, work: Path, alphafold: AlphaFold | None
) -> dict[str, int]:
    """Write what is known of the proteins' structures.

    Args:
        output: Folder of the tables.
        sequences: Accession -> whole sequence.
        files: Folder or tar archive of PDB and mmCIF files, or None.
        work: Where an archive is unpacked.
        alphafold: Client of AlphaFold DB, or None.

    Returns:
        Counts, for `metrics.json`.

    Raises:
        UserError: The folder is empty.
        DataError: A file or an answer is malformed.
        TryAgainError: AlphaFold DB cannot be reached.
    """
    with StructureWriter(output) as writer:
        if files is not None:
            folder = unpack(files, work) if is_archive(files) else files
            for placed in read_structures(folder, sequences):
                writer.add(placed)
        if alphafold is not None:
            for placed in alphafold.all_placed(sequences):
                writer.add(placed)
    return writer.metrics()
