"""The rules, in plain code: one function per table."""

from __future__ import annotations

from collections.abc import Sequence

from plmsae.proteins.feature_types import TYPES
from plmsae.proteins.records import OTHER_RESIDUES, STANDARD_RESIDUES
from plmsae.proteins.split import SPLITS
from plmsae.validation.rules import Rule, Severity, Suite

MAX_UNKNOWN_FRACTION = 0.5


def sequences_suite(*, min_residues: int, max_residues: int) -> Suite:
    """Rules of `sequences.parquet` as `frames.sequence_frame` shows it.

    Args:
        min_residues: Least length of a row.
        max_residues: Greatest length of a row.
    """
    rules = (
        _has_rows(),
        _present("accession"),
        _unique(["accession", "offset"], "rows_unique", "no stretch of a protein stands twice"),
        _present("sequence"),
        Rule(
            "letters",
            f"sequences consist of {STANDARD_RESIDUES} and {OTHER_RESIDUES}",
            "ExpectColumnValuesToBeNull",
            {"column": "illegal_letter"},
            about="sequence",
        ),
        Rule(
            "length_is_that_of_the_sequence",
            "the column length is the number of residues",
            "ExpectColumnPairValuesToBeEqual",
            {"column_A": "length", "column_B": "num_letters"},
            about="length",
        ),
        _between("length", "length_bounds", _lengths(min_residues, max_residues), min_residues, max_residues),
        _between("offset", "offset_not_negative", "rows start at residue 1 of their protein or later", 0, None),
        _present("cluster"),
        _one_of(
            [True],
            "cluster_is_a_protein",
            "cluster_known",
            "the representative of a cluster is a protein of the table",
            about="cluster",
        ),
        _one("num_clusters_of_protein", "one_cluster_per_protein", "a protein is in one cluster", about="cluster"),
        _one_of(SPLITS, "split", "split_known", "a split is train, valid or test"),
        _one("num_splits_of_cluster", "no_cluster_in_two_splits", "a homology cluster is in one split", about="split"),
        _one("num_splits_of_sequence", "no_sequence_in_two_splits", "equal sequences are in one split", about="split"),
        _between(
            "unknown_fraction",
            "mostly_known_residues",
            f"at most {MAX_UNKNOWN_FRACTION:.0%} of a sequence is unknown (X)",
            0.0,
            MAX_UNKNOWN_FRACTION,
            severity="warning",
            about="sequence",
        ),
    )
    return Suite("sequences", rules, keys=("accession", "offset", "cluster", "split"))


def splits_suite(*, min_proteins: int) -> Suite:
    """Rules of the table of splits that `frames.split_frame` makes.

    Args:
        min_proteins: Least number of proteins in every split.
    """
    filled = f"every split has at least {min_proteins} proteins"
    share = "a split holds its share of the clusters, give or take five standard deviations"
    rules = (
        _between("num_proteins", "split_filled", filled, min_proteins, None),
        _above("cluster_fraction", "low", "split_not_too_small", share, severity="warning"),
        _above("high", "cluster_fraction", "split_not_too_large", share, severity="warning"),
    )
    return Suite("splits", rules, keys=("split",))


def annotations_suite(*, residue_facts: float) -> Suite:
    """Rules of `annotations.parquet` as `frames.annotation_frame` shows it. The table may be empty.

    Args:
        residue_facts: Least fraction of features that lie on the residues which their kind calls for.
    """

    def fact(values: Sequence[object], column: str, name: str, says: str) -> Rule:
        text = f"at least {residue_facts:.0%} of {says}"
        return _one_of(values, column, name, text, severity="warning", mostly=residue_facts, about="start, end")

    rules = (
        _present("accession"),
        _one_of(
            [True],
            "has_sequence",
            "sequence_known",
            "an annotation belongs to a row of the sequences table",
            about="accession, offset",
        ),
        _one_of(sorted(TYPES.values()), "type", "type_known", "a type is one of UniProt's feature columns"),
        _between("start", "starts_inside_sequence", "an annotation starts at the first residue or later", 0, None),
        _above("end", "start", "not_reversed", "an annotation ends after it starts", or_equal=False),
        _above("row_length", "end", "ends_inside_sequence", "an annotation ends inside its sequence", about="end"),
        _present("note"),
        _present("ligand"),
        _unique(
            ["accession", "offset", "type", "start", "end", "note", "ligand"],
            "annotations_unique",
            "no annotation stands twice",
        ),
        fact(["CC"], "disulfide_ends", "disulfides_join_cysteines", "disulfide bonds join two C"),
        fact([1], "signal_start", "signals_start_at_1", "signal peptides start at residue 1"),
        fact(
            ["Phosphoserine on S", "Phosphothreonine on T", "Phosphotyrosine on Y"],
            "phospho_residue",
            "phosphorylation_fits",
            "phosphorylations are on the residue that they name",
        ),
        fact(["N"], "n_linked_residue", "n_glycans_on_asparagine", "N-linked glycans are on N"),
        fact(["M1"], "initiator", "initiators_are_M1", "initiator methionines are M at residue 1"),
    )
    return Suite("annotations", rules, keys=("accession", "position", "type"))


