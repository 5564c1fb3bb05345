"""The scaling study on a small store: resumed, repeated, and written down as it was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from plmsae.errors import UserError
from plmsae.training import loop
from scripts import scaling_page, scaling_study
from tests.stages.test_train_sae import SCALE, make_store
from tests.training.streams import activations

ROOT = Path(__file__).parents[2]
SMALL = ["--widths", "24,32,48", "--active", "2,4,8", "--tokens", "512,1e3,2e3", "--at", "4", "--batch-size", "128",
         "--held-out", "512", "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), SCALE * activations(4096), SCALE * activations(1024, seed=1))


def study(root: Path, store: Path) -> dict[str, Any]:
    page = root / scaling_page.PAGE
    if not page.is_file():
        page.parent.mkdir(parents=True)
        page.write_text("# Scaling\n\n<!-- scaling: begin -->\n<!-- scaling: end -->\n\nThe end.\n")
    assert scaling_study.main([*SMALL, "--activations", str(store), "--root", str(root)]) == 0
    found: dict[str, Any] = json.loads((root / scaling_study.RESULTS).read_text())
    return found


def test_a_study_is_measured_written_and_not_repeated(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = []
    train_all = loop.train_all

    def counted(plans: Any, *args: Any, **kwargs: Any) -> Any:
        trainings.append(len(plans))
        if len(trainings) == 3:  # the machine goes down before the last length
            raise KeyboardInterrupt
        return train_all(plans, *args, **kwargs)

    monkeypatch.setattr(loop, "train_all", counted)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, store)
    found = study(tmp_path, store)
    assert trainings == [3, 3, 9, 9]  # only the last length again
    files = [tmp_path / path for path in (scaling_study.RESULTS, scaling_page.PAGE, scaling_page.FIGURE)]
    bytes_ = [path.read_bytes() for path in files]
    assert study(tmp_path, store) == found
    assert [path.read_bytes() for path in files] == bytes_
    assert len(trainings) == 4
    assert [path.suffix for path in (tmp_path / scaling_study.WORK).iterdir()] == [".json"] * 3

    assert [(row["width"], row["k"], row["tokens"]) for row in found["saes"]] == [
        *((width, 4, tokens) for tokens in (512, 1024) for width in (24, 32, 48)),
        *((width, k, 2048) for width in (24, 32, 48) for k in (2, 4, 8)),
    ]
    for row in found["saes"]:
        assert 0 < row["fvu"] < 2
        assert row["nmse"] < row["fvu"]  # the mean of these rows is not zero
        assert row["l0"] <= row["k"]
    page = files[1].read_text()
    assert page.startswith("# Scaling\n")
    assert page.endswith("\n\nThe end.\n")
    assert "| 48 | " in page
    assert "| with a floor | " in page


def test_numbers_that_are_no_study_are_refused(store: Path, tmp_path: Path) -> None:
    command = ["--activations", str(store), "--root", str(tmp_path)]
    with pytest.raises(UserError, match="not at least three ascending numbers"):
        scaling_study.main([*command, "--widths", "512,256,1024"])
    with pytest.raises(UserError, match="48 is not one of"):
        scaling_study.main([*command, "--at", "48"])
    with pytest.raises(UserError, match="there are no activations") as caught:
        scaling_study.main(["--activations", str(tmp_path / "none"), "--root", str(tmp_path)])
    assert "make run" in (caught.value.fix or "")


def test_the_page_says_what_the_committed_numbers_say() -> None:
    found = json.loads((ROOT / scaling_study.RESULTS).read_text())
    block = scaling_page.MARKERS.search((ROOT / scaling_page.PAGE).read_text())
    assert block is not None
    tables = scaling_page.tables(scaling_page.Numbers(found))
    # Fits may differ in the last digit that is shown, from one linear algebra library to another.
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("", block[0].split("\n", 1)[1].rsplit("\n", 1)[0] + "\n") == number.sub("", tables)
    shown = [float(text) for text in number.findall(block[0])]
    assert shown == pytest.approx([float(text) for text in number.findall(tables)], abs=0.011)
