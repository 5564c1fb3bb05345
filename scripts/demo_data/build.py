"""Make the demo data of this repository (`data/`) from a folder of collected public protein data.

    python -m scripts.demo_data.build SOURCE [--output data]

`SOURCE` holds `A_swissprot/derived/swissprot_annotated_uniprot_style.tsv.gz` (UniProt REST columns) and
`C_structures/` (structure index, C-alpha table, PDB chains and AlphaFold models). The output is a function of the
source alone: gzip members carry no time and no name, and rows keep the order of the source.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAX_RESIDUES = 1022  # what ESM-2 takes: 1,024 positions less <cls> and <eos>
MAX_STRUCTURES = 20
SWISSPROT = "A_swissprot/derived/swissprot_annotated_uniprot_style.tsv.gz"
Row = dict[str, str]
COVERAGE = 0.7
FIRST_FEATURE, LAST_FEATURE = "Active site", "Initiator methionine"

TEMPLATE = Path(__file__).with_name("README.template.md")

ORIGINS = {
    "alphamap-yeast": (
        "MannLabs/alphamap, c0160ed, `alphamap/data/`",
        "about 2020_06 to 2021_01 (committed 2021-02-10)",
        "Apache-2.0",
    ),
    "ai-gene-review": ("raymond91125/ai-gene-review, 66fe1445d, `genes/`", "2025 to 2026", "BSD-3-Clause"),
    "uniprot-core": ("ebi-uniprot/uniprot-core, 8389f36ee, test resources", "many, 1990s to 2020s", "Apache-2.0"),
    "uniprot-store": ("ebi-uniprot/uniprot-store, 3ed572e6c, test resources", "many", "Apache-2.0"),
    "uniprot-rest-api": ("ebi-uniprot/uniprot-rest-api, 89cbaae6d, test resources", "many", "Apache-2.0"),
    "biopython": ("biopython/biopython, 8b4d499f0, `Tests/SwissProt`", "many", "Biopython"),
}
ORIGINS["alphamap-bsubtilis"] = ORIGINS["alphamap-yeast"]


def read_table(path: Path) -> Iterator[Row]:
    """Rows of a tab-separated table, gzip or not."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open() as handle:
        yield from csv.DictReader(handle, delimiter="\t")


def write_gzip(path: Path, data: bytes) -> None:
    """Gzip without time or name, so that equal data gives equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as handle:
        handle.write(data)


def write_swissprot(source: Path, target: Path) -> dict[str, Row]:
    """Write the reviewed entries of at most `MAX_RESIDUES` residues; returns them by accession."""
    kept = {
        row["Entry"]: row
        for row in read_table(source)
        if row["Reviewed"] == "reviewed" and int(row["Length"]) <= MAX_RESIDUES
    }
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(next(iter(kept.values()))), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept.values())
    write_gzip(target, text.getvalue().encode())
    return kept


def choose_structures(index: list[Row], entries: dict[str, Row]) -> list[Row]:
    """The PDB-format structures that cover most of an entry of the table, best first."""
    usable = [row for row in index if row["accession"] in entries]
    return sorted(usable, key=lambda row: (-float(row["coverage"]), -float(row["identity"]), row["accession"]))


def copy_structures(source: Path, target: Path, ranked: list[Row]) -> list[Row]:
    """Copy the first `MAX_STRUCTURES` that exist as PDB files, gzip rewritten without time; returns their rows."""
    target.mkdir()
    copied: list[Row] = []
    for row in ranked:
        file = source / ("pdb_chains" if row["kind"] == "pdb" else "afdb") / f"{row['structure_id']}.pdb.gz"
        if file.is_file() and len(copied) < MAX_STRUCTURES:
            write_gzip(target / file.name, gzip.decompress(file.read_bytes()))
            copied.append(row)
    return copied


def write_index(path: Path, index: list[Row]) -> None:
    """Write the origin, size and coverage of every structure in the C-alpha table."""
    columns = ["structure_id", "kind", "accession", "chain", "n_res", "uniprot_len", "coverage", "identity", "repo"]
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for row in sorted(index, key=lambda row: row["structure_id"]):
            writer.writerow({**row, "repo": row["repo"].replace("+", "/")})


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file, in the form `sha256sum -c` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe(entries: dict[str, Row], index: list[Row], ranked: list[Row], copied: list[Row]) -> str:
    """The README text.

    Args:
        entries: Accession -> row of the Swiss-Prot table.
        index: All structures of the C-alpha table.
        ranked: Those whose protein is in `entries`.
        copied: Those that come along as PDB files.
    """
    columns = list(next(iter(entries.values())))
    features = columns[columns.index(FIRST_FEATURE) : columns.index(LAST_FEATURE) + 1]
    counts = {column: sum(bool(row[column]) for row in entries.values()) for column in features}
    annotated = {accession for accession, row in entries.items() if any(row[column] for column in features)}
    organisms = Counter(row["Organism"].partition(" (")[0] for row in entries.values()).most_common(6)
    covering = [row for row in ranked if float(row["coverage"]) > COVERAGE and row["accession"] in annotated]
    repositories = Counter(row["repo"].replace("+", "/") for row in index if "+" in row["repo"])
    return TEMPLATE.read_text(encoding="utf-8").format(
        num_entries=len(entries),
        num_residues=sum(int(row["Length"]) for row in entries.values()),
        num_ca=len(index),
        num_files=len(copied),
        sources=_sources(entries),
        num_annotated=len(annotated),
        features=", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])),
        organisms=", ".join(f"{name} {count:,}" for name, count in organisms),
        num_index=len(index),
        num_pdb=sum(row["kind"] == "pdb" for row in index),
        num_afdb=sum(row["kind"] == "afdb" for row in index),
        repositories=", ".join(f"{name} {count}" for name, count in repositories.most_common()),
        num_matched=len(ranked),
        num_covering=len(covering),
    )


def _sources(entries: dict[str, Row]) -> str:
    lines = []
    for source, count in Counter(row["Source"] for row in entries.values()).most_common():
        origin, release, licence = ORIGINS[source]
        lines.append(f"| `{source}` | {count:,} | {origin} | {release} | {licence} |")
    return "\n".join(lines)


def main() -> None:
    """Build the folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with A_swissprot/ and C_structures/")
    parser.add_argument("--output", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    output: Path = arguments.output
    structures = arguments.source / "C_structures"

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    entries = write_swissprot(arguments.source / SWISSPROT, output / "swissprot.tsv.gz")
    shutil.copyfile(structures / "ca_coords.parquet", output / "ca_coords.parquet")
    index = list(read_table(structures / "structure_index.tsv"))
    ranked = choose_structures(index, entries)
    copied = copy_structures(structures, output / "structures", ranked)
    write_index(output / "structures.tsv", index)
    (output / "README.md").write_text(describe(entries, index, ranked, copied), encoding="utf-8")
    write_checksums(output)
    print(f"{len(entries)} entries, {len(index)} structures with C-alpha atoms, {len(copied)} PDB files in {output}")


if __name__ == "__main__":
    main()
