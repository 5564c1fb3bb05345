"""The one wrapper around every stage.

It resolves and verifies what goes in, lets the stage write into a temporary folder, checks and describes what came
out, writes the manifest last and swaps the folder into place. A stage killed at any instant leaves the old complete
output, the new one, or none; never a part. Checkpoints live under a hash of the resolved parameters, the input
manifests and the code, so that a resumed run never meets other parameters.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import math
import platform
import shutil
import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import plmsae
from plmsae.artifacts.atomic import swap_folder, write_text
from plmsae.artifacts.checksums import sha256_bytes, sha256_file, sha256_tree
from plmsae.artifacts.lock import alone
from plmsae.artifacts.manifest import MANIFEST_NAME, Manifest, list_files, manifest_sha256, verify, write_manifest
from plmsae.artifacts.sources import fetch, is_remote
from plmsae.errors import DataError, PlmsaeError, TryAgainError, UserError, did_you_mean
from plmsae.params import Params, canonical_json, value_at
from plmsae.stages.spec import Stage, StageContext, StageResult, value_text

logger = logging.getLogger("plmsae")
PACKAGE = Path(plmsae.__file__).parent
STATE = Path(".plmsae")
VALUES = Path("values")
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full, over the quota, over the largest file
_VERSIONS = ("torch", "transformers", "numpy", "pandas", "pyarrow", "scipy", "litdata", "lightning", "mlflow")


def execute(
    stage: Stage,
    params: Params,
    *,
    root: Path,
    inputs: Mapping[str, Path] | None = None,
    without: Collection[str] = (),
    output: Path | None = None,
    state: Path | None = None,
    staging: Path | None = None,
    pinned: bool = False,
    nodes: Any = None,
) -> StageResult:
    """Run a stage.

    Args:
        stage: Its declaration.
        params: Its resolved parameters.
        root: The working folder: raw files, `outputs/` and `.plmsae/` are relative to it.
        inputs: Input port -> folder, for ports that are not read from `outputs/<source stage>`.
        without: Optional input ports that are left out.
        output: Output folder, by default `outputs/<stage>`.
        state: Folder of locks and checkpoints, by default `.plmsae` below `root`.
        staging: Folder for the unfinished output, on the file system of `output`; by default below `state`.
        pinned: Insist that every raw file is named by its checksum as well.
        nodes: Starts processes on other machines, a `plmsae.training.nodes.Nodes`; None where there are none.

    Raises:
        UserError: An unknown port or a missing raw file.
        DataError: An input that is incomplete, corrupted or of another kind; a metric that is not finite.
        TryAgainError: Another process runs the same stage here, the disk is full, or the source code changed meanwhile.
    """
    final = (root / (output or stage.output)).resolve()
    state = (state or root / STATE).resolve()
    workspace = (staging or state).resolve()
    folders = _resolve_inputs(stage, root, inputs or {}, without)
    # Runs with different outputs do not meet: the shares of an extraction may be made side by side.
    own = (
        stage.id if final == (root / stage.output).resolve() else f"{stage.id}-{sha256_bytes(str(final).encode())[:16]}"
    )
    with ExitStack() as locks:
        locks.enter_context(alone(workspace / "locks" / f"{own}.lock", f"running '{stage.id}'"))
        manifests = {port: _verified(stage, port, folder) for port, folder in folders.items()}
        input_hashes = {port: manifest_sha256(folder) for port, folder in folders.items()}
        files, sources = raw_files(stage, params, root, state, pinned=pinned)
        code = code_sha256(stage)
        key = sha256_bytes(
            canonical_json(
                {
                    "params": json.loads(canonical_json(params)),
                    "inputs": input_hashes,
                    "sources": sources,
                    "code": code,
                    "stage": stage.id,
                }
            ).encode()
        )
        # Tasks of several runs may share a state folder; only equal work shares checkpoints.
        locks.enter_context(alone(state / "locks" / f"{key[:32]}.lock", f"running '{stage.id}'"))
        checkpoints = state / "checkpoints" / key[:32]
        draft, trash = workspace / "staging" / own, workspace / "trash" / own
        for folder in (draft, trash):
            shutil.rmtree(folder, ignore_errors=True)
        draft.mkdir(parents=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        logger.info("%s started", stage.id)
        context = StageContext(
            params=params,
            inputs=folders,
            manifests=manifests,
            output=draft,
            checkpoints=checkpoints,
            sources=files,
            root=root,
            nodes=nodes,
        )
        try:
            result = stage.work()(context)
            _write_result(draft, stage, result)
            if code_sha256(stage) != code:
                raise TryAgainError(f"the source code changed while '{stage.id}' was running", fix="run it again")
            manifest = Manifest(
                stage=stage.id,
                kind=stage.kind,
                params=json.loads(canonical_json(params)),
                inputs=input_hashes,
                source_files=sources,
                environment={**environment(), "code_sha256": code},
                files=list_files(draft),
            )
            write_manifest(draft, manifest)
            swap_folder(draft, final, trash)
        except OSError as error:
            if error.errno not in _DISK_IS_FULL:
                raise
            raise TryAgainError(
                f"no room is left on the disk for '{stage.id}'",
                where=str(error.filename or workspace),
                fix="free some, then run it again"
                + (": it goes on where it stopped" if stage.resumable else "")
                + ("; or let the activations go to a bucket (store)" if "store" in stage.knobs else ""),
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(checkpoints, ignore_errors=True)
    if stage.tracked:
        _track(stage, manifest, result, final, root)
    logger.info("%s finished: %s", stage.id, final)
    return result


def environment() -> dict[str, str]:
    """Versions and CPU capability that numbers may depend on; no host, time or path."""
    found = {"python": platform.python_version(), "plmsae": plmsae.__version__, "machine": platform.machine()}
    for name in _VERSIONS:
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    if "torch" in sys.modules:
        import torch

        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = str(torch.get_num_threads())
    return found


def code_sha256(stage: Stage) -> str:
    """Fingerprint of the source that a stage's numbers depend on."""
    own = PACKAGE / "stages" / f"{stage.name}.py"
    return sha256_tree([own, *(PACKAGE / name for name in stage.code)], PACKAGE)


