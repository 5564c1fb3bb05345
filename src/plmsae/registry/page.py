"""A self-contained HTML page: no script, no font and no file from elsewhere; every text is escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_CSS = """
:root{--ink:#1b232d;--soft:#5a6673;--line:#dfe4ea;--paper:#ffffff;--panel:#f5f7f9;--accent:#0067a3;--good:#00785a;
color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#e7ebf0;--soft:#a3afbc;--line:#36414d;--paper:#14191f;--panel:#1d242c;
--accent:#6db7ea;--good:#4fc3a1}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:75ch}
.lead,.note{color:var(--soft)}.note{font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:1.2rem 0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{display:block;font-size:1.45rem;line-height:1.3;color:var(--accent);font-variant-numeric:tabular-nums}
.card i{display:block;font-style:normal;font-size:.85rem;font-variant-numeric:tabular-nums}
.card span{display:block;margin-top:2px;font-size:.85rem;color:var(--soft)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:10px;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 11px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
thead th{background:var(--panel);font-weight:600;white-space:nowrap}
tbody tr:last-child td{border-bottom:0}
td.number,th.number{text-align:right;white-space:nowrap}
td.best{font-weight:650;color:var(--good)}
code,pre{font:.87rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
td code{overflow-wrap:anywhere}
pre{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px;overflow-x:auto}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:14px;margin:1rem 0}
figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:10px;padding:10px}
figure img{display:block;width:100%;height:auto}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:1rem 0;font-size:.9rem}
a{color:var(--accent)}
figcaption{font-size:.85rem;color:#5a6673;padding-top:6px}
"""

_SECTION = re.compile(r'^<section id="([^"]+)">\n<h2>(.*)</h2>', re.MULTILINE)


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """The whole page, with links to its sections on top.

    Args:
        title: Plain text.
        lead: One plain sentence below it.
        parts: HTML made by the functions of this module.
    """
    parts = [part for part in parts if part]
    links = "".join(f'<a href="#{place}">{name}</a>' for part in parts for place, name in _SECTION.findall(part))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title).replace(".", ".<wbr>")}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + f'<nav aria-label="sections">{links}</nav>\n'
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what belongs under it; empty without content."""
    content = "\n".join(part for part in parts if part)
    place = re.sub(r"\W+", "-", title.lower())
    return f'<section id="{place}">\n<h2>{escape(title)}</h2>\n{content}\n</section>' if content else ""


def paragraph(text: str, *, note: bool = False) -> str:
    """Plain text."""
    return f"<p{' class=note' if note else ''}>{escape(text)}</p>"


def cards(items: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: (value, its interval or "", what it is)."""
    if not items:
        return ""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><i>{escape(interval) or "&nbsp;"}</i>'
        f"<span>{escape(label)}</span></div>"
        for value, interval, label in items
    )
    return f'<div class="cards">{inner}</div>'


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    best: Sequence[int | None] = (),
    code: Sequence[int] = (),
) -> str:
    """A table that scrolls sideways on a narrow screen.

    Args:
        header: Column titles.
        rows: Cells, plain text.
        numeric: Columns to align right.
        best: For each row the column to set in bold, or None.
        code: Columns set as code.
    """
    if not rows:
        return ""

    def cell(text: str, column: int, row: int) -> str:
        marks = {"number": column in numeric, "best": _at(best, row) == column}
        classes = [name for name, wanted in marks.items() if wanted]
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        inner = f"<code>{escape(text)}</code>" if column in code else escape(text)
        return f"<td{attribute}>{inner}</td>"

    head = "".join(
        f"<th{' class=number' if column in numeric else ''}>{escape(name)}</th>" for column, name in enumerate(header)
    )
    body = "".join(
        "<tr>" + "".join(cell(text, column, number) for column, text in enumerate(row)) + "</tr>\n"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


def figures(paths: Sequence[Path]) -> str:
    """PNG files, embedded; the caption is the file's name in words."""
    if not paths:
        return ""
    inner = "".join(
        f'<figure><img alt="{escape(_caption(path))}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{escape(_caption(path))}</figcaption></figure>\n'
        for path in paths
    )
    return f'<div class="figures">\n{inner}</div>'


def snippet(text: str) -> str:
    """A block of code."""
    return f"<pre>{escape(text)}</pre>"


def _at(values: Sequence[int | None], index: int) -> int | None:
    return values[index] if index < len(values) else None


def _caption(path: Path) -> str:
    words = path.stem.replace("_", " ")
    return words[:1].upper() + words[1:]
