"""`plmsae features`: active latents of every residue of your proteins."""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "active latents of every residue of your proteins"
FORMATS = ("csv", "json", "parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("input", metavar="SEQUENCE|FILE", help="one sequence, or a FASTA, text or UniProt TSV file")
    parser.add_argument("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder (the only champion)")
    parser.add_argument("--format", choices=FORMATS, help="of the output (csv, or json with --json)")
    parser.add_argument("--output", type=Path, help="file to write; it appears only when it is complete (stdout)")
    parser.add_argument("--top", type=int, metavar="N", help="only the N strongest latents of each residue")


def main(args: argparse.Namespace) -> int:
    """Write the table: accession, position (1-based), residue, latent, activation, normalised_activation, concept."""
    from plmsae.errors import UserError
    from plmsae.interpretation.features import iterate
    from plmsae.registry.load import champion_uri, load

    form = args.format or ("json" if args.json else "csv")
    if form == "parquet" and args.output is None:
        raise UserError("parquet is not text", where="--format parquet", fix="name a file with --output")
    proteins = read_input(args.input)
    sae = load(args.model or champion_uri())
    tables = iterate(proteins, sae, top=args.top)
    if args.output is None:
        write(tables, form, sys.stdout)
        return 0
    with _whole_file(args.output) as temporary:
        if form == "parquet":
            num_rows = _write_parquet(tables, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as handle:
                num_rows = write(tables, form, handle)
    if args.json:
        print(json.dumps({"output": str(args.output), "proteins": len(proteins), "rows": num_rows}, sort_keys=True))
    else:
        print(f"{num_rows} active latents of {len(proteins)} proteins -> {args.output}")
    return 0


def read_input(text: str) -> dict[str, str]:
    """Accession -> sequence of a file, or of the one sequence that `text` is.

    Raises:
        UserError: It is neither.
        DataError: The file is malformed, or holds an accession twice.
    """
    from plmsae.errors import DataError, UserError
    from plmsae.interpretation.features import QUERY
    from plmsae.proteins.formats import read_proteins

    path = Path(text)
    if len(text) < 4096 and path.is_file():
        proteins: dict[str, str] = {}
        for protein in read_proteins(path):
            if protein.accession in proteins:
                raise DataError(
                    f"accession '{protein.accession}' stands twice",
                    where=f"{path}, line {protein.line}",
                    fix="keep one of the two records, or rename one",
                )
            proteins[protein.accession] = protein.sequence
        return proteins
    if text.strip() and any(mark in text for mark in (".", "/", "\\")):
        raise UserError(f"file '{text}' does not exist", fix="correct the path, or give a sequence of residue letters")
    return {QUERY: text}


def write(tables: Iterator[pd.DataFrame], form: str, handle: IO[str]) -> int:
    """Write tables one after another as one CSV table or one JSON list; returns the number of rows."""
    num_rows = 0
    if form == "csv":
        for number, table in enumerate(tables):
            table.to_csv(handle, index=False, header=number == 0, lineterminator="\n")
            num_rows += len(table)
        return num_rows
    handle.write("[")
    for table in tables:
        for line in table.to_json(orient="records", lines=True).splitlines():
            handle.write(("\n" if num_rows == 0 else ",\n") + line)
            num_rows += 1
    handle.write("\n]\n")
    return num_rows


def _write_parquet(tables: Iterator[pd.DataFrame], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_rows = 0
    writer = None
    try:
        for frame in tables:
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            num_rows += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return num_rows


@contextmanager
def _whole_file(final: Path) -> Iterator[Path]:
    """A temporary file beside `final` that takes its place when the block ends well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
