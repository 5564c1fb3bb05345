"""One HTML file that shows what was checked and what was found; opens anywhere, offline, and prints.

Everything that comes from data is escaped, and the content security policy forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from plmsae.validation.rules import Finding

_STYLE = """
:root{--ink:#1b2430;--soft:#5d6b7c;--line:#dfe4ea;--page:#f6f7f9;--good:#1a7f4b;--bad:#b3261e;--warn:#9a6700}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:70rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;margin:0 0 .25rem}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
.lead{color:var(--soft);margin:0 0 1.25rem}
.verdict{display:flex;gap:.75rem;align-items:baseline;padding:.8rem 1rem;border-radius:.5rem;background:#fff;
 border:1px solid var(--line);border-left:.4rem solid var(--good)}
.verdict.failed{border-left-color:var(--bad)}.verdict.warned{border-left-color:var(--warn)}
.verdict strong{font-size:1.1rem}
.facts{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0 0;padding:0}
.facts div{background:#fff;border:1px solid var(--line);border-radius:.5rem;padding:.5rem .9rem}
.facts dt{color:var(--soft);font-size:.8rem}.facts dd{margin:0;font-size:1.15rem;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;background:#fff;border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.5rem .75rem;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-size:.8rem;font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.tag{display:inline-block;border-radius:1rem;padding:.05rem .6rem;font-size:.8rem;font-weight:600;color:#fff;
 background:var(--good);white-space:nowrap}
.tag.failed{background:var(--bad)}.tag.warned{background:var(--warn)}
ul{margin:.25rem 0 0;padding-left:1.1rem}.rule{color:var(--soft);font-size:.85rem}
.bars td{padding:.15rem .75rem;border:0;white-space:nowrap}.bars .bar{width:70%}
.bars i{display:block;height:.7rem;border-radius:.2rem;background:#3a6ea5;min-width:1px}
.bars tr:first-child td{padding-top:.6rem}.bars tr:last-child td{padding-bottom:.6rem}
footer{margin-top:2.5rem;color:var(--soft);font-size:.85rem}
@media print{body{background:#fff;font-size:11px}main{padding:0;max-width:none}tr{break-inside:avoid}
 .scroll{overflow:visible}.bars i{print-color-adjust:exact}.tag{border:1px solid;color:inherit;background:none}}
"""
_LABELS = {"passed": "holds", "failed": "fails", "warned": "warning"}


def outcome_of(finding: Finding) -> str:
    """`passed`, `failed`, or `warned` for a failed rule of severity `warning`."""
    if finding.passed:
        return "passed"
    return "failed" if finding.rule.severity == "critical" else "warned"


def render_report(
    title: str,
    lead: str,
    facts: Mapping[str, object],
    findings: Sequence[Finding],
    counts: Mapping[str, Mapping[str, int]] | None = None,
) -> str:
    """The report as HTML text.

    Args:
        title: Heading.
        lead: One sentence below it: what was looked at.
        facts: Numbers to show on top, label -> value.
        findings: All findings; they are grouped by table, failures first.
        counts: Heading -> (label -> count), drawn as bars at the end.
    """
    outcomes = [outcome_of(finding) for finding in findings]
    num_failed, num_warned = outcomes.count("failed"), outcomes.count("warned")
    state = "failed" if num_failed else "warned" if num_warned else "passed"
    verdict = {"failed": "Not usable", "warned": "Usable, with warnings", "passed": "All rules hold"}[state]
    tally = (
        f"{outcomes.count('passed')} of {len(findings)} rules hold, {num_failed} fail, {_plural(num_warned, 'warning')}"
    )
    tables = list(dict.fromkeys(finding.table for finding in findings))
    sections = "".join(_section(table, [found for found in findings if found.table == table]) for table in tables)
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_number(value))}</dd></div>" for name, value in facts.items()
    )
    bars = "".join(_bars(heading, values) for heading, values in (counts or {}).items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n'
        f'<div class="verdict {state}"><strong>{verdict}</strong><span>{tally}</span></div>\n'
        f'<dl class="facts">{shown}</dl>\n{sections}{bars}'
        "<footer>Positions count from 1. A rule of severity warning does not stop the pipeline.</footer>\n"
        "</main></body></html>\n"
    )


def _section(table: str, findings: Sequence[Finding]) -> str:
    order = {"failed": 0, "warned": 1, "passed": 2}
    rows = "".join(_row(finding) for finding in sorted(findings, key=lambda found: order[outcome_of(found)]))
    head = (
        '<th></th><th>Rule</th><th>Column</th><th class="n">Rows checked</th><th class="n">Rows that fail</th>'
        "<th>Examples</th>"
    )
    return (
        f'<h2>Table {escape(table)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _row(finding: Finding) -> str:
    outcome = outcome_of(finding)
    examples = "".join(f"<li><code>{escape(example)}</code></li>" for example in finding.examples)
    shown = f"<ul>{examples}</ul>" if examples else ""
    if finding.observed and not finding.passed:
        shown = f"found <code>{escape(finding.observed)}</code>" + shown
    return (
        f'<tr><td><span class="tag {outcome}">{_LABELS[outcome]}</span></td>'
        f'<td>{escape(finding.rule.says)}<div class="rule"><code>{escape(finding.rule.name)}</code></div></td>'
        f"<td><code>{escape(finding.rule.column)}</code></td>"
        f'<td class="n">{finding.num_checked:,}</td><td class="n">{finding.num_failed:,}</td><td>{shown}</td></tr>\n'
    )


def _bars(heading: str, values: Mapping[str, int]) -> str:
    greatest = max(values.values(), default=1) or 1
    rows = "".join(
        f'<tr><td>{escape(label)}</td><td class="n">{count:,}</td>'
        f'<td class="bar"><i style="width:{100.0 * count / greatest:.1f}%"></i></td></tr>\n'
        for label, count in values.items()
    )
    return f'<h2>{escape(heading)}</h2><div class="scroll"><table class="bars"><tbody>{rows}</tbody></table></div>\n'


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