def _resolve_inputs(stage: Stage, root: Path, given: Mapping[str, Path], without: Collection[str]) -> dict[str, Path]:
    known = {port.name: port for port in stage.inputs}
    for name in (*given, *without):
        if name not in known:
            raise UserError(f"stage '{stage.id}' has no input '{name}'", fix=did_you_mean(name, known))
    for name in without:
        if not known[name].optional or name in given:
            raise UserError(
                f"'{stage.id}' cannot do without its input '{name}'"
                if not known[name].optional
                else f"input '{name}' of '{stage.id}' is given and left out",
                where=f"--without {name}",
                fix="leave this option out",
            )
    folders = {}
    for port in stage.inputs:
        if port.name in without:
            continue
        folder = Path(given.get(port.name, root / "outputs" / Path(*port.source.split("@"))))
        if not (folder / MANIFEST_NAME).is_file():
            raise UserError(
                f"input '{port.name}' of '{stage.id}' is not there",
                where=str(folder),
                fix=f"run the stage that makes it (plmsae run {port.source}), or everything: dvc repro",
            )
        folders[port.name] = folder
    return folders


def _verified(stage: Stage, port: str, folder: Path) -> Manifest:
    manifest = verify(folder)
    kind = next(item.kind for item in stage.inputs if item.name == port)
    if manifest.kind != kind:
        raise UserError(
            f"input '{port}' of '{stage.id}' must be of kind '{kind}', not '{manifest.kind}' (of '{manifest.stage}')",
            where=str(folder),
            fix="pass the output folder of the right stage",
        )
    return manifest


