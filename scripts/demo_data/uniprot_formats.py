"""Make the fixtures of UniProt's flat text and JSON: a few real entries, as they are.

    python -m scripts.demo_data.uniprot_formats --flat ENTRIES.dat --json ENTRIES.json [--output tests/fixtures]

The sources are files of the UniProt Consortium (CC BY 4.0); tests/fixtures/README.md says where they were found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scripts.demo_data.build import write_gzip

# In tests/fixtures/swissprot_tiny.tsv.gz as well: the two formats must agree on them.
IN_TSV = ("P02470", "P0A9K9", "P10639", "P14770", "P34760", "Q07507", "Q7PNF2", "Q9BX68")
# Unknown positions, features of another isoform, a fragment that goes on; and P10599, which all sources have.
FLAT = (*IN_TSV, "P15329", "P32453", "P38784", "P10599")
JSON = ("D8VPP5", "P27762", "Q6H9K0", "Q75N34", "P00698", "P10599")


def flat_entries(text: str) -> dict[str, str]:
    """Accession -> text of each entry, with its `//`."""
    found = {}
    for part in text.split("\n//\n"):
        accession = next((line[5:].split(";")[0] for line in part.splitlines() if line.startswith("AC   ")), None)
        if accession:
            found[accession] = part.lstrip("\n") + "\n//\n"
    return found


def main() -> None:
    """Build the fixtures from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flat", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("tests/fixtures"))
    arguments = parser.parse_args()
    flat = flat_entries(arguments.flat.read_text(encoding="utf-8"))
    write_gzip(arguments.output / "uniprot_entries.txt.gz", "".join(flat[name] for name in FLAT).encode())
    entries = {entry["primaryAccession"]: entry for entry in json.loads(arguments.json.read_text())["results"]}
    text = json.dumps({"results": [entries[name] for name in JSON]}, ensure_ascii=False, separators=(",", ":"))
    write_gzip(arguments.output / "uniprot_entries.json.gz", text.encode())


if __name__ == "__main__":
    main()
