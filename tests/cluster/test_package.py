"""A compiled pipeline is read as Kubeflow reads it, and arguments are held against what it declares.

KFP reads the annotations of the functions below, so they are not postponed here.
"""

import re
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, dsl
from kfp.pipeline_spec import pipeline_spec_pb2

from plmsae.cluster.package import Package, parse_package, read_package
from plmsae.errors import UserError
from tests.cluster.conftest import SHA256
from tests.cluster.kfp_server import RefusalError, check_parameters

GOOD: dict[str, Any] = {
    "text": "a",
    "number": 3,
    "share": 0.5,
    "flag": True,
    "names": ["a", "b"],
    "table": {"a": 1},
    "optional": None,
}


@dsl.container_component
def _echo(text: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="ghcr.io/lab/echo:1", command=["echo"], args=[text])


@dsl.pipeline(name="every-type")
def _every_type(
    text: str,
    number: int,
    share: float,
    flag: bool,
    names: list,
    table: dict,
    optional: Optional[int] = None,  # noqa: UP045 - KFP knows no other way to write it
    default: str = "b",
) -> None:
    with dsl.If(flag == True):  # noqa: E712
        _echo(text=text)
    _echo(text=default).set_display_name("Second")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    file = tmp_path_factory.mktemp("package") / "every-type.yaml"
    compiler.Compiler().compile(_every_type, str(file))
    return read_package(file)


def test_a_package_says_what_it_takes_and_runs(package: Package) -> None:
    assert {name for name, item in package.parameters.items() if item.required} == set(GOOD) - {"optional"}
    assert package.parameters["number"].type == "NUMBER_INTEGER"
    assert package.images == ("ghcr.io/lab/echo:1",)
    assert package.tasks == ("echo", "echo-2")
    assert re.fullmatch(r"every-type-[0-9a-f]{12}", package.version)


def test_the_version_changes_with_every_byte(package: Package) -> None:
    again = parse_package(package.text, where="copy")
    other = parse_package(package.text + b"\n", where="copy")
    assert again.version == package.version
    assert other.version != package.version


@pytest.mark.parametrize("changes", [{}, {"default": "c"}, {"share": 1}, {"number": 2**53}, {"names": []}])
def test_good_arguments_pass_here_and_there(package: Package, changes: dict[str, Any]) -> None:
    arguments = {name: value for name, value in (GOOD | changes).items() if value is not None}
    package.check(arguments)
    check_parameters(_spec(package), arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": "eight"}, "parameter 'number' takes an integer, given 'eight' (str)"),
        ({"number": 8.5}, "parameter 'number' takes an integer, given 8.5 (float)"),
        ({"number": True}, "parameter 'number' takes an integer, given True (bool)"),
        ({"number": 2**53 + 1}, "parameter 'number' = 9007199254740993 is beyond 2^53, where Kubeflow rounds"),
        ({"share": "0.5"}, "parameter 'share' takes a number, given '0.5' (str)"),
        ({"share": float("nan")}, "parameter 'share' takes a number, given nan (float)"),
        ({"flag": 1}, "parameter 'flag' takes true or false, given 1 (int)"),
        ({"text": 1}, "parameter 'text' takes a text, given 1 (int)"),
        ({"names": "a"}, "parameter 'names' takes a list, given 'a' (str)"),
        ({"table": []}, "parameter 'table' takes a mapping, given [] (list)"),
        ({"txt": "a"}, "there is no parameter 'txt'"),
        ({"text": None}, "parameter 'text' is missing"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_expected(
    package: Package, changes: dict[str, Any], message: str
) -> None:
    arguments = {name: value for name, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(UserError, match=re.escape(message)):
        package.check(arguments)


@pytest.mark.parametrize("changes", [{"number": "eight"}, {"flag": 1}, {"txt": "a"}, {"text": None}, {"table": []}])
def test_the_server_of_these_tests_refuses_the_same(package: Package, changes: dict[str, Any]) -> None:
    arguments = {name: value for name, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(RefusalError):
        check_parameters(_spec(package), arguments)


def test_the_training_pipeline_is_a_pipeline_spec(package_file: Path, image: str) -> None:
    package = read_package(package_file)
    assert package.name == "plmsae-train"
    assert package.images == (image,)
    assert {"ingest", "train-sae", "evaluate-fidelity", "promote"} <= set(package.tasks)
    assert not any(task.startswith("exit-handler") for task in package.tasks)
    assert {name for name, item in package.parameters.items() if item.required} == {"source", "source_sha256"}
    package.check({"source": "s3://bucket/key", "source_sha256": SHA256})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"a: [",
        b"- a\n",
        b"just text",
        b"kind: Workflow\nspec: {}\n",
        b"pipelineInfo: {name: x}\nroot: 3\n",
        b"pipelineInfo: {name: x}\nunknown: 3\n",
        b"pipelineInfo: {name: 'Not A Name'}\n",
        b"pipelineInfo: {name: x}\n---\nplatforms: 3\n",
        b"pipelineInfo: {name: x}\n---\n{}\n---\n{}\n---\n{}\n",
    ],
)
def test_what_is_no_compiled_pipeline_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "package.yaml"
    file.write_bytes(text)
    with pytest.raises(UserError, match="not a compiled Kubeflow pipeline") as caught:
        read_package(file)
    assert caught.value.where == str(file)


def test_a_missing_package_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_package(tmp_path / "none.yaml")
    assert caught.value.fix is not None
    assert "plmsae compile" in caught.value.fix


def _spec(package: Package) -> pipeline_spec_pb2.PipelineSpec:
    return json_format.ParseDict(next(yaml.safe_load_all(package.text)), pipeline_spec_pb2.PipelineSpec())
