"""The house rules that a reader relies on: import direction, third-party rooms, module size, unsafe loading.

Imports are read from the source text (ast), inside functions as well, so nothing needs to be installed or run.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "plmsae"

# Each level may import the levels before it, and itself only within the same room.
LEVELS = (
    ("errors",),
    ("params", "progress", "figures", "collector"),
    ("artifacts",),
    ("proteins", "saes"),
    ("validation", "plms"),
    ("activations",),
    ("training", "evaluation", "steering"),
    ("interpretation", "registry", "planning"),
    ("stages",),
    ("cluster",),
    ("commands",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}
# `registry` packages the evidence that `interpretation` names latents with, and neither needs the other.
ONLY_IN = {
    "mlflow": {"registry"},
    "great_expectations": {"validation"},
    "lightning": {"training"},
    "litdata": {"activations"},
    "transformers": {"plms"},
    "boto3": {"artifacts"},
    "botocore": {"artifacts"},
    "kfp": {"cluster"},
    "kubeflow": {"cluster"},
    "kubernetes": {"cluster"},
    "dvc": set(),
    "pickle": set(),
    "joblib": set(),
    "dill": set(),
}
SAES_THIRD_PARTY = {"torch", "safetensors"}
HEAVY = {
    "torch",
    "transformers",
    "lightning",
    "litdata",
    "mlflow",
    "great_expectations",
    "matplotlib",
    "pandas",
    "numpy",
    "scipy",
    "sklearn",
    "pyarrow",
    "kfp",
    "kubernetes",
    "Bio",
}
LIGHT_ROOMS = ("stages", "commands", "artifacts")
LIGHT_MODULES = ("cli", "errors", "params", "progress", "figures", "collector", "__init__")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(dotted module, at module level and not under TYPE_CHECKING) of every import in a file."""
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"relative import in {path}"
                base = child.module or ""
                found.append((base, top))
                if base == "plmsae":
                    found.extend((f"plmsae.{alias.name}", top) for alias in child.names)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
            visit(child, top and not inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return tuple(found)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_direction(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in the house; add it to LEVELS and say why in docs/adr"
    for module, _ in imports(path):
        if not module.startswith("plmsae."):
            continue
        other = module.split(".")[1]
        if other in RANK and other != own:
            assert RANK[other] < RANK[own], f"{name_of(path)} imports plmsae.{other}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_third_party_packages_stay_in_their_rooms(path: Path) -> None:
    for module, _ in imports(path):
        top = module.split(".")[0]
        if top in ONLY_IN:
            assert room(path) in ONLY_IN[top], f"{name_of(path)} imports {top}"
        if room(path) == "saes" and top not in sys.stdlib_module_names | SAES_THIRD_PARTY | {"plmsae"}:
            pytest.fail(f"{name_of(path)} imports {top}: an SAE is a file one can take away")


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room(p) in (*LIGHT_ROOMS, *LIGHT_MODULES) or p.name == "__init__.py"], ids=name_of
)
def test_light_modules_import_nothing_heavy_at_the_top(path: Path) -> None:
    heavy = {module for module, top in imports(path) if top and module.split(".")[0] in HEAVY}
    assert not heavy


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_stay_readable(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "scripts").rglob("*.py"))], ids=str)
def test_nothing_unsafe_is_loaded(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call.endswith("torch.load"):
            assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
        assert call not in {"yaml.load", "yaml.unsafe_load", "eval", "exec"}, f"{path}:{node.lineno}"
        assert keywords.get("trust_remote_code") in {None, "False"}, f"{path}:{node.lineno}"
        if call.endswith("np.load") or call.endswith("numpy.load"):
            assert keywords.get("allow_pickle") in {None, "False"}, f"{path}:{node.lineno}"


def closure(start: Path) -> set[str]:
    """Rooms and base modules that a stage module reaches, through every import of every module on the way."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for module, _ in imports(path):
            if module.split(".")[0] != "plmsae":
                continue
            target = PACKAGE.joinpath(*module.split(".")[1:])
            for candidate in (target.with_suffix(".py"), target / "__init__.py"):
                if candidate.is_file() and candidate != PACKAGE / "__init__.py":
                    todo.append(candidate)
    rooms = {path.relative_to(PACKAGE).parts[0] for path in seen}
    return rooms - {"stages"}


def test_every_stage_names_all_the_code_that_its_numbers_depend_on() -> None:
    from plmsae.stages.catalog import stages

    # What a message, a bar or a parameter file looks like does not change a number, nor does when memory is freed.
    presentation = {"errors.py", "progress.py", "params.py", "collector.py"}
    for stage in stages().values():
        work = PACKAGE.joinpath(*stage.run.partition(":")[0].split(".")[1:]).with_suffix(".py")
        named = {code for code in stage.code if not code.startswith("stages/")}
        assert closure(work) - presentation == named - presentation, stage.id
        own = {f"stages/{stage.name}.py", *stage.code}
        assert name_of(work) in own, f"{stage.id} does not name the module that does its work"


def test_the_command_line_answers_help_without_heavy_imports() -> None:
    script = (
        "import sys; from plmsae.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & set(sys.argv[1].split(','))), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, ",".join(sorted(HEAVY | {"pydantic", "yaml"}))],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert process.stderr.strip() == "[]"
    assert "train" in process.stdout.lower() or "run" in process.stdout
