from __future__ import annotations

import re
from html.parser import HTMLParser

from plmsae.validation.report import render_report
from plmsae.validation.rules import Finding, Rule

VOID = {"meta", "br", "link", "img"}
HOSTILE = '<script>alert("x")</script>&<img src=http://evil.example onerror=alert(1)>'


class Page(HTMLParser):
    """Tags in order, their attributes, and a check that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def finding(table: str, name: str, *, passed: bool, severity: str = "critical") -> Finding:
    rule = Rule(name, f"says {HOSTILE}", "ExpectX", {"column": HOSTILE}, severity)  # type: ignore[arg-type]
    return Finding(
        table, rule, passed, 1234, 0 if passed else 5, "" if passed else HOSTILE, () if passed else (HOSTILE,)
    )


FINDINGS = [
    finding("a", "holds_1", passed=True),
    finding("b", "warns", passed=False, severity="warning"),
    finding("a", "fails", passed=False),
]


def test_untrusted_text_is_escaped_everywhere() -> None:
    page = Page(render_report(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, FINDINGS, {HOSTILE: {HOSTILE: 3}}))
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert "".join(page.text).count(HOSTILE) == 17


def test_nothing_is_fetched() -> None:
    text = render_report("t", "l", {}, FINDINGS)
    page = Page(text)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_failures_come_first_in_their_table_and_counts_are_shown() -> None:
    text = render_report("t", "l", {"proteins": 11122}, FINDINGS)
    assert text.index("Table a") < text.index(">fails<") < text.index("holds_1") < text.index("Table b")
    assert "1 of 3 rules hold, 1 fail, 1 warning<" in text
    assert "Not usable" in text
    assert "11,122" in text
    assert "1,234" in text
    assert "Usable, with warnings" in render_report("t", "l", {}, FINDINGS[:2])
    assert "All rules hold" in render_report("t", "l", {}, FINDINGS[:1])


def test_bars_are_in_proportion() -> None:
    text = render_report("t", "l", {}, [], {"Lengths": {"1-100": 10, "101-200": 40, "201-300": 0}})
    assert re.findall(r'style="width:([0-9.]+)%"', text) == ["25.0", "100.0", "0.0"]
    render_report("t", "l", {}, [], {"Empty": {}, "Zero": {"a": 0}})
