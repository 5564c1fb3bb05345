from pathlib import Path

import pytest

from plmsae.errors import UserError
from plmsae.figures import COLORS, new_figure, save_figure


def _draw(path: Path, slope: float) -> None:
    figure, axes = new_figure(1, 2, title="two panels")
    axes[0].plot([0, 1], [0, slope], label="line")
    axes[0].set_xlabel("tokens")
    axes[0].legend()
    axes[1].hist([1, 2, 2, 3])
    save_figure(figure, path)


def test_equal_data_give_equal_bytes_and_other_data_do_not(tmp_path: Path) -> None:
    for name, slope in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        _draw(tmp_path / "new" / f"{name}.png", slope)
    first, second, other = ((tmp_path / "new" / f"{name}.png").read_bytes() for name in "abc")
    assert first.startswith(b"\x89PNG")
    assert first == second
    assert first != other


def test_style_is_local_to_the_figure(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    _draw(tmp_path / "x.png", 1.0)
    assert dict(matplotlib.rcParams) == before
    _, axes = new_figure()
    assert axes[0].plot([0, 1])[0].get_color() == COLORS[0]


def test_another_format_is_refused(tmp_path: Path) -> None:
    figure, _ = new_figure()
    with pytest.raises(UserError, match="PNG or SVG"):
        save_figure(figure, tmp_path / "x.pdf")


def test_a_drawing_that_scales_is_the_same_bytes_again(tmp_path: Path) -> None:
    for name in "ab":
        _draw(tmp_path / f"{name}.svg", 1.0)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "<dc:date>" not in text
