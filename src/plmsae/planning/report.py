"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plmsae.planning.units import amount, duration, number

WIDTH = 118


def render(plan: Mapping[str, Any]) -> str:
    """The plan as a few tables and lists."""
    extract, train, evaluate = (plan["stages"][name] for name in ("extract_activations", "train_sae", "evaluate"))
    corpus, plm, machine, total = plan["corpus"], plan["plm"], plan["machine"], plan["total"]
    captures = "; ".join(
        f"{', '.join(str(item['layer']) for item in extract['captures'] if item['hook'] == hook)} ({hook})"
        for hook in dict.fromkeys(item["hook"] for item in extract["captures"])
    )
    kept = sum(split["sequences"] for split in corpus["splits"].values())
    latents = f"{train['latents']:,} latents" + (f", k {train['k']}" if train["k"] is not None else "")
    lines = [
        *_wrapped(plan["title"], ""),
        "",
        *_facts(
            ("PLM", f"{plm['name']}: {number(plm['parameters'])} parameters, {plm['layers']} layers, "
                    f"{plm['d_model']:,} wide"),
            ("layers", f"{captures}: {extract['blocks_computed']:g} of {plm['layers']} blocks computed"),
            ("corpus", f"{corpus['description']}; {kept:,.0f} rows kept, mean {corpus['mean_length']:.0f} residues, "
                       f"longest {corpus['longest']:,}{_left_out(corpus['left_out'])}"),
            ("SAEs", f"{train['saes']:,} x {train['architecture']}, {latents}, "
                     f"{number(train['parameters'])} parameters, {amount(train['file_bytes'])} each"),
            ("device", f"{machine['count']} x {machine['device']}, extraction in {extract['precision']}, training in "
                       f"{train['precision']}"),
        ),
        "",
    ]  # fmt: skip
    rows = [["stage", "tokens", "FLOP", "time: floor", "assumed", "device-hours: floor", "assumed"]]
    for name, tokens, flops, stage in (
        ("extract_activations", extract["tokens"], extract["flops"], extract),
        ("train_sae", train["tokens"], train["flops_dense"], train),
        ("evaluate", sum(evaluate["tokens"].values()) * train["saes"], evaluate["flops"], evaluate),
        ("total", None, None, total),
    ):
        counts = ["", ""] if tokens is None or flops is None else [number(tokens), number(flops)]
        spent = [stage["seconds"], stage["device_hours"]]
        rows.append(
            [name, *counts, *(duration(spent[0][key]) for key in ("floor", "assumed")),
             *(f"{spent[1][key]:.3g}" for key in ("floor", "assumed"))]
        )  # fmt: skip
    lines += [*_table(rows), ""]
    memory, batch = extract["memory"], train["memory"]
    facts = [
        ("stores", f"{extract['stores']} x {amount(extract['bytes_per_store'])} as {extract['dtype']} = "
                   f"{amount(extract['bytes'])} in {extract['chunks']:,} shards, {extract['blocks']:,} blocks; "
                   + ", ".join(f"{amount(size)} as {dtype}" for dtype, size in extract["bytes_by_dtype"].items()
                               if dtype != extract["dtype"])
                   + _write_rate(extract)),
        ("training", f"{train['steps_per_sae']:,} steps, {train['epochs']:.2g} epochs, "
                     f"{number(train['flops_per_token'], 'FLOP')} per token; reads {amount(train['bytes_read'])} of "
                     f"rows at {amount(train['read_rate']['assumed'])}/s (floor "
                     f"{amount(train['read_rate']['floor'])}/s) and moves {amount(train['traffic'])} through the "
                     "device's memory"),
        ("memory", f"extraction: weights {amount(memory['weights'])}, batch {amount(memory['batch'])}, pool "
                   f"{amount(memory['pool'])} on the host; training: weights, gradients and Adam "
                   f"{amount(batch['weights_gradients_adam'])}, batch {amount(batch['batch'])}"),
        ("disk", f"{amount(total['disk_bytes'])} in the working folder"
                 + (f", {amount(total['bucket_bytes'])} in the bucket" if total["bucket_bytes"] else "")),
    ]  # fmt: skip
    if train["flops_sparse"] is not None:
        facts.insert(2, ("sparse", f"{number(train['flops_sparse'], 'FLOP')} if only active latents are multiplied"))
    if "cost" in total:
        facts.append(("cost", f"{total['cost']['floor']:,.2f} (floor) to {total['cost']['assumed']:,.2f} (assumed)"))
    lines += _facts(*facts)
    for title, key in (
        ("what drives it", "drivers"),
        ("warnings", "warnings"),
        ("notes", "notes"),
        ("assumptions", "assumptions"),
    ):
        if plan[key]:
            lines += ["", title, *(line for text in plan[key] for line in _wrapped(f"- {text}", "  "))]
    return "\n".join(lines)


def _write_rate(extract: Mapping[str, Any]) -> str:
    rate = extract["write_rate"]
    return f"; written at {amount(rate['assumed'])}/s (floor {amount(rate['floor'])}/s)" if rate else ""


def _left_out(counts: Mapping[str, float]) -> str:
    words = [f"{count:,.0f} {name.replace('_', ' ')}" for name, count in counts.items() if count >= 0.5]
    return f" ({', '.join(words)})" if words else ""


def _facts(*facts: tuple[str, str]) -> list[str]:
    return [line for name, text in facts for line in _wrapped(f"{name:<9} {text}", " " * 10)]


def _wrapped(text: str, indent: str) -> list[str]:
    from textwrap import wrap

    return wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
