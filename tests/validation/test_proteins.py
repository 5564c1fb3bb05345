"""Every rule is shown to hold on good tables and to name the row when one fact is spoilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from plmsae.errors import DataError
from plmsae.validation.engine import run_suite
from plmsae.validation.proteins import check_proteins
from plmsae.validation.rules import Finding
from plmsae.validation.suites import store_suite
from plmsae.validation.verdict import failures, require

Spoil = Callable[[pd.DataFrame, pd.DataFrame], None]


def check(sequences: pd.DataFrame, annotations: pd.DataFrame, **options: Any) -> dict[tuple[str, str], Finding]:
    settings = {"min_residues": 5, "max_residues": 20, "valid_fraction": 0.3, "test_fraction": 0.3, **options}
    found = check_proteins(sequences, annotations, **settings)
    return {(finding.table, finding.rule.name): finding for finding in found}


def test_good_tables_pass_every_rule(sequences: pd.DataFrame, annotations: pd.DataFrame) -> None:
    found = check(sequences, annotations)
    assert [name for name, finding in found.items() if not finding.passed] == []
    checked = {name: found["annotations", name].num_checked for name in FACTS}
    assert checked == {
        "disulfides_join_cysteines": 2,
        "signals_start_at_1": 1,
        "phosphorylation_fits": 2,
        "n_glycans_on_asparagine": 1,
        "initiators_are_M1": 1,
    }


FACTS = (
    "disulfides_join_cysteines",
    "signals_start_at_1",
    "phosphorylation_fits",
    "n_glycans_on_asparagine",
    "initiators_are_M1",
)


def set_cell(table: str, row: int, column: str, value: object) -> Spoil:
    def spoil(sequences: pd.DataFrame, annotations: pd.DataFrame) -> None:
        frame = sequences if table == "sequences" else annotations
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value

    return spoil


@pytest.mark.parametrize(
    ("table", "rule", "spoil", "example"),
    [
        ("sequences", "accession_present", set_cell("sequences", 1, "accession", None), ""),
        ("sequences", "rows_unique", set_cell("sequences", 3, "accession", "P1"), "P1"),
        ("sequences", "sequence_present", set_cell("sequences", 1, "sequence", None), "P2"),
        ("sequences", "letters", set_cell("sequences", 1, "sequence", "MSTNPKPQRKTJR"), "illegal_letter=J at 12"),
        ("sequences", "letters", set_cell("sequences", 1, "sequence", "MSTNPkPQRKTKR"), "illegal_letter=k at 6"),
        ("sequences", "length_is_that_of_the_sequence", set_cell("sequences", 1, "length", 12), "P2"),
        ("sequences", "length_bounds", set_cell("sequences", 1, "length", 21), "length=21"),
        ("sequences", "offset_not_negative", set_cell("sequences", 1, "offset", -1), "P2 offset=-1"),
        ("sequences", "cluster_present", set_cell("sequences", 1, "cluster", None), "P2"),
        ("sequences", "cluster_known", set_cell("sequences", 1, "cluster", "P9"), "cluster=P9"),
        ("sequences", "one_cluster_per_protein", set_cell("sequences", 1, "accession", "P1"), "P1"),
        ("sequences", "split_known", set_cell("sequences", 1, "split", "tset"), "split=tset"),
        ("sequences", "no_cluster_in_two_splits", set_cell("sequences", 3, "split", "test"), "P4"),
        ("sequences", "no_sequence_in_two_splits", set_cell("sequences", 2, "sequence", "MKTAYIAKQRC"), "P3"),
        ("sequences", "mostly_known_residues", set_cell("sequences", 1, "sequence", "MXXXXXXXXXXXX"), "P2"),
        ("splits", "split_filled", set_cell("sequences", 1, "split", "train"), "valid"),
        ("annotations", "accession_present", set_cell("annotations", 0, "accession", None), "position=1..11"),
        (
            "annotations",
            "sequence_known",
            set_cell("annotations", 0, "accession", "P9"),
            "P9 position=1..11 type=Helix",
        ),
        ("annotations", "sequence_known", set_cell("annotations", 0, "offset", 5), "P1"),
        ("annotations", "type_known", set_cell("annotations", 0, "type", "Helx"), "type=Helx"),
        ("annotations", "starts_inside_sequence", set_cell("annotations", 0, "start", -1), "start=-1"),
        ("annotations", "not_reversed", set_cell("annotations", 2, "end", 1), "P2"),
        ("annotations", "ends_inside_sequence", set_cell("annotations", 0, "end", 12), "P1 position=1..12 type=Helix"),
        ("annotations", "note_present", set_cell("annotations", 0, "note", None), "P1"),
        ("annotations", "ligand_present", set_cell("annotations", 0, "ligand", None), "P1"),
        ("annotations", "disulfides_join_cysteines", set_cell("annotations", 4, "start", 3), "disulfide_ends=SC"),
        ("annotations", "signals_start_at_1", set_cell("annotations", 7, "start", 1), "signal_start=2"),
        ("annotations", "phosphorylation_fits", set_cell("annotations", 3, "start", 1), "Phosphothreonine on S"),
        ("annotations", "n_glycans_on_asparagine", set_cell("annotations", 6, "start", 3), "n_linked_residue=S"),
        ("annotations", "initiators_are_M1", set_cell("annotations", 1, "accession", "P9"), None),
    ],
)
def test_a_spoilt_fact_is_caught_by_its_rule(
    sequences: pd.DataFrame, annotations: pd.DataFrame, table: str, rule: str, spoil: Spoil, example: str | None
) -> None:
    spoil(sequences, annotations)
    finding = check(sequences, annotations)[table, rule]
    if example is None:  # an annotation without a sequence is not judged by its residue
        assert (finding.passed, finding.num_checked) == (True, 0)
        return
    assert not finding.passed
    assert finding.num_failed >= 1
    assert any(example in text for text in finding.examples), finding.examples
    critical = finding.rule.severity == "critical"
    assert failures([finding]) == [finding] * critical
    assert failures([finding], warnings_as_errors=True) == [finding]


def test_duplicate_annotations_are_caught(sequences: pd.DataFrame, annotations: pd.DataFrame) -> None:
    doubled = pd.concat([annotations, annotations.iloc[[2]]], ignore_index=True)
    finding = check(sequences, doubled)["annotations", "annotations_unique"]
    assert (finding.passed, finding.num_failed, finding.num_checked) == (False, 2, 9)


def test_fractions_far_from_the_expected_are_a_warning(annotations: pd.DataFrame) -> None:
    rows = [(f"P{i}", 0, "MKTAYIAK", 8, f"P{i}", "train" if i > 1 else ("valid", "test")[i], "") for i in range(400)]
    columns = ["accession", "offset", "sequence", "length", "cluster", "split", "name"]
    frame = pd.DataFrame(rows, columns=columns)
    found = check(frame, annotations.iloc[:0])
    assert {name for name, finding in found.items() if not finding.passed and name[0] == "splits"} == {
        ("splits", "split_not_too_small"),
        ("splits", "split_not_too_large"),
    }
    assert found["splits", "split_not_too_small"].num_failed == 2


def test_mostly_means_the_stated_fraction(sequences: pd.DataFrame, annotations: pd.DataFrame) -> None:
    annotations.loc[4, "start"] = 3  # one of two disulfides
    assert not check(sequences, annotations)["annotations", "disulfides_join_cysteines"].passed
    assert check(sequences, annotations, residue_facts=0.5)["annotations", "disulfides_join_cysteines"].passed


def test_no_annotations_are_fine_and_no_sequences_are_not(sequences: pd.DataFrame, annotations: pd.DataFrame) -> None:
    found = check(sequences, annotations.iloc[:0])
    assert all(finding.passed for finding in found.values())
    found = check(sequences.iloc[:0], annotations.iloc[:0])
    assert not found["sequences", "not_empty"].passed
    assert found["sequences", "not_empty"].observed == "0"


def test_examples_are_counted_and_cut(sequences: pd.DataFrame, annotations: pd.DataFrame) -> None:
    annotations["type"] = "x" * 500
    finding = check(sequences, annotations, num_examples=2)["annotations", "type_known"]
    assert (finding.num_failed, len(finding.examples)) == (8, 2)
    assert all(len(example) < 200 for example in finding.examples)


def test_the_error_names_table_column_rule_counts_and_examples(
    sequences: pd.DataFrame, annotations: pd.DataFrame
) -> None:
    annotations.loc[0, "end"] = 12
    sequences.loc[3, "split"] = "test"
    with pytest.raises(DataError) as error:
        require(list(check(sequences, annotations).values()), where="report.html", fix="mend it")
    assert error.value.problem.split("; table ")[-1] == (
        "'annotations', column 'end', rule 'ends_inside_sequence' (an annotation ends inside its sequence): "
        "1 of 8 rows fail: P1 position=1..12 type=Helix (end=12, row_length=11)"
    )
    assert "table 'sequences', column 'split', rule 'no_cluster_in_two_splits'" in error.value.problem
    assert (error.value.where, error.value.fix, error.value.exit_code) == ("report.html", "mend it", 3)
    require([finding for finding in check(sequences, annotations).values() if finding.passed], where="", fix="")


def test_a_missing_column_is_a_failure_that_says_so() -> None:
    finding = run_suite(store_suite(num_rows=3), pd.DataFrame({"chunk": ["a"], "num_rows": [3], "mean_norm": [1.0]}))[4]
    assert (finding.rule.name, finding.passed) == ("all_finite", False)
    assert finding.observed == "no column 'num_nonfinite'"
