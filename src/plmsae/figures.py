"""One style for every figure, and bytes that depend on the numbers alone.

Figures are made without pyplot: no global state, no display, safe in threads. `save_figure` leaves out the
software and date fields of the PNG, so equal data give equal bytes (with the same matplotlib).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008: distinguishable with every common colour vision and in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#5F6B7A"
PANEL_INCHES = (4.6, 3.2)
DOTS_PER_INCH = 130

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that no machine falls back to another font
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#222B36",
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E7EC",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#222B36",
    "ytick.labelcolor": "#222B36",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "plmsae",
}


# What would name the program and the date in a file, by suffix.
_NO_DATE: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def new_figure(
    num_rows: int = 1, num_columns: int = 1, *, panel: tuple[float, float] = PANEL_INCHES, title: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure in the house style.

    Args:
        num_rows: Rows of panels.
        num_columns: Columns of panels.
        panel: Width and height of one panel in inches.
        title: Heading above all panels.

    Returns:
        The figure and its axes, row by row; lines take `COLORS` in order.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}):
        figure = Figure(figsize=(panel[0] * num_columns, panel[1] * num_rows), dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(num_rows, num_columns, squeeze=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure, list(grid.flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Put titles and legends into the house style and write a figure as PNG or SVG; its folder is made.

    Raises:
        UserError: The path ends in neither `.png` nor `.svg`.
    """
    import matplotlib

    if path.suffix not in _NO_DATE:
        raise UserError(
            f"figures are written as PNG or SVG, not '{path.suffix}'", where=str(path), fix="name it *.png or *.svg"
        )
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        for axis in figure.axes:
            _dress(axis)
        figure.savefig(buffer, format=path.suffix[1:], metadata=_NO_DATE[path.suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _dress(axis: Axes) -> None:
    """Titles and legends take their style when they are made, outside `new_figure`: give it to them afterwards."""
    title = axis.get_title(loc="center")
    if title:
        axis.set_title("", loc="center")
        axis.set_title(title, loc="left")
    legend = axis.get_legend()
    if legend is not None:
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_fontsize(_STYLE["legend.fontsize"])
