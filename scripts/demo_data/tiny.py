"""Make the tiny fixture of the tests: about 120 short, richly annotated entries of the demo data.

    python -m scripts.demo_data.tiny [--source data/swissprot.tsv.gz] [--output tests/fixtures/swissprot_tiny.tsv.gz]

Greedy: take, again and again, the entry that adds most to the sum over features of log(1 + entries that have it), per
residue to the power 0.3; ties by accession. A feature here is a column, or a column with one of its notes or ligands.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
from collections import Counter
from pathlib import Path

from scripts.demo_data.build import FIRST_FEATURE, LAST_FEATURE, Row, read_table, write_gzip

NUM_ENTRIES = 120
MIN_RESIDUES, MAX_RESIDUES = 40, 250
LENGTH_POWER = 0.3
DETAIL = re.compile(r'/(?:note|ligand)="([^"]*)"')


def features(row: Row, columns: list[str]) -> set[str]:
    """The columns that are filled and their notes and ligands."""
    found = set()
    for column in columns:
        if row[column]:
            found.add(column)
            found.update(f"{column}: {detail}" for detail in DETAIL.findall(row[column]))
    return found


def choose(rows: list[Row], columns: list[str]) -> list[Row]:
    """The greedy choice described above, in the order of the accessions."""
    pool = {row["Entry"]: features(row, columns) for row in rows}
    length = {row["Entry"]: int(row["Length"]) for row in rows}
    counts: Counter[str] = Counter()
    chosen: set[str] = set()
    while len(chosen) < NUM_ENTRIES:

        def gain(entry: str) -> float:
            total = sum(math.log1p(1 / (1 + counts[name])) for name in pool[entry])
            return total / math.pow(length[entry], LENGTH_POWER)

        best = max(sorted(pool.keys() - chosen), key=gain)
        chosen.add(best)
        counts.update(pool[best])
    return [row for row in sorted(rows, key=lambda row: row["Entry"]) if row["Entry"] in chosen]


def main() -> None:
    """Build the fixture from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("data/swissprot.tsv.gz"))
    parser.add_argument("--output", type=Path, default=Path("tests/fixtures/swissprot_tiny.tsv.gz"))
    arguments = parser.parse_args()
    rows = [row for row in read_table(arguments.source) if MIN_RESIDUES <= int(row["Length"]) <= MAX_RESIDUES]
    names = list(rows[0])
    chosen = choose(rows, names[names.index(FIRST_FEATURE) : names.index(LAST_FEATURE) + 1])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(chosen)
    write_gzip(arguments.output, text.getvalue().encode())


if __name__ == "__main__":
    main()
