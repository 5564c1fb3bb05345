"""Which sequences have a relative among others: MMseqs2 search of many queries against a fixed set of targets.

The verdict on a query depends on the query and the targets alone (the E-value counts the residues of the targets), so
queries may come in any portions. MMseqs2: Steinegger and Soeding, Nat. Biotechnol. 35, 2017.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from plmsae.errors import UserError
from plmsae.proteins.clusters import find_mmseqs


class RelativeSearch:
    """Targets, ready to be searched.

    Args:
        targets: (name, residues) of each target.
        folder: Folder to work in; made anew.
        identity: Least fraction of identical residues in the alignment.
        coverage: Least fraction of the query or of the target, whichever is larger, that the alignment covers: a
            fragment of a target is a relative of it, and so is a long protein that contains it.
        sensitivity: MMseqs2's `-s`.
        threads: Number of threads; None takes the cores that this process may use. The result does not depend on it.

    Raises:
        UserError: MMseqs2 is missing or fails.
    """

    def __init__(
        self,
        targets: Iterable[tuple[str, str]],
        folder: Path,
        *,
        identity: float,
        coverage: float,
        sensitivity: float,
        threads: int | None = None,
    ) -> None:
        self._folder, self._identity, self._coverage, self._sensitivity = folder, identity, coverage, sensitivity
        self._threads = threads or (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._names: list[str] = []
        with (folder / "targets.fasta").open("w", encoding="ascii", newline="\n") as handle:
            for name, sequence in targets:
                if sequence:  # names may hold what MMseqs2 cuts them at, so it gets running numbers
                    handle.write(f">{len(self._names)}\n{sequence}\n")
                    self._names.append(name)
        if self._names:
            self._run("createdb", str(folder / "targets.fasta"), str(folder / "targets"))

    def relatives(self, queries: Mapping[str, str]) -> dict[str, str]:
        """Query -> name of its closest relative among the targets, for the queries that have one.

        Args:
            queries: Name -> residues.

        Raises:
            UserError: MMseqs2 fails.
        """
        if not self._names or not queries:
            return {}
        names = sorted(queries)
        fasta, hits, work = (self._folder / name for name in ("queries.fasta", "hits.tsv", "work"))
        with fasta.open("w", encoding="ascii", newline="\n") as handle:
            handle.writelines(f">{index}\n{queries[name]}\n" for index, name in enumerate(names))
        try:
            self._run(
                *("easy-search", str(fasta), str(self._folder / "targets"), str(hits), str(work)),
                *("--min-seq-id", str(self._identity), "-s", str(self._sensitivity), "--max-seqs", "300"),
                *("--threads", str(self._threads), "--format-output", "query,target,qcov,tcov,evalue"),
            )
            best: dict[int, tuple[float, int]] = {}
            for line in hits.read_text(encoding="ascii").splitlines():
                query, target, query_coverage, target_coverage, evalue = line.split("\t")
                if max(float(query_coverage), float(target_coverage)) >= self._coverage:
                    found = (float(evalue), int(target))
                    best[int(query)] = min(found, best.get(int(query), found))
        finally:
            shutil.rmtree(work, ignore_errors=True)
            fasta.unlink(missing_ok=True)
            hits.unlink(missing_ok=True)
        return {names[query]: self._names[target] for query, (_, target) in best.items()}

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        command = [str(find_mmseqs()), *arguments, "-v", "1"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            words = " ".join((done.stdout + done.stderr).split())[-300:]
            raise UserError(
                f"MMseqs2 failed with exit status {done.returncode}: {words or 'no message'}",
                fix="check the free space on the disk that holds .plmsae/, and that `mmseqs version` runs",
            )
