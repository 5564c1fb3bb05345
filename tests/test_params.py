"""Parameters: what is refused, and that the message names field, line and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from plmsae.errors import UserError
from plmsae.params import Params, ParamsFile, canonical_json, params_sha256, validate


class Inner(Params):
    """A nested section."""

    rate: float = 0.5


class Demo(Params):
    """A stage's parameters."""

    k: int = Field(32, ge=1)
    source: str = "a.fasta"
    inner: Inner = Inner()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, text: str, *overrides: str) -> Demo:
    return ParamsFile(write(tmp_path, text), overrides).load(Demo, "demo")


def test_a_valid_section_is_read(tmp_path: Path) -> None:
    assert load(tmp_path, "demo:\n  k: 8\n  inner: {rate: 0.25}\n") == Demo(k=8, inner=Inner(rate=0.25))


@pytest.mark.parametrize(
    ("text", "problem", "where", "fix"),
    [
        ("demo:\n  kk: 8\n", "unknown parameter 'demo.kk'", "line 2", "did you mean 'k'?"),
        ("demo:\n  k: 0\n", "'demo.k' = 0: should be greater than or equal to 1", "line 2", "correct the value"),
        ("demo:\n  k: '8'\n", "'demo.k' = '8': should be a valid integer", "line 2", "correct the value"),
        ("demo:\n  k: 8.0\n", "'demo.k' = 8.0: should be a valid integer", "line 2", "correct the value"),
        ("demo:\n  inner:\n    rat: 1.0\n", "unknown parameter 'demo.inner.rat'", "line 3", "did you mean 'rate'?"),
        ("demo:\n  inner: {rate: .nan}\n", "should be a finite number", "line 2", "correct the value"),
        ("demo:\n  k: 8\n  k: 9\n", "key 'k' stands twice", "line 3", "keep one"),
        ("demo: [1, 2]\n", "'demo' is not a section", "line 1", "indented"),
        ("demoo:\n  k: 8\n", "no section 'demo'", "params.yaml", "did you mean 'demoo'?"),
        ("demo:\n  k: {8\n", "not valid YAML", "params.yaml", "syntax"),
        ("demo:\n  k: !!python/object/apply:os.system ['true']\n", "not valid YAML", "params.yaml", "syntax"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_fix(
    tmp_path: Path, text: str, problem: str, where: str, fix: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert problem in caught.value.problem
    assert where in str(caught.value.where)
    assert fix in str(caught.value.fix)


def test_every_wrong_field_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"demo\.k.*demo\.source"):
        load(tmp_path, "demo:\n  k: 0\n  source: 5\n")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ParamsFile(tmp_path / "none.yaml")


def test_an_override_replaces_a_value(tmp_path: Path) -> None:
    assert load(tmp_path, "demo:\n  k: 8\n", "demo.k=9", "demo.inner.rate=1.5") == Demo(k=9, inner=Inner(rate=1.5))


def test_an_override_without_a_key_is_the_whole_section(tmp_path: Path) -> None:
    path = write(tmp_path, "demo:\n  k: 8\n  name: other\n")
    file = ParamsFile(path, ['demo={"k":3}', "demo.name=x"])
    assert file.section("demo") == {"k": 3, "name": "x"}
    assert "line" not in file.where("demo.k")


@pytest.mark.parametrize(
    "override", ["demo", "demo=", "demo=[1]", "demo.k", "k=3", ".k=3", "demo.=3", "demo.k=[", "demo.k.x=3"]
)
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError):
        load(tmp_path, "demo:\n  k: 8\n", override)


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    file = ParamsFile(write(tmp_path, "demo: {}\ndmeo: {}\n"))
    with pytest.raises(UserError, match="unknown section 'dmeo'"):
        file.check_sections(["demo"])


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Demo().k = 3  # type: ignore[misc]


def test_a_validator_of_the_whole_model_speaks_plainly() -> None:
    with pytest.raises(UserError, match=r"demo\.k"):
        validate(Demo, {"k": None}, section="demo")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=5), st.randoms())
def test_canonical_json_is_ascii_round_trips_and_ignores_key_order(data: dict[str, object], random: object) -> None:
    text = canonical_json(data)
    assert text.isascii()
    assert json.loads(text) == data
    keys = list(data)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert params_sha256({key: data[key] for key in keys}) == params_sha256(data)


def test_canonical_json_of_a_model_by_hand() -> None:
    assert canonical_json(Demo()) == '{"inner":{"rate":0.5},"k":32,"source":"a.fasta"}'
