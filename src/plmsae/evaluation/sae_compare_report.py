"""The comparison of SAEs as a mapping for machines, tables for files and lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.latent_matches import KINDS, Matched
from plmsae.evaluation.matching import NO_PARTNER
from plmsae.evaluation.sae_compare import QUANTITIES, Comparison

_HEADINGS = {"fvu": "FVU", "l0": "L0", "dead": "dead", "mean_f1": "concept F1"}
_DIGITS = {"fvu": 4, "l0": 1, "dead": 3, "mean_f1": 3}


def as_mapping(found: Comparison) -> dict[str, Any]:
    """Everything but the tables of single latents and concepts; numbers are finite."""
    saes = []
    for member, values in zip(found.members, found.values, strict=True):
        config = member.sae.config
        saes.append(
            {
                "name": member.name,
                "plm": config.plm,
                "layer": config.layer,
                "hook": config.hook,
                "architecture": config.architecture,
                "d_model": config.d_model,
                "dictionary_size": config.dictionary_size,
                "k": config.k,
                "latent_max_measured_here": member.name in found.measured,
                **_flat(values),
            }
        )
    differences = [
        {"name": member.name, "minus": found.members[0].name, **_flat(values)}
        for member, values in zip(found.members[1:], found.differences, strict=True)
    ]
    matches = [
        {"name": member.name, "with": found.members[0].name, **_match(matched)}
        for member, matched in zip(found.members[1:], found.matched, strict=False)
    ]
    return {"data": found.data.sizes(), "saes": saes, "differences": differences, "matches": matches}


def _flat(values: dict[str, Interval]) -> dict[str, float | None]:
    flat: dict[str, float | None] = {}
    for name, each in values.items():
        for suffix, number in (("", each.value), ("_low", each.low), ("_high", each.high)):
            flat[name + suffix] = number if np.isfinite(number) else None
    return flat


def _match(matched: Matched) -> dict[str, Any]:
    shares = []
    for place, threshold in enumerate(matched.thresholds):
        row: dict[str, Any] = {"threshold": threshold}
        for kind in KINDS:
            row |= _flat({kind: matched.shares[kind][place], f"{kind}_null": matched.null[kind][place]})
        if matched.cosine_shares is not None and matched.cosine_null is not None:
            row |= {"cosine": matched.cosine_shares[place], "cosine_null": matched.cosine_null[place]}
        shares.append(row)
    by_rate: list[dict[str, Any]] = [
        {
            "above": each.low,
            "up_to": each.high,
            "num_latents": each.number,
            "num_latents_null": each.null_number,
            "threshold": threshold,
            **_flat({"of_other": each.shares[place], "of_other_null": each.null[place]}),
        }
        for each in matched.by_rate
        for place, threshold in enumerate(matched.thresholds)
    ]
    numbers = {f"num_latents_{kind}": int(matched.fired[kind].sum()) for kind in KINDS}
    return {**numbers, "shares": shares, "by_rate": by_rate}


def latent_table(name: str, matched: Matched) -> pd.DataFrame:
    """One row per latent of an SAE: its match in the SAE that it is compared with, by activation and by atom."""
    columns: dict[str, Any] = {
        "sae": name,
        "latent": np.arange(len(matched.fired["of_other"])),
        "fires": matched.fired["of_other"],
    }
    for kind, title in (("of_other", "match"), ("one_to_one", "partner")):
        partners = pd.Series(matched.partners[kind], dtype="Int64")
        columns[title] = partners.mask(matched.partners[kind] == NO_PARTNER)
        columns[f"{title}_correlation_valid"], columns[f"{title}_correlation_test"] = matched.correlations[kind]
    if matched.cosines is not None:
        columns["nearest_atom"], columns["nearest_atom_cosine"] = matched.cosines
    return pd.DataFrame(columns)


def latent_tables(found: Comparison) -> pd.DataFrame:
    """The latents of every SAE but the first, each with its match in the first."""
    tables = [
        latent_table(member.name, matched) for member, matched in zip(found.members[1:], found.matched, strict=False)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def concept_table(found: Comparison) -> pd.DataFrame:
    """One row per concept, a column of test F1 per SAE."""
    table = found.data.table[["concept", "type", "subtype"]].copy()
    for member, tested in zip(found.members, found.tested, strict=False):
        table[f"f1 {member.name}"] = tested.scores.f1
    return table


def write(found: Comparison, output: Path) -> list[str]:
    """Write `saes`, `differences`, `matches`, `latents` and `concepts` (Parquet and CSV); returns their names."""
    mapping = as_mapping(found)
    matches = [
        {"name": each["name"], "with": each["with"], **row} for each in mapping["matches"] for row in each["shares"]
    ]
    tables = {
        "saes": pd.DataFrame(mapping["saes"]),
        "differences": pd.DataFrame(mapping["differences"]),
        "matches": pd.DataFrame(matches),
        "matches_by_rate": pd.DataFrame(
            [
                {"name": each["name"], "with": each["with"], **row}
                for each in mapping["matches"]
                for row in each["by_rate"]
            ]
        ),
        "latents": latent_tables(found),
        "concepts": concept_table(found),
    }
    kept = {name: table for name, table in tables.items() if len(table)}
    for name, table in kept.items():
        write_table(table, output / name)
    return list(kept)


def lines(found: Comparison, confidence: float) -> list[str]:
    """For people: the SAEs, the differences from the first, and the shares of matched latents."""
    sizes = found.data.sizes()
    shown = [name for name in QUANTITIES if name in found.values[0]]
    rows = [["SAE", "PLM", "LAYER", "LATENTS", *(_HEADINGS[name] for name in shown)]]
    for member, values in zip(found.members, found.values, strict=True):
        config = member.sae.config
        cells = [values[name].text(_DIGITS[name]) for name in shown]
        rows.append([member.name, config.plm, str(config.layer), str(config.dictionary_size), *cells])
    text = [*_aligned(rows)]
    if found.differences:
        rows = [[f"MINUS {found.members[0].name}", *(_HEADINGS[name] for name in shown)]]
        for member, values in zip(found.members[1:], found.differences, strict=True):
            rows.append([member.name, *(_signed(values[name], _DIGITS[name]) for name in shown)])
        text += ["", *_aligned(rows)]
    if found.matched:
        rows = [["MATCHED", "r or cosine >=", "its latents", "of the first", "one to one", "by atoms"]]
        for member, matched in zip(found.members[1:], found.matched, strict=True):
            for place, threshold in enumerate(matched.thresholds):
                cells = [
                    f"{matched.shares[kind][place].text(2)} ({matched.null[kind][place].value:.2f})" for kind in KINDS
                ]
                atoms = "-"
                if matched.cosine_shares is not None and matched.cosine_null is not None:
                    atoms = f"{matched.cosine_shares[place]:.2f} ({matched.cosine_null[place]:.2f})"
                rows.append([member.name, f"{threshold:g}", *cells, atoms])
        text += ["", *_aligned(rows)]
        rows = [["ITS LATENTS THAT FIRE ON", "residues", *(f">= {each:g}" for each in found.matched[0].thresholds)]]
        for member, matched in zip(found.members[1:], found.matched, strict=True):
            for each in matched.by_rate:
                cells = [
                    f"{share.text(2)} of {each.number} ({null.value:.2f} of {each.null_number})"
                    for share, null in zip(each.shares, each.null, strict=True)
                ]
                rows.append([member.name, f"{100 * each.low:g} to {100 * each.high:g} %", *cells])
        text += ["", *_aligned(rows), "", "In parentheses: the same for a permuted dictionary."]
    text += [
        "",
        f"{sizes['num_proteins_test']:,} test proteins ({sizes['num_residues_test']:,} residues), chosen on "
        f"{sizes['num_proteins_valid']:,} validation proteins; {sizes['num_concepts']} concepts; brackets: "
        f"{confidence:.0%} bootstrap intervals over proteins, paired.",
    ]
    if found.measured:
        text.append(f"Largest activations were measured on the validation proteins for: {', '.join(found.measured)}.")
    return text


def _signed(each: Interval, digits: int) -> str:
    return f"{each.value:+.{digits}f} [{each.low:+.{digits}f}, {each.high:+.{digits}f}]"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