def store_suite(*, num_rows: int, max_mean_norm: float = 1e6) -> Suite:
    """Rules of the summary of an activation store: one row per chunk with chunk, num_rows, num_nonfinite, mean_norm.

    Args:
        num_rows: Number of activation rows that the store must hold, one per residue that was not masked.
        max_mean_norm: Greatest plausible mean Euclidean norm of a chunk's rows.
    """
    rules = (
        _has_rows(),
        Rule("chunks_unique", "no chunk stands twice", "ExpectColumnValuesToBeUnique", {"column": "chunk"}),
        _between("num_rows", "chunk_not_empty", "every chunk holds rows", 1, None),
        Rule(
            "num_rows_as_expected",
            f"the store holds {num_rows} rows, one per residue",
            "ExpectColumnSumToBeBetween",
            {"column": "num_rows", "min_value": num_rows, "max_value": num_rows},
        ),
        _between("num_nonfinite", "all_finite", "no activation is NaN or infinite", 0, 0),
        _present("mean_norm"),
        Rule(
            "mean_norm_plausible",
            f"the mean norm of a chunk is above 0 and at most {max_mean_norm:g}",
            "ExpectColumnValuesToBeBetween",
            {"column": "mean_norm", "min_value": 0.0, "strict_min": True, "max_value": max_mean_norm},
        ),
    )
    return Suite("activation store", rules, keys=("chunk",))


def _lengths(low: int, high: int) -> str:
    return f"rows have {low:,} to {high:,} residues"


def _has_rows() -> Rule:
    return Rule("not_empty", "the table has rows", "ExpectTableRowCountToBeBetween", {"min_value": 1})


def _present(column: str) -> Rule:
    return Rule(f"{column}_present", f"every row has its {column}", "ExpectColumnValuesToNotBeNull", {"column": column})


def _unique(columns: list[str], name: str, says: str) -> Rule:
    return Rule(name, says, "ExpectCompoundColumnsToBeUnique", {"column_list": columns})


def _between(
    column: str,
    name: str,
    says: str,
    low: float | None,
    high: float | None,
    *,
    severity: Severity = "critical",
    about: str = "",
) -> Rule:
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Rule(name, says, "ExpectColumnValuesToBeBetween", arguments, severity, about)


def _one(column: str, name: str, says: str, *, about: str) -> Rule:
    return _between(column, name, says, 1, 1, about=about)


def _one_of(
    values: Sequence[object],
    column: str,
    name: str,
    says: str,
    *,
    severity: Severity = "critical",
    mostly: float = 1.0,
    about: str = "",
) -> Rule:
    arguments = {"column": column, "value_set": list(values), "mostly": mostly}
    return Rule(name, says, "ExpectColumnValuesToBeInSet", arguments, severity, about)


def _above(
    larger: str,
    smaller: str,
    name: str,
    says: str,
    *,
    or_equal: bool = True,
    severity: Severity = "critical",
    about: str = "",
) -> Rule:
    arguments = {
        "column_A": larger,
        "column_B": smaller,
        "or_equal": or_equal,
        "ignore_row_if": "either_value_is_missing",
    }
    return Rule(name, says, "ExpectColumnPairValuesAToBeGreaterThanB", arguments, severity, about)
