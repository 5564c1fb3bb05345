"""What `ingest` writes about structures: one Cα per residue, one line per structure, one line per disagreement.

`structures.parquet` has 0-based positions in the protein (not in a row of `sequences.parquet`, which may be a window);
`structures.tsv` and `structure_mismatches.tsv` are for people and count from 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from plmsae.artifacts.atomic import write_text
from plmsae.proteins.structure_mapping import Mapping
from plmsae.proteins.structures import Chain

STRUCTURES_FILE = "structures.parquet"
LIST_FILE = "structures.tsv"
MISMATCHES_FILE = "structure_mismatches.tsv"
STRUCTURES_SCHEMA = pa.schema(
    [
        ("accession", pa.string()),
        ("structure", pa.string()),
        ("chain", pa.string()),
        ("position", pa.int32()),
        ("residue", pa.string()),
        ("same_residue", pa.bool_()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("z", pa.float32()),
        ("b_factor", pa.float32()),
    ]
)
LIST_COLUMNS = (
    "accession",
    "structure",
    "chain",
    "source",
    "version",
    "mapped_by",
    "num_residues",
    "coverage",
    "identity",
)
MISMATCH_COLUMNS = ("accession", "structure", "chain", "position", "uniprot_residue", "structure_residue")


@dataclass(frozen=True)
class Placed:
    """A chain of a structure on a protein, or why there is none.

    Attributes:
        accession: The protein; empty if it is not known.
        structure: Name of the structure.
        source: `alphafold` or `file`.
        version: Version of the model in AlphaFold DB, else empty.
        chain: The chain; None if there is none.
        mapping: Its mapping; None if there is none.
        problem: Why its residues are not in the table; empty if they are.
    """

    accession: str
    structure: str
    source: str
    version: str = ""
    chain: Chain | None = None
    mapping: Mapping | None = None
    problem: str = ""


class StructureWriter:
    """Writes the three files as structures come; use as a context manager.

    Attributes:
        counts: What was written: structures, proteins with one, residues, disagreements, structures left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = pq.ParquetWriter(folder / STRUCTURES_FILE, STRUCTURES_SCHEMA, compression="zstd")
        self._lines = ["\t".join((*LIST_COLUMNS, "problem")) + "\n"]
        self._mismatches = ["\t".join(MISMATCH_COLUMNS) + "\n"]
        self._accessions: set[str] = set()
        self.counts: Counter[str] = Counter()

    def add(self, placed: Placed) -> None:
        """Write a structure."""
        chain, mapping = placed.chain, placed.mapping
        numbers: Sequence[object] = ("", "", "", "")
        if mapping is not None:
            numbers = (mapping.method, mapping.num_mapped, f"{mapping.coverage:.3f}", f"{mapping.identity:.3f}")
        name = chain.name if chain else ""
        cells = (placed.accession, placed.structure, name, placed.source, placed.version, *numbers, placed.problem)
        self._lines.append("\t".join(map(str, cells)) + "\n")
        if placed.problem or chain is None or mapping is None:
            self.counts["num_structures_left_out"] += 1
            return
        self._accessions.add(placed.accession)
        self.counts["num_structures"] += 1
        self.counts["num_structure_mismatches"] += len(mapping.mismatches)
        for item in mapping.mismatches:
            row = (placed.accession, placed.structure, name, item.position, item.expected, item.found)
            self._mismatches.append("\t".join(map(str, row)) + "\n")
        wrong = {item.position - 1 for item in mapping.mismatches}
        rows = [
            (
                placed.accession,
                placed.structure,
                name,
                place,
                item.letter,
                place not in wrong,
                *item.place,
                item.b_factor,
            )
            for item, place in zip(chain.residues, mapping.positions, strict=True)
            if place is not None
        ]
        self.counts["num_structure_residues"] += len(rows)
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*rows, strict=True), STRUCTURES_SCHEMA, strict=True)
        ]
        self._file.write_table(pa.table(columns, schema=STRUCTURES_SCHEMA))

    def __enter__(self) -> StructureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            write_text(self._folder / LIST_FILE, "".join(self._lines))
            write_text(self._folder / MISMATCHES_FILE, "".join(self._mismatches))

    def metrics(self) -> dict[str, int]:
        """The counts, for `metrics.json`."""
        names = ("num_structures", "num_structures_left_out", "num_structure_residues", "num_structure_mismatches")
        return {**{name: self.counts[name] for name in names}, "num_proteins_with_structure": len(self._accessions)}
