"""Chains of PDB and mmCIF files: one Cα per residue, and which UniProt residues the file says they are.

Only the first model is read. Of alternative places the one with the highest occupancy counts, of equal ones the first.
Modified residues have the letter of the residue that they were made from (MSE is M), other unknown ones X. mmCIF is
read with Biopython; a PDB file by its columns (wwPDB format 3.3), so that a message can name the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plmsae.errors import DataError
from plmsae.proteins.lines import read_lines

SUFFIXES = (".cif", ".mmcif", ".pdb", ".ent")


@dataclass(frozen=True)
class Residue:
    """A residue that is seen in a structure.

    Attributes:
        letter: One-letter code, X for an unknown one.
        number: Its number in the file: `label_seq_id` of mmCIF, `resSeq` of PDB.
        insertion: Insertion code of a PDB file, or empty.
        place: x, y and z of its Cα in ångström.
        b_factor: Temperature factor, or pLDDT (0 to 100) in a predicted structure.
    """

    letter: str
    number: int
    insertion: str
    place: tuple[float, float, float]
    b_factor: float


@dataclass(frozen=True)
class Reference:
    """A stretch of a chain that the file says to be a stretch of a UniProt entry; all ends are inclusive.

    Attributes:
        accession: UniProt accession.
        first: Number of its first residue in the file.
        last: Number of its last residue in the file.
        uniprot_first: 1-based UniProt position of `first`.
    """

    accession: str
    first: int
    last: int
    uniprot_first: int


@dataclass
class Chain:
    """A protein chain, named as its authors did."""

    name: str
    residues: list[Residue] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    @property
    def sequence(self) -> str:
        """Letters of the residues that are seen."""
        return "".join(residue.letter for residue in self.residues)


def structure_suffix(path: Path) -> str | None:
    """`.cif`, `.pdb` or the like of a file that is a structure by its name, gzip or not; else None."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_chains(path: Path) -> list[Chain]:
    """The protein chains of a file in its order; empty if it holds none.

    Raises:
        DataError: The file is malformed or cut.
    """
    chains = _read_mmcif(path) if structure_suffix(path) in (".cif", ".mmcif") else _read_pdb(path)
    return [chain for chain in chains.values() if chain.residues]


@dataclass
class _Seen:
    """The Cα that counts so far, of each residue of each chain."""

    path: Path
    chains: dict[str, Chain] = field(default_factory=dict)
    _best: dict[tuple[str, int, str], tuple[float, int]] = field(default_factory=dict)

    def chain(self, name: str) -> Chain:
        return self.chains.setdefault(name, Chain(name))

    def add(self, name: str, component: str, number: int, insertion: str, values: Sequence[float]) -> None:
        x, y, z, b_factor, occupancy = values
        if not all(map(math.isfinite, (x, y, z, b_factor))):
            raise DataError(
                f"residue {number}{insertion} of chain {name} has a coordinate that is not a number",
                where=str(self.path),
                fix="download the structure again",
            )
        chain, key = self.chain(name), (name, number, insertion)
        residue = Residue(_letter(component), number, insertion, (x, y, z), b_factor)
        if key not in self._best:
            self._best[key] = (occupancy, len(chain.residues))
            chain.residues.append(residue)
        elif occupancy > self._best[key][0]:
            self._best[key] = (occupancy, self._best[key][1])
            chain.residues[self._best[key][1]] = residue


def _letter(component: str) -> str:
    from Bio.Data.PDBData import protein_letters_3to1_extended

    letter = str(protein_letters_3to1_extended.get(component.upper().ljust(3), "X")).strip()
    return letter if len(letter) == 1 else "X"


def _read_mmcif(path: Path) -> dict[str, Chain]:
    from io import StringIO

    from Bio.PDB.MMCIF2Dict import MMCIF2Dict

    text = "\n".join(line for _, line in read_lines(path))
    fix = "download the structure again; it may have been cut off"
    if not text.lstrip().startswith(("data_", "#")):
        raise DataError("the file is not mmCIF: it does not start with data_", where=f"{path}, line 1", fix=fix)
    try:
        table: dict[str, list[str]] = MMCIF2Dict(StringIO(text))
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"the mmCIF cannot be read ({' '.join(str(error).split())[:80]})", where=str(path), fix=fix
        ) from error
    seen = _Seen(path)
    columns = ["label_atom_id", "label_comp_id", "auth_asym_id", "label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z"]
    columns += ["B_iso_or_equiv", "occupancy", "pdbx_PDB_model_num"]
    missing = [name for name in columns if f"_atom_site.{name}" not in table]
    if missing:
        raise DataError(f"the mmCIF has no _atom_site.{missing[0]}", where=str(path), fix=fix)
    model: str | None = None
    for number, (atom, component, chain, seq_id, x, y, z, b_factor, occupancy, found_model) in enumerate(
        _rows(table, "_atom_site.", columns, path), start=1
    ):
        model = found_model if model is None else model
        if atom != "CA" or seq_id in (".", "?") or found_model != model:  # no residue number: not of a polymer
            continue
        try:
            values = [float(x), float(y), float(z), float(b_factor), 1.0 if occupancy in ".?" else float(occupancy)]
            seen.add(chain, component, int(seq_id), "", values)
        except ValueError as error:
            raise DataError(
                f"atom {number} has a value that is not a number ({error})", where=str(path), fix=fix
            ) from error
    _mmcif_references(table, seen, path)
    return seen.chains


