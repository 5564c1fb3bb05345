"""A folder of PDB and mmCIF files, each chain on the protein that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from plmsae.errors import UserError
from plmsae.proteins.exclusion import bare_accession
from plmsae.proteins.structure_mapping import acceptable, map_chain
from plmsae.proteins.structure_tables import Placed
from plmsae.proteins.structures import Chain, read_chains, structure_suffix

# UniProt's own pattern of an accession (https://www.uniprot.org/help/accession_numbers).
_ACCESSION = re.compile(
    r"(?<![A-Z0-9])([OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})(?![A-Z0-9])"
)


def read_structures(folder: Path, sequences: Mapping[str, str]) -> Iterator[Placed]:
    """The best chain of each file for each protein, by file name and accession.

    A chain belongs to the proteins that the file names for it, else to those whose accession is in the file's name,
    else to the one protein of exactly its sequence. Of several chains for one protein the one with the most residues
    that agree is taken, of equal ones the first.

    Args:
        folder: Folder with files; those below it count as well.
        sequences: Accession -> whole sequence of the proteins that are wanted.

    Yields:
        A `Placed` for every file and protein; with a `problem` where the sequences disagree, the file has no protein of
        the table, or is no structure.

    Raises:
        UserError: The folder does not exist or is empty.
        DataError: A file is malformed; the message names it.
    """
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist", where="ingest.structures", fix="correct the path")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"folder '{folder}' is empty", where="ingest.structures", fix="correct the path")
    by_sequence = {sequence: accession for accession, sequence in sorted(sequences.items(), reverse=True)}
    by_bare = {bare_accession(accession): accession for accession in sequences}
    for path in files:
        name = path.relative_to(folder).as_posix()
        if structure_suffix(path) is None:
            yield Placed("", name, "file", problem="not a structure: its name ends with none of .cif, .pdb, .ent")
        else:
            yield from _of_file(path, name, sequences, by_sequence, by_bare)


def _of_file(
    path: Path, name: str, sequences: Mapping[str, str], by_sequence: Mapping[str, str], by_bare: Mapping[str, str]
) -> Iterator[Placed]:
    chains = read_chains(path)
    if not chains:
        yield Placed("", name, "file", problem="no protein chain")
        return
    named = [by_bare[found] for found in _ACCESSION.findall(path.name) if found in by_bare]
    best: dict[str, Placed] = {}
    for chain in chains:
        said = [reference.accession for reference in chain.references]
        known = [by_bare[bare_accession(accession)] for accession in said if bare_accession(accession) in by_bare]
        same = by_sequence.get(chain.sequence)
        for accession in dict.fromkeys(known or (named if not said else []) or ([same] if same else [])):
            placed = _placed(chain, accession, sequences[accession], name)
            if accession not in best or _rank(placed) > _rank(best[accession]):
                best[accession] = placed
    if not best:
        others = sorted({reference.accession for chain in chains for reference in chain.references})
        problem = "its proteins are not in the table: " + ", ".join(others[:5]) if others else "no known protein"
        yield Placed("", name, "file", problem=problem)
    yield from (best[accession] for accession in sorted(best))


def _placed(chain: Chain, accession: str, sequence: str, name: str) -> Placed:
    own = Chain(
        chain.name,
        chain.residues,
        [item for item in chain.references if bare_accession(item.accession) == bare_accession(accession)],
    )
    mapping = map_chain(own, next((item.accession for item in own.references), accession), sequence)
    problem = ""
    if not acceptable(mapping):
        shown = ", ".join(f"{item.expected}{item.position}{item.found}" for item in mapping.mismatches[:5])
        problem = f"the sequences disagree: {mapping.identity:.0%} of {mapping.num_mapped} residues are the same"
        problem += f" ({shown}, ...)" if shown else ""
    return Placed(accession, name, "file", chain=chain, mapping=mapping, problem=problem)


def _rank(placed: Placed) -> tuple[bool, float]:
    assert placed.mapping is not None
    return not placed.problem, placed.mapping.num_mapped - len(placed.mapping.mismatches)
