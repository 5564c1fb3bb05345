"""The life of a registered SAE, on the small pipeline: every command for real, stopped once on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae.artifacts.atomic import write_text
from scripts import registry_life, registry_life_page
from tests.workspace import ROOT, call, make_workspace


def small(root: Path) -> Path:
    """The working folder of the pipeline tests, with an SAE that noise does something to."""
    make_workspace(root)
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["train_sae"] |= {"k": 32, "tokens": 40_000}
    params["reevaluate"] |= {"min_pairs": 5, "num_resamples": 200}
    params["ingest"]["source_sha256"] = None
    write_text(root / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    call(root, "git", "commit", "--quiet", "--all", "--message", "parameters")
    return root


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_life_is_lived_once_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, target = small(tmp_path / "work"), tmp_path / "repository"
    command = ["--work", str(work), "--target", str(target)]
    ran: list[str] = []
    run_command = registry_life.call

    def counted(folder: Path, *words: str, **options: Any) -> tuple[int, str]:
        if options.get("log") is not None:
            if len(ran) == 3 and "register" in words and "stopped" not in ran:
                ran.append("stopped")
                raise KeyboardInterrupt
            ran.append(words[1])
        return run_command(folder, *words, **options)

    monkeypatch.setattr(registry_life, "call", counted)
    with pytest.raises(KeyboardInterrupt):
        registry_life.main(command)
    assert registry_life.main(command) == 0
    assert len(ran) == len(registry_life.STEPS) + 1
    assert registry_life.main([*command, "--so-far"]) == 0
    assert registry_life.main(command) == 0  # nothing again
    assert len(ran) == len(registry_life.STEPS) + 1

    found = json.loads((target / registry_life_page.RESULTS).read_text(encoding="utf-8"))
    aliases = {step["id"]: step["aliases"] for step in found["steps"]}
    assert aliases["drifted"] == aliases["noisy_promoted"] == {"candidate": 3, "champion": 3, "previous": 1}
    assert aliases["plm"] == aliases["rolled_back"] == {"candidate": 3, "champion": 1, "previous": 3}
    assert found["versions"]["3"]["drift"] == "true"
    assert found["versions"]["3"]["metrics"] == found["versions"]["1"]["metrics"] != found["versions"]["2"]["metrics"]
    assert registry_life.main([*command, "--check"]) == 0
    figure = target / registry_life_page.FIGURE
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path) not in (target / registry_life_page.PAGE).read_text(encoding="utf-8")


def test_the_page_says_what_its_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry_life.main(["--check"]) == 0
    for path in (registry_life_page.PAGE, registry_life_page.RESULTS):
        write_text(tmp_path / path, (ROOT / path).read_text(encoding="utf-8"))
    page = tmp_path / registry_life_page.PAGE
    text = page.read_text(encoding="utf-8")
    write_text(page, re.sub(r"\*\*refused\*\*", "**promoted**", text, count=1))
    assert registry_life.main(["--target", str(tmp_path), "--check"]) == 1
    assert "differs" in capsys.readouterr().out
