"""The facts of papers, and the presets beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plmsae.errors import UserError
from plmsae.planning.papers import paper, paper_names, preset_file

ROOT = Path(__file__).parents[2]


def test_every_paper_has_its_preset() -> None:
    assert {*paper_names(), "full-demo"} <= {path.stem for path in (ROOT / "presets").glob("*.yaml")}


@pytest.mark.parametrize("name", paper_names())
def test_what_is_unclear_is_said(name: str) -> None:
    assert paper(name).notes
    assert paper(name).saes_per_layer == (20 if name.startswith("interplm") else 1)


def test_the_inconsistency_of_the_8m_presets_is_said() -> None:
    for variant in ("", "-matryoshka", "-l1"):
        assert any("16 x 320 = 5,120 and 10,240 = 32 x 320" in note for note in paper(f"reticular-8m{variant}").notes)
    assert any("1,024" in note and "1,022" in note for note in paper("interplm-8m").notes)


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        preset_file("interplm-8M")
    assert caught.value.fix == "did you mean 'interplm-8m'?"


def test_presets_are_found_outside_of_the_repository(tmp_path: Path) -> None:
    assert preset_file("interplm-8m", tmp_path) == ROOT / "presets" / "interplm-8m.yaml"
