"""`plmsae doctor`: check this installation and what it can reach; changes nothing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

SUMMARY = "check this installation and what it can reach"
LOCK = Path("requirements.lock")
MIN_FREE_GIB = 3.0
# The lines of the lock that decide whether numbers are comparable with the published ones.
_COMPARED = ("torch", "transformers", "numpy", "pandas", "pyarrow", "safetensors", "lightning", "litdata", "mlflow")


@dataclass(frozen=True)
class Check:
    """One line of the report: `ok`, `warning` or `failed`, what was found, and the fix where one is needed."""

    name: str
    status: str
    found: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--offline", action="store_true", help="do not contact the registry")


def main(args: argparse.Namespace) -> int:
    """Print one line per check; exit code 2 if one failed (a warning does not)."""
    checks: list[Check] = []
    for inspect in (_python, _libraries, _lock, _torch, _torchvision, _mmseqs, _bundled_plm, _disk):
        checks += _guarded(inspect)
    if not args.offline:
        checks += _guarded(_registry)
    failed = any(check.status == "failed" for check in checks)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, sort_keys=True))
        return 2 if failed else 0
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<8} {check.name:<{width}}  {check.found}")
        if check.fix:
            print(f"{'':<8} {'':<{width}}  fix: {check.fix}")
    print("something is broken" if failed else "all is well")
    return 2 if failed else 0


def _guarded(check: Callable[[], list[Check]]) -> list[Check]:
    """Run a check; whatever it raises is a finding, because a broken installation is what doctor is for."""
    from plmsae.errors import PlmsaeError

    try:
        return check()
    except PlmsaeError as error:
        return [Check(check.__name__.strip("_"), "failed", error.problem, error.fix or "")]
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return [Check(check.__name__.strip("_"), "failed", found, "install again: make install")]


def _python() -> list[Check]:
    version = platform.python_version()
    good = (3, 11) <= tuple(int(part) for part in version.split(".")[:2]) < (3, 14)
    return [Check("python", "ok" if good else "failed", version, "" if good else "use Python 3.11, 3.12 or 3.13")]


def _libraries() -> list[Check]:
    """The requirements of the installed plmsae; those of an extra may be absent but not wrong."""
    from packaging.requirements import Requirement

    wrong, missing, absent, count = [], [], set(), 0
    for text in importlib.metadata.requires("plmsae") or []:
        requirement = Requirement(text)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", str(requirement.marker or ""))
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if extra is None:
                missing.append(requirement.name)
            else:
                absent.add(extra[1])
            continue
        count += 1
        if not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if wrong or missing:
        found = "; ".join([*wrong, *(f"{name} is not installed" for name in missing)])
        return [Check("libraries", "failed", found, "make install")]
    incomplete = f", extras not (fully) installed: {', '.join(sorted(absent))}" if absent else ""
    return [Check("libraries", "ok", f"{count} installed in the required ranges{incomplete}")]


def _lock() -> list[Check]:
    if not LOCK.is_file():
        return []
    locked = dict(line.strip().split("==") for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line)
    different = []
    for name in _COMPARED:
        try:
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if name in locked and version != locked[name]:
            different.append(f"{name} {version} (locked: {locked[name]})")
    if different:
        return [Check("lock", "warning", "; ".join(different), "make install, to get the published numbers exactly")]
    return [Check("lock", "ok", f"versions are those of {LOCK}")]


def _torch() -> list[Check]:
    import torch

    found = f"{torch.__version__}, {torch.get_num_threads()} threads, CPU {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        found += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    available = len(os.sched_getaffinity(0))
    if torch.get_num_threads() > available:
        fix = f"set OMP_NUM_THREADS={available}"
        return [Check("torch", "warning", f"{found}, more threads than the {available} usable cores", fix)]
    return [Check("torch", "ok", found)]


def _torchvision() -> list[Check]:
    """A torchvision built for CUDA breaks `import lightning` on a CPU torch; none at all is fine."""
    if importlib.util.find_spec("torchvision") is None:
        return [Check("torchvision", "ok", "not installed (not needed)")]
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return [Check("torchvision", "failed", f"does not fit this torch: {error}", "pip uninstall torchvision")]
    return [Check("torchvision", "ok", importlib.metadata.version("torchvision"))]


def _mmseqs() -> list[Check]:
    from plmsae.proteins.clusters import find_mmseqs

    binary = find_mmseqs()
    process = subprocess.run([str(binary), "version"], capture_output=True, text=True, timeout=30, check=False)
    if process.returncode != 0:
        return [Check("mmseqs", "failed", f"'{binary}' does not run: {process.stderr.strip()[:200]}", "make install")]
    return [Check("mmseqs", "ok", f"MMseqs2 {process.stdout.strip()}")]


def _bundled_plm() -> list[Check]:
    from plmsae.plms import load_plm

    plm = load_plm("esm_small")
    rows = plm.hidden(plm.tokenize(["MKV"]), plm.num_layers)
    good = tuple(rows.shape) == (3, plm.d_model) and bool(rows.isfinite().all())
    return [
        Check(
            "bundled PLM",
            "ok" if good else "failed",
            f"esm_small, {plm.num_layers} layers, {plm.d_model} wide, {plm.revision}",
            "" if good else "install again: make install",
        )
    ]


def _disk() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    found = f"{free:.1f} GiB free in the working folder"
    if free < MIN_FREE_GIB:
        return [Check("disk", "warning", found, f"the pipeline wants {MIN_FREE_GIB:.0f} GiB")]
    return [Check("disk", "ok", found)]


def _registry() -> list[Check]:
    from plmsae.registry.connection import connect, locate

    location = locate()
    if location.database is not None and not location.database.is_file():
        return [Check("registry", "ok", f"none yet; the first stage makes {location.shown}")]
    with connect() as client:
        models = client.search_registered_models()
    return [Check("registry", "ok", f"{location.shown}, {len(models)} registered SAEs")]
