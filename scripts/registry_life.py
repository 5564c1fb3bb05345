"""The life of a registered SAE, from real trainings: promoted, refused, drifted, rolled back, re-evaluated.

    python -m scripts.registry_life --work FOLDER     # a quarter of an hour of two idle cores
    python -m scripts.registry_life --check           # exit 1 if the page says something else than its JSON file

FOLDER becomes a clone of this repository at its last commit, with a registry of its own; or it is a working folder that
is there already. Every step is a command that a user types there; what is done by hand before it (weights that are
damaged, a new release, an edit of the code) is done by this script and said on the page. A step that was finished is
not repeated: run the same command again after an interruption. A step that ends other than it must ends the run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.artifacts.atomic import write_text
from plmsae.errors import PlmsaeError, UserError
from scripts.registry_life_page import FIGURE, PAGE, RESULTS, page

ROOT = Path(__file__).parents[1]
STATE, COMMIT = Path(".plmsae") / "registry_life", "commit"
SOURCE, RELEASE = Path("data/swissprot.tsv.gz"), Path("releases/next.tsv.gz")
PLM, HISTORY = Path("esm_small"), Path("seen/history.png")
CHAMPION, NAME = "models:/{name}@champion", "{name}"  # {name}: the registered name
NOISE, PLM_NOISE, LEFT_OUT = 0.1, 0.02, 10
EVALUATED = {"fidelity", "concepts"}
# Every metric that a gate or a comparison of the page speaks of.
METRICS = ("fidelity.masked_loss_recovered_mean", "fidelity.fvu", "concepts.mean_f1_sae", "train_sae.dead_fraction")


@dataclass(frozen=True)
class Step:
    """One command, and how it must end.

    Attributes:
        id: Its name.
        command: What is typed; `{name}` is the registered name.
        exit_codes: Exit codes with which it may end.
        before: Changes the working folder first; finds it as the step before left it, or half changed.
        by_hand: What `before` does, in words.
        causes: For a re-evaluation: the causes that it must find, of every evaluation; none if nothing is stale.
    """

    id: str
    command: tuple[str, ...]
    exit_codes: tuple[int, ...] = (0,)
    before: Callable[[Path], None] | None = None
    by_hand: str = ""
    causes: tuple[str, ...] | None = None


def registered_with_other_weights(work: Path) -> None:
    """Go back to the outputs of the champion, and put noise on the weights of its SAE after it was evaluated."""
    import torch

    from plmsae.artifacts.manifest import Manifest, list_files, read_manifest, write_manifest
    from plmsae.saes import load_folder, save

    call(work, "git", "checkout", "--quiet", "--", "params.yaml", "dvc.lock")
    made = ("train_sae", *(f"evaluate/{name}" for name in ("fidelity", "concepts", "baselines", "amortisation")))
    call(work, "dvc", "checkout", "--quiet", "--force", *(f"outputs/{name}" for name in made))
    folder = work / "outputs" / "train_sae"
    sae = load_folder(folder / "sae").requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for value in sae.parameters():
        value.copy_(noisy(value, NOISE, generator))
    shutil.rmtree(folder / "sae")
    save(sae, folder / "sae")
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder, Manifest(**{**manifest.model_dump(), "files": list_files(folder)}))


def next_release(work: Path) -> None:
    """The same file without every tenth protein, chosen by its accession."""
    (work / RELEASE).parent.mkdir(exist_ok=True)
    header, *lines = gzip.decompress((work / SOURCE).read_bytes()).splitlines(keepends=True)
    kept = [line for line in lines if int(hashlib.sha256(line.split(b"\t")[0]).hexdigest(), 16) % LEFT_OUT]
    (work / RELEASE).write_bytes(gzip.compress(b"".join([header, *kept]), mtime=0))


def edit_of_the_code(work: Path) -> None:
    """A comment more in the code of the evaluations: a change that no number feels."""
    file, line = work / "src" / "plmsae" / "evaluation" / "fidelity.py", "\n# edited\n"
    text = file.read_text(encoding="utf-8").removesuffix(line)
    file.write_text(text + line, encoding="utf-8")


def new_weights(work: Path) -> None:
    """Other weights of the PLM in its folder."""
    import torch
    from safetensors.torch import load_file, save_file

    original = load_file(work / "src" / "plmsae" / "plms" / "small" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    weights = {name: noisy(value, PLM_NOISE, generator) for name, value in original.items()}
    save_file(weights, work / PLM / "model.safetensors", {"format": "pt"})


def noisy(value: Any, share: float, generator: Any) -> Any:
    """A tensor with normal noise of so much of its own root mean square; whole numbers as they are."""
    import torch

    if not value.is_floating_point():
        return value
    size = value.float().square().mean().sqrt()
    return (value.float() + share * size * torch.randn(value.shape, generator=generator)).to(value.dtype)


_REEVALUATE = ("plmsae", "reevaluate", CHAMPION, "--json")
_ON_THE_RELEASE = (
    *_REEVALUATE,
    "--data",
    str(RELEASE),
    "--set",
    "ingest.release=next",
    "--report",
    str(HISTORY.parent),
)
STEPS = (
    Step("trained", ("dvc", "repro", "promote")),
    Step("sparser", ("dvc", "exp", "run", "promote", "--name", "sparser", "--set-param", "train_sae.k=2")),
    Step("sparser_refused", ("plmsae", "promote", NAME, "2", "--json"), (4,)),
    Step(
        "noisy",
        ("plmsae", "run", "register"),
        before=registered_with_other_weights,
        by_hand="back to the first SAE (`git checkout`, `dvc checkout`); on its weights, which were evaluated, noise "
        f"of {NOISE:.0%} of each tensor's root mean square",
    ),
    Step("noisy_promoted", ("plmsae", "promote", NAME, "3", "--json")),
    Step("drifted", _REEVALUATE, (4,), causes=("sae",)),
    Step("drifted_again", _REEVALUATE, (4,), causes=()),
    Step("rolled_back", ("plmsae", "rollback", NAME, "--reason", "version 3 has drifted", "--json")),
    Step("drifted_refused", ("plmsae", "promote", NAME, "3", "--json"), (4,)),
    Step("fresh", _REEVALUATE, causes=()),
    Step(
        "code",
        _REEVALUATE,
        before=edit_of_the_code,
        by_hand="a comment in `evaluation/fidelity.py`",
        causes=("code",),
    ),
    Step("unchanged", _REEVALUATE, causes=()),
    Step(
        "release",
        _ON_THE_RELEASE,
        before=next_release,
        by_hand=f"a new release: the same file without one protein in {LEFT_OUT}",
        causes=("data",),
    ),
    Step("release_unchanged", _ON_THE_RELEASE, causes=()),
    Step(
        "plm",
        _ON_THE_RELEASE,
        (0, 4),
        before=new_weights,
        by_hand=f"new weights in the PLM's folder: noise of {PLM_NOISE:.0%} of each tensor's root mean square",
        causes=("plm",),
    ),
)


def environment(work: Path) -> dict[str, str]:
    """A user's shell with the virtual environment active, and nothing that points at another registry or store."""
    prefixes = ("MLFLOW_", "PLMSAE_", "AWS_", "KFP_", "GIT_", "DVC_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _WHO.items()}
    return {
        **kept,
        **who,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(work / "src"),
        "OMP_WAIT_POLICY": "PASSIVE",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
    }


_WHO = {"NAME": "registry life", "EMAIL": "registry-life@example.org"}


def call(work: Path, *command: str, codes: Sequence[int] = (0,), log: Path | None = None) -> tuple[int, str]:
    """Run a command in the working folder; exit code and standard output.

    Raises:
        UserError: It ended otherwise than with one of `codes`.
    """
    process = subprocess.run(
        command, cwd=work, env=environment(work), capture_output=True, text=True, encoding="utf-8", check=False
    )
    if log is not None:
        write_text(log, process.stdout + process.stderr)
    if process.returncode not in codes:
        raise UserError(
            f"'{' '.join(command)}' ended with exit code {process.returncode}, not {' or '.join(map(str, codes))}",
            where=str(log or work),
            fix=f"it said: {(process.stderr or process.stdout).strip()[-600:]}",
        )
    return process.returncode, process.stdout


def prepare(work: Path) -> None:
    """Make the working folder: a clone with its data, and the PLM as a folder, so that its weights can change."""
    if not (work / "params.yaml").is_file():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(work)], check=True)
        call(work, "dvc", "pull", "--quiet", "data.dvc")
    if (work / STATE / COMMIT).is_file():
        return
    (work / STATE).mkdir(parents=True, exist_ok=True)
    shutil.copytree(work / "src" / "plmsae" / "plms" / "small", work / PLM, dirs_exist_ok=True)
    params = work / "params.yaml"
    text = params.read_text(encoding="utf-8")
    if f"plm: ./{PLM}\n" not in text:
        if text.count("  plm: esm_small\n") != 1:
            raise UserError("the parameters do not name the bundled PLM", where=str(params), fix="plm: esm_small")
        params.write_text(text.replace("  plm: esm_small\n", f"  plm: ./{PLM}\n"), encoding="utf-8")
    with (work / ".gitignore").open("a", encoding="utf-8") as handle:
        handle.write(f"/{PLM}/\n/{RELEASE.parent}/\n/{HISTORY.parent}/\n")
    commit = call(work, "git", "rev-parse", "--short=12", "HEAD")[1].strip()
    call(work, "git", "add", "--all")
    call(work, "git", "commit", "--quiet", "--message", "the PLM as a folder")
    write_text(work / STATE / COMMIT, commit)