def raw_files(
    stage: Stage, params: Params, root: Path, state: Path, *, pinned: bool = False
) -> tuple[dict[str, Path], dict[str, str]]:
    """The raw files that a stage reads, fetched and held against their checksums, and the sha256 of each.

    Raises:
        UserError: One does not exist, access is denied, or its checksum is not given where it must be.
        DataError: One is not the file that was meant.
        TryAgainError: A store or server cannot be reached.
    """
    named = [name for name in stage.optional_files if value_at(params, name) is not None]
    files = {name: source_file(stage, params, name, root, state) for name in (*stage.source_files, *named)}
    return files, {
        name: _pinned_sha256(stage, params, name, path, pinned or name in named) for name, path in files.items()
    }


def source_file(stage: Stage, params: Params, name: str, root: Path, state: Path) -> Path:
    """The raw file that a parameter names, fetched first if it is an object of a store or a file of a web server.

    Raises:
        UserError: It does not exist, or access is denied.
        DataError: It is not the file that its publisher means.
        TryAgainError: The store or server cannot be reached.
    """
    where = f"{stage.section}.{name}"
    value = str(value_at(params, name))
    if is_remote(value):
        pinned = value_at(params, f"{name}_sha256")
        try:
            return fetch(value, state / "sources", sha256=pinned, where=where)
        except OSError as error:
            if error.errno not in _DISK_IS_FULL:
                raise
            raise TryAgainError(
                f"no room is left on the disk for '{value}'",
                where=str(state / "sources"),
                fix="free some, then run it again: it goes on where it stopped",
            ) from error
    path = root / value
    if not (path.is_file() or (name in stage.optional_files and path.is_dir())):
        raise UserError(
            f"file '{path}' does not exist",
            where=where,
            fix="correct the path in params.yaml; the demo data come with: dvc pull data.dvc",
        )
    return path


def _pinned_sha256(stage: Stage, params: Params, name: str, path: Path, pinned: bool) -> str:
    """sha256 of a raw file or folder, which is the one that its parameter `<name>_sha256` asks for."""
    where = f"{stage.section}.{name}_sha256"
    found = sha256_tree([path], path) if path.is_dir() else sha256_file(path)
    wanted = value_at(params, f"{name}_sha256")
    if wanted is None and pinned:
        raise UserError(
            f"'{stage.id}' does not say which bytes '{value_at(params, name)}' must hold",
            where=where,
            fix=f"set it to the sha256 of the {'folder' if path.is_dir() else 'file'}: {found}",
        )
    if wanted not in (None, found):
        raise DataError(
            f"'{value_at(params, name)}' has sha256 {found}, not {wanted}",
            where=where,
            fix="take the file that was meant, or set the parameter to the file's checksum (null takes any)",
        )
    return found


def _write_result(folder: Path, stage: Stage, result: StageResult) -> None:
    for name, value in result.metrics.items():
        if not math.isfinite(value):
            raise DataError(
                f"metric '{name}' of '{stage.id}' is {value}",
                fix="this is not a usable result; look at the stage's input",
            )
    for handed in stage.values:
        # For engines that hand on what a file holds; Kubeflow's own way is the executor output.
        write_text(folder / VALUES / handed.name, value_text(result.values[handed.name]))
    write_text(folder / "metrics.json", json.dumps(dict(result.metrics), indent=1, sort_keys=True) + "\n")
    write_text(folder / "summary.md", result.summary.strip() + "\n")


def _track(stage: Stage, manifest: Manifest, result: StageResult, final: Path, root: Path) -> None:
    """Log to MLflow; the output is complete already, so an unreachable server is a warning and not a failure."""
    from plmsae.registry.tracking import log_stage_run

    try:
        log_stage_run(
            stage_id=stage.id,
            params=manifest.params,
            metrics=result.metrics,
            output=final,
            root=root,
            tags={"manifest_sha256": manifest_sha256(final), **{f"input.{k}": v for k, v in manifest.inputs.items()}},
            children=result.children,
        )
    except PlmsaeError as error:
        logger.warning("%s is complete but was not logged to MLflow: %s", stage.id, error.problem)
