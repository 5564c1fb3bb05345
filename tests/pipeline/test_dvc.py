"""DVC for people: nothing to do after a run, only what follows a change re-runs, going back is a cache hit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from plmsae.stages.catalog import stages_of
from tests.pipeline.conftest import Finished
from tests.workspace import call, output_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def root(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after `dvc repro`, committed, that the tests of this module change one after the other."""
    return finished.copy_to(tmp_path_factory.mktemp("dvc") / "work")


def set_k(root: Path, k: int) -> None:
    path = root / "params.yaml"
    data = yaml.safe_load(path.read_text())
    data["train_sae"]["k"] = k
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def stages_run(text: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", text)


def test_changing_k_reruns_training_and_what_follows_and_going_back_is_a_cache_hit(root: Path) -> None:
    k = yaml.safe_load((root / "params.yaml").read_text())["train_sae"]["k"]
    before = output_bytes(root)
    set_k(root, k // 2)
    ran = stages_run(call(root, "dvc", "repro", timeout=600).stdout)
    assert ran[0] == "train_sae"
    suite = {name for name in stages_of("train") if name.startswith("evaluate@")}
    assert set(ran) == {"train_sae", *suite, "steer", "register", "promote"}

    table = json.loads(call(root, "dvc", "metrics", "diff", "--json").stdout)
    change = table["outputs/train_sae/metrics.json"]["l0"]
    assert change["old"] == pytest.approx(k, rel=0.2)
    assert change["new"] == pytest.approx(k // 2, rel=0.2)

    set_k(root, k)
    text = call(root, "dvc", "repro", timeout=600).stdout
    # The registry stages act again (ADR 3); all of the computing comes from the cache.
    assert set(stages_run(text)) <= {"register", "promote"}
    assert "is cached" in text
    after = output_bytes(root)
    assert {name for name in before if after[name] != before[name]} <= {
        "promote/promotion.json",
        "promote/summary.md",
        "promote/metrics.json",
        "promote/manifest.json",
    }
    models = json.loads(call(root, "plmsae", "models", "--json").stdout)
    assert [model["version"] for model in models] == sorted(model["version"] for model in models)
    assert len(models) == 2


def test_an_experiment_and_its_plots_show_something(root: Path) -> None:
    half = ("--name", "half-rate", "--set-param", "train_sae.learning_rate=0.001")
    ran = stages_run(call(root, "dvc", "exp", "run", *half, "train_sae", timeout=600).stdout)
    assert ran == ["train_sae"]
    table = call(root, "dvc", "exp", "show", "--csv").stdout
    assert "half-rate" in table
    assert "fvu" in table
    call(root, "dvc", "plots", "show", "--out", "plots")
    html = (root / "plots" / "index.html").read_text()
    assert "vega" in html
    assert "fvu" in html
