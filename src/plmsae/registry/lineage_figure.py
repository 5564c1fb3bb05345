"""A lineage as a drawing: from raw files through the stages to the version, each box with its checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.registry.lineage_text import UNKNOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOX = 2.3, 0.86  # inches
_GAP = 0.75, 0.3
_SHOWN = 12  # characters of a checksum
_VERSION = "version"
_EMBEDS = "extract_activations"


def columns(found: Mapping[str, Any]) -> list[list[str]]:
    """The boxes from left to right: raw files and PLM, then every stage behind all that it was made from.

    Stages whose inputs were not recorded stand in the column before the version.
    """
    stages: Mapping[str, Any] = found["stages"]
    depth: dict[str, int] = {}

    def place(port: str, above: tuple[str, ...] = ()) -> int:
        if port not in depth:
            inputs = [name for name in stages[port]["inputs"] or {} if name in stages and name not in above]
            depth[port] = 1 + max((place(name, (*above, port)) for name in inputs), default=0)
        return depth[port]

    for port in stages:
        place(port)
    levels = sorted(set(depth.values()))
    middle = [["raw", "code", "runs"], *([port for port in stages if depth[port] == level] for level in levels)]
    embedded = [port for port, stage in stages.items() if stage["stage"] == _EMBEDS]
    # The model stands right before the stage that runs it.
    middle[min((levels.index(depth[port]) for port in embedded), default=0)].insert(1, "plm")
    return [*middle, [_VERSION]]


def edges(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(from, to) of every arrow; one that follows from the others is left out.

    A stage that nothing else was made from leads to the version.
    """
    stages: Mapping[str, Any] = found["stages"]
    inner = [(name, port) for port, stage in stages.items() for name in stage["inputs"] or {} if name in stages]
    used = {name for name, _ in inner}
    raw = [("raw", port) for port, stage in stages.items() if stage["source_files"]]
    plm = [("plm", port) for port, stage in stages.items() if stage["stage"] == _EMBEDS]
    arrows = [*raw, *plm, *inner, *((port, _VERSION) for port in stages if port not in used)]
    following: dict[str, set[str]] = {}
    for start, end in arrows:
        following.setdefault(start, set()).add(end)

    def reaches(start: str, end: str, seen: set[str]) -> bool:
        """Whether a way of more than one arrow leads there; `seen` keeps a damaged record from going in circles."""
        steps = following.get(start, set()) - seen
        return any(end in following.get(step, ()) or reaches(step, end, seen | steps) for step in steps - {end})

    return [(start, end) for start, end in arrows if not reaches(start, end, {start})]


def labels(found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Box -> title and the lines below it."""
    data, plm, code, runs = found["data"], found["plm"], found["code"], found["runs"]
    commit = _short(code["git_commit"]) + {True: " + changes", False: "", None: ""}[code["git_dirty"]]
    boxes = {
        "raw": ("data", f"{data['source'] or UNKNOWN}\nsha256 {_short(data['sha256'])}"),
        "plm": ("PLM", f"{plm['name'] or UNKNOWN}, layer {plm['layer']}\n{_short(plm['revision'])}"),
        "code": ("code", f"git {commit}\nimage {_short(code['image_digest'])}"),
        "runs": ("runs", f"Kubeflow {_short(runs['kfp_run_id'])}\nDVC {'md5 of outputs' if found['dvc'] else UNKNOWN}"),
    }
    for port, stage in found["stages"].items():
        boxes[port] = (port, f"{stage['stage'] or 'stage ' + UNKNOWN}\n{_short(stage['manifest_sha256'])}")
    aliases = ", ".join(found["aliases"]) or "no alias"
    boxes[_VERSION] = (f"version {found['version']}", f"{aliases}\nweights {_short(found['sha256']['weights'])}")
    return boxes


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the drawing as PNG or SVG; equal lineages give equal bytes.

    Raises:
        UserError: The path ends in neither.
    """
    from plmsae.figures import new_figure, save_figure

    rows = columns(found)
    width = len(rows) * (_BOX[0] + _GAP[0])
    height = max(len(row) for row in rows) * (_BOX[1] + _GAP[1])
    figure, (axis,) = new_figure(panel=(width + 0.4, height + 0.7), title=found["uri"].replace("$", r"\$"))
    axis.set_xlim(-0.1, width)
    axis.set_ylim(-0.1, height + 0.1)
    axis.set_axis_off()
    middles: dict[str, tuple[float, float]] = {}
    texts = labels(found)
    for column, row in enumerate(rows):
        spare = height - len(row) * (_BOX[1] + _GAP[1])
        for place, box in enumerate(row):
            x = column * (_BOX[0] + _GAP[0])
            y = height - spare / 2 - (place + 1) * (_BOX[1] + _GAP[1]) + _GAP[1] / 2
            middles[box] = x + _BOX[0] / 2, y + _BOX[1] / 2
            _box(axis, x, y, texts[box], stage=box in found["stages"], version=box == _VERSION)
    for start, end in edges(found):
        (x0, y0), (x1, y1) = middles[start], middles[end]
        style = {"arrowstyle": "-|>", "color": "#5F6B7A", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        head, tail = (x1 - _BOX[0] / 2, y1), (x0 + _BOX[0] / 2, y0)
        axis.annotate("", xy=head, xytext=tail, arrowprops=style, zorder=1)
    save_figure(figure, path)


def _box(axis: Axes, x: float, y: float, text: tuple[str, str], *, stage: bool, version: bool) -> None:
    from matplotlib.patches import Rectangle

    from plmsae.figures import COLORS

    color = COLORS[2] if version else COLORS[0] if stage else COLORS[1]
    axis.add_patch(Rectangle((x, y), *_BOX, facecolor="white", edgecolor=color, linewidth=1.2, zorder=2))
    title, below = (part.replace("$", r"\$") for part in text)
    axis.text(x + 0.1, y + _BOX[1] - 0.1, title, va="top", fontweight="bold", fontsize=9, zorder=3)
    axis.text(x + 0.1, y + _BOX[1] - 0.36, below, va="top", fontsize=7.5, linespacing=1.35, zorder=3)


def _short(value: str | None) -> str:
    if not value:
        return UNKNOWN
    return value.rpartition("sha256:")[2][:_SHOWN]