def record_of(work: Path, step: Step) -> Path:
    """Where it is written that a step is finished, and how."""
    return work / STATE / f"{step.id}.json"


def run(work: Path, step: Step) -> dict[str, Any]:
    """Run a step, or return what it found when it was run."""
    file = record_of(work, step)
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    if step.before is not None:
        step.before(work)
    name = registered(work)[0]["name"] if step.id != "trained" else ""
    command = [part.replace("{name}", name) for part in step.command]
    print(f"{time.strftime('%H:%M:%S')} {step.id}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    code, said = call(work, *command, codes=step.exit_codes, log=work / STATE / f"{step.id}.log")
    seconds = time.monotonic() - start
    output = json.loads(said) if "--json" in command else None
    if step.causes is not None and output is not None:
        stale = {evaluation: tuple(causes) for evaluation, causes in output["causes"].items()}
        if stale != (dict.fromkeys(EVALUATED, step.causes) if step.causes else {}):
            raise UserError(f"'{step.id}' was to find {step.causes}, and found {stale}", where=str(work))
    if step.id == "trained":
        call(work, "git", "add", "dvc.lock")
        call(work, "git", "commit", "--quiet", "--message", "trained", codes=(0, 1))
    found = {
        "id": step.id,
        "command": " ".join(f"'{part}'" if " " in part else part for part in command),
        "by_hand": step.by_hand,
        "exit_code": code,
        "seconds": round(seconds, 1),
        "output": output,
        "aliases": {alias: row["version"] for row in registered(work) for alias in row["aliases"]},
    }
    write_text(file, json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found


def registered(work: Path) -> list[dict[str, Any]]:
    """`plmsae models --json`."""
    rows: list[dict[str, Any]] = json.loads(call(work, "plmsae", "models", "--json")[1])
    return rows


def collect(work: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page is made of."""
    versions = {}
    for row in registered(work):
        metrics = {
            f"{metric}{end}": row["metrics"][f"{metric}{end}"]
            for metric in METRICS
            for end in ("", "_low", "_high")
            if f"{metric}{end}" in row["metrics"]
        }
        proteins = {name: row["metrics"][name] for name in ("fidelity.num_proteins", "concepts.num_concepts")}
        versions[row["version"]] = {
            "k": row["tags"]["k"],
            "drift": row["tags"].get("drift", ""),
            "metrics": metrics | proteins,
        }
    name = registered(work)[0]["name"]
    return {
        "commit": (work / STATE / COMMIT).read_text(encoding="utf-8"),
        "name": name,
        "steps": steps,
        "versions": versions,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet and write the page, or with `--check` compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="working folder, made if it is not there")
    parser.add_argument("--target", type=Path, default=ROOT, help="where docs/ is written (this repository)")
    parser.add_argument(
        "--so-far", action="store_true", help="run nothing more; write down the steps that are finished"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page differs")
    args = parser.parse_args(argv)
    if args.check:
        found = json.loads((args.target / RESULTS).read_text(encoding="utf-8"))
        same = (args.target / PAGE).read_text(encoding="utf-8") == page(found)
        print(f"{PAGE} is that of {RESULTS}" if same else f"{PAGE} differs from {RESULTS}")
        return 0 if same else 1
    if args.work is None:
        parser.error("--work FOLDER says where to train")
    work = args.work.resolve()
    try:
        prepare(work)
        steps = [run(work, step) for step in STEPS if not args.so_far or record_of(work, step).is_file()]
        found = collect(work, steps)
        if not (work / HISTORY).is_file():
            raise UserError("there is no history to show yet", where=str(work), fix="leave out --so-far")
    except PlmsaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for path in (RESULTS, PAGE, FIGURE):
        (args.target / path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    write_text(args.target / RESULTS, text)
    write_text(args.target / PAGE, page(json.loads(text)))
    shutil.copy(work / HISTORY, args.target / FIGURE)
    print(f"-> {args.target / PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
