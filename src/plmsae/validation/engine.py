"""Runs a suite on a data frame with Great Expectations: in memory, quiet, without telemetry.

Importing the library takes seconds, so this module is imported only where a suite is about to run.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

# Read when the library is imported: no usage statistics are sent.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig

from plmsae.validation.rules import Finding, Rule, Suite

for _name in ("great_expectations", "great_expectations.data_context.types.base"):  # the second sets a level of its own
    logging.getLogger(_name).setLevel(logging.ERROR)
MAX_EXAMPLE_CHARACTERS = 80


def run_suite(suite: Suite, frame: pd.DataFrame, *, num_examples: int = 5) -> list[Finding]:
    """Check every rule of a suite.

    Args:
        suite: The rules.
        frame: The table with every column that the rules and the suite's keys name.
        num_examples: How many offending rows a finding shows.

    Returns:
        One finding per rule, in the suite's order.
    """
    absent = {rule.name: sorted(set(rule.columns) - set(frame.columns)) for rule in suite.rules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("frames").add_dataframe_asset(suite.table)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        expectations = gx.ExpectationSuite(
            name=suite.table,
            expectations=[
                getattr(gxe, rule.expectation)(**rule.arguments, severity=rule.severity, meta={"rule": rule.name})
                for rule in suite.rules
                if not absent[rule.name]
            ],
        )
        outcome = batch.validate(
            expectations,
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": [key for key in suite.keys if key in frame.columns],
                "partial_unexpected_count": num_examples,
                "return_unexpected_index_query": False,
            },
        )
    by_rule = {result.expectation_config.meta["rule"]: result for result in outcome.results}
    return [
        Finding(suite.table, rule, False, 0, 0, f"no column '{absent[rule.name][0]}'")
        if absent[rule.name]
        else _finding(suite, rule, by_rule[rule.name], num_examples)
        for rule in suite.rules
    ]


def _finding(suite: Suite, rule: Rule, outcome: Any, num_examples: int) -> Finding:
    result = outcome.result
    if outcome.exception_info.get("raised_exception", False) or not result:
        message = str(outcome.exception_info.get("exception_message") or outcome.exception_info)
        return Finding(suite.table, rule, False, 0, 0, f"could not be checked: {' '.join(message.split())[:200]}")
    if "element_count" not in result:  # a rule about the whole table or a column's aggregate
        observed = _shorten(result.get("observed_value"))
        return Finding(suite.table, rule, bool(outcome.success), 1, int(not outcome.success), observed)
    num_missing = int(result.get("missing_count") or 0)
    # Rules about nulls look at every row; the others pass nulls over.
    num_checked = int(result["element_count"]) - (0 if rule.expectation.endswith("Null") else num_missing)
    rows = result.get("partial_unexpected_index_list") or result.get("partial_unexpected_list") or []
    return Finding(
        suite.table,
        rule,
        bool(outcome.success),
        num_checked,
        int(result["unexpected_count"]),
        examples=tuple(_example(row, suite.keys) for row in rows[:num_examples]),
    )


def _example(row: Any, keys: tuple[str, ...]) -> str:
    if not isinstance(row, dict):
        return _shorten(row)
    named = [_shorten(row[key]) if key == keys[0] else f"{key}={_shorten(row[key])}" for key in keys if key in row]
    values = [f"{column}={_shorten(value)}" for column, value in sorted(row.items()) if column not in keys]
    return " ".join(named) + (f" ({', '.join(values)})" if values else "")


def _shorten(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_EXAMPLE_CHARACTERS else text[: MAX_EXAMPLE_CHARACTERS - 3] + "..."