def _mmcif_references(table: Mapping[str, list[str]], seen: _Seen, path: Path) -> None:
    databases = dict(_rows(table, "_struct_ref.", ("id", "db_name"), path))
    columns = ("ref_id", "pdbx_strand_id", "pdbx_db_accession", "seq_align_beg", "seq_align_end", "db_align_beg")
    for ref_id, strands, accession, *ends in _rows(table, "_struct_ref_seq.", columns, path):
        if databases.get(ref_id, "UNP") == "UNP" and all(end.lstrip("-").isdigit() for end in ends):
            for strand in strands.split(","):
                if strand.strip() in seen.chains:
                    first, last, uniprot_first = map(int, ends)
                    seen.chains[strand.strip()].references.append(Reference(accession, first, last, uniprot_first))


def _rows(table: Mapping[str, list[str]], prefix: str, columns: Sequence[str], path: Path) -> Iterator[list[str]]:
    found = [table.get(prefix + name, []) for name in columns]
    if not all(found):
        return
    if len({len(column) for column in found}) > 1:
        raise DataError(
            f"the columns of {prefix.rstrip('.')} differ in length",
            where=str(path),
            fix="download the structure again; it may have been cut off",
        )
    yield from map(list, zip(*found, strict=True))


def _read_pdb(path: Path) -> dict[str, Chain]:
    seen, references = _Seen(path), _PdbReferences()
    num_models = num_atoms = 0
    for number, line in read_lines(path):
        kind = line[:6].rstrip()
        if kind == "MODEL":
            num_models += 1
        elif kind.startswith("DBREF"):
            references.add(kind, line)
        elif kind in ("ATOM", "HETATM") and num_models < 2:
            num_atoms += 1
            if line[12:16] != " CA " or (kind == "HETATM" and _letter(line[17:20]) == "X"):
                continue
            try:
                values = [float(line[start : start + 8]) for start in (30, 38, 46)]
                values += [float(line[60:66].strip() or 0.0), float(line[54:60].strip() or 1.0)]
                seen.add(_chain_name(line, 21), line[17:20], int(line[22:26]), line[26:27].strip(), values)
            except (ValueError, IndexError) as error:
                raise DataError(
                    f"the {kind} record cannot be read: {line[:60]!r}",
                    where=f"{path}, line {number}",
                    fix="download the structure again",
                ) from error
    if not num_atoms:
        raise DataError("the file holds no atoms", where=str(path), fix="check that it is a PDB file and is whole")
    for name, reference in references.found:
        if name in seen.chains:
            seen.chains[name].references.append(reference)
    return seen.chains


class _PdbReferences:
    """The DBREF records of a PDB file. One that keeps to other columns is passed over: the chain is aligned then."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Reference]] = []
        self._begun: dict[str, tuple[int, int]] = {}  # by DBREF1, to be ended by DBREF2

    def add(self, kind: str, line: str) -> None:
        chain = _chain_name(line, 12)
        try:
            if kind == "DBREF" and line[26:32].strip() == "UNP":
                first, last, uniprot_first = int(line[14:18]), int(line[20:24]), int(line[55:60])
                self.found.append((chain, Reference(line[33:41].strip(), first, last, uniprot_first)))
            elif kind == "DBREF1" and line[26:32].strip() == "UNP":
                self._begun[chain] = int(line[14:18]), int(line[20:24])
            elif kind == "DBREF2" and chain in self._begun:
                first, last = self._begun.pop(chain)
                self.found.append((chain, Reference(line[18:40].strip(), first, last, int(line[45:55]))))
        except ValueError:
            return


def _chain_name(line: str, column: int) -> str:
    """The letter of a chain; a file of one chain may leave it out."""
    return line[column : column + 1].strip() or "A"
