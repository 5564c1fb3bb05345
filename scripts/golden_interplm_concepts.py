"""Runs InterPLM's concept pipeline (commit 5f4cbf9) and writes its labels, scores and reports.

From UniProt's table to the reported numbers with its own code; only the SAE is replaced by given activations, through
its identity dictionary. `tests/evaluation/test_golden_interplm.py` makes the same numbers with ours:

    python -m venv ENV && ENV/bin/pip install numpy==2.2.6 pandas==2.2.3 scipy==1.14.1 pyyaml tqdm torch
    git clone https://github.com/ElanaPearl/InterPLM CLONE && git -C CLONE checkout 5f4cbf9
    ENV/bin/python scripts/golden_interplm_concepts.py --interplm CLONE --real tests/fixtures/swissprot_tiny.tsv.gz \
        > tests/evaluation/golden_interplm.json

Two runs: made-up proteins that have every case in which its parser does something of its own, with all numbers; and
120 real ones, with activations from a formula, with sums.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

THRESHOLDS = [0, 0.15, 0.5, 0.6, 0.8]
LEVELS = [0.05, 0.15, 0.3, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.7]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NUM_PROTEINS, NUM_SHARDS = 16, 4
VALID, TEST = (0, 1), (2, 3)
MADE_UP: dict[str, Any] = {"min_required_instances": 3, "min_aa": 40, "min_domains": 3, "bound": 0.5}
REAL: dict[str, Any] = {"min_required_instances": 5, "min_aa": 200, "min_domains": 8, "bound": 0.3}
REAL_FEATURES = 24
EMPTY = ("Coiled coil",)  # taken out of the table of real proteins
# What its modules import and this run never calls.
ABSENT = ("einops", "esm", "h5py", "huggingface_hub", "nnsight", "requests", "tap", "transformers", "wandb")

EVIDENCE = '/evidence="ECO:0000255|PROSITE-ProRule:PRU00192"'
# Cells by column and protein, with what InterPLM makes of them. All proteins also get the cells of `background`.
SPECIAL: dict[str, dict[int, str]] = {
    "Domain [FT]": {
        0: f'DOMAIN 5..20; /note="SH3 1"; {EVIDENCE}; DOMAIN 18..30; /note="SH3 2"; {EVIDENCE}',  # overlap of `any`
        1: f'DOMAIN 3..40; /note="Kinase"; {EVIDENCE}; DOMAIN 10..20; /note="Kinase"; {EVIDENCE}',  # inside
        2: f'DOMAIN 10..20; /note="Kinase"; {EVIDENCE}; DOMAIN 3..40; /note="Kinase"; {EVIDENCE}',  # erased
        3: f'DOMAIN 3..40; /note="Kinase; truncated"; {EVIDENCE}',  # after the semicolon: nothing
        4: f'DOMAIN <1..>25; /note="Kinase"; {EVIDENCE}; DOMAIN ?..50; /note="Kinase"',  # fuzzy, unknown
        5: f'DOMAIN P00005-2:4..30; /note="Kinase"; {EVIDENCE}; DOMAIN 31..45; /note="SH3 1"',  # another isoform
        6: 'DOMAIN 6..30; /note="Kinase"; DOMAIN 25..400; /note="SH3 1"',  # goes on beyond the sequence
        7: 'DOMAIN 300..310; /note="Kinase"',  # beyond it: a number without residues
        8: f'DOMAIN 5..20; /note="RareDom"; {EVIDENCE}; DOMAIN 30..44; /note="Kinase"; {EVIDENCE}',  # not in `any`
        9: f'DOMAIN 7..22; {EVIDENCE}; DOMAIN 30..44; /note="SH3 1"; {EVIDENCE}',  # no note
        10: 'DOMAIN 12..30; /note="Kinase"; DOMAIN 31..44; /note="Kinase"',
        11: 'DOMAIN 12..30; /note="SH3 1"; DOMAIN 12..30; /note="SH3 1"',  # twice the same
        13: 'DOMAIN 2..33; /note="any"; DOMAIN 20..41; /note="Kinase"',
        14: 'DOMAIN 2..33; /note="Kinase"',
    },
    "Binding site": {
        0: 'BINDING 8; /ligand="ATP"; /ligand_id="ChEBI:CHEBI:30616"; BINDING 9..12; /ligand="ATP"',
        1: 'BINDING 8; /ligand="ATP"; /note="axial binding residue"',
        2: 'BINDING 8; /ligand="substrate"; /note="substrate"',  # the one way to a label: a note that is a ligand
        3: 'BINDING 9; /ligand="substrate"; BINDING 14..18; /ligand="substrate"; /note="substrate"',
        8: 'BINDING 19; /ligand="substrate"; BINDING 24..28; /ligand="substrate"; /note="substrate"',
        12: 'BINDING 3..9; /note="substrate"; BINDING 15; /note="substrate"',
    },
    "Active site": {
        1: f'ACT_SITE 10; /note="Nucleophile"; {EVIDENCE}',
        2: f'ACT_SITE 10; /note="Nucleophile"; {EVIDENCE}; ACT_SITE 33; {EVIDENCE}',
        6: 'ACT_SITE 30; /note="Nucleophile"; ACT_SITE <31; /note="Nucleophile"',  # a sign on a single position
        9: f'ACT_SITE 44; /note="Nucleophile"; ACT_SITE 45; {EVIDENCE}; ACT_SITE 46; {EVIDENCE}',
        12: 'ACT_SITE 21; /note="Nucleophile; for protease"; ACT_SITE 22; /note="Proton donor"',
    },
    "Modified residue": {
        0: 'MOD_RES 2; /note="Phosphoserine"; MOD_RES 5; /note="Phosphoserine; by PKA"',
        3: 'MOD_RES 7; /note="Phosphoserine"; MOD_RES 9..11; /note="Phosphoserine"',
        10: 'MOD_RES 7; /note="Phosphoserine; alternate"; MOD_RES 7; /note="N6-acetyllysine; alternate"',
        13: 'MOD_RES 17; /note="Phosphoserine"; MOD_RES 500; /note="Phosphoserine"',
        15: 'MOD_RES 21; /note="Phosphoserine"; MOD_RES 23; /note="N6-acetyllysine"',
    },
    "Glycosylation": {
        4: 'CARBOHYD 12; /note="N-linked (GlcNAc...) asparagine"; CARBOHYD 30; /note="N-linked (GlcNAc...) asparagine"',
        5: 'CARBOHYD 13; /note="N-linked (GlcNAc...) asparagine"',
        11: 'CARBOHYD 14; /note="N-linked (GlcNAc...) asparagine; by host"',
        14: 'CARBOHYD 15; /note="N-linked (GlcNAc...) asparagine"',
    },
    "Region": {
        0: 'REGION 1..20; /note="Disordered"; REGION 40..48; /note="Interaction with REGION 7"',  # the key in a note
        2: 'REGION 1..12; /note="Disordered"; REGION 30..48; /note="Glycosylation hinge"',  # named like another type
        5: 'REGION 5..12; /note="Disordered"; REGION 8..20; /note="Disordered"',
        7: 'REGION 30..44; /note="Glycosylation hinge"; REGION 9..12; /note="Glycosylation hinge"',
        12: 'REGION 2..30; /note="Disordered"; REGION 30..40; /note="Glycosylation hinge"',
    },
    "Motif": {
        3: 'MOTIF 4..8; /note="DEAD box"', 9: 'MOTIF 14..18; /note="DEAD box"', 12: 'MOTIF 33..36; /note="DEAD box"',
    },
    "Zinc finger": {
        1: 'ZN_FING 22..44; /note="C2H2-type 1"; ZN_FING 45..48; /note="C2H2-type 2"',
        6: 'ZN_FING 3..20; /note="C2H2-type 1"; ZN_FING 24..40; /note="C2H2-type 2; degenerate"',
        13: 'ZN_FING 4..21; /note="C2H2-type 1"; ZN_FING 24..40; /note="C2H2-type 2"',
    },
    "Compositional bias": {
        0: 'COMPBIAS 3..9; /note="Basic residues"', 2: 'COMPBIAS 13..19; /note="Basic residues"',
        7: 'COMPBIAS 3..9; /note="Basic residues"', 15: 'COMPBIAS 30..39; /note="Basic residues"',
    },
    "Transit peptide": {
        4: 'TRANSIT 1..12; /note="Mitochondrion"', 8: 'TRANSIT 1..14; /note="Mitochondrion"',
        11: 'TRANSIT 1..?; /note="Mitochondrion"', 15: 'TRANSIT 1..9; /note="Mitochondrion"',
    },
    "Signal peptide": dict.fromkeys((1, 3, 5, 9), f"SIGNAL 1..22; {EVIDENCE}"),
    "Cofactor": dict.fromkeys((0, 6, 7), "COFACTOR: Name=Zn(2+); Xref=ChEBI:CHEBI:29105; Note=Binds 1 zinc ion."),
    "Disulfide bond": {
        0: "DISULFID 4..30", 1: 'DISULFID 8; /note="Interchain"; DISULFID 9..25; /evidence="ECO:0000250"',
        2: "DISULFID 5..>19", 3: "DISULFID ?..20", 4: "DISULFID 2..400", 5: "DISULFID 3..33; DISULFID 3..12",
    },
    "Lipidation": {
        0: 'LIPID 2; /note="N-myristoyl glycine"', 1: 'LIPID 3; /note="S-palmitoyl cysteine"; LIPID 700',
        2: "LIPID 5", 3: "LIPID >6", 4: "LIPID 7; LIPID 7", 5: "LIPID 8",
    },
    "Turn": {2: 'TURN 20..22; /evidence="ECO:0007829|PDB:1ABC"; TURN <3..5; TURN >6..9'},
}  # fmt: skip


def background(number: int, length: int) -> dict[str, str]:
    """Cells that every protein has: InterPLM stops at a shard where one of these columns is empty."""
    first = 3 + number % 5
    return {
        "Helix": f"HELIX {first}..{first + 9}; HELIX {first + 14}..{first + 20}; HELIX P0-2:4..9",
        "Turn": f"TURN {first + 11}..{first + 12}",
        "Beta strand": f"STRAND {first + 22}..{first + 27}; STRAND {first + 29}..{length + 4}",
        "Coiled coil": f"COILED {first + 4}..{first + 30}" + (f"; COILED {first + 20}..{first + 36}" * (number % 2)),
        "Lipidation": f"LIPID {first + 1}",
        "Disulfide bond": f"DISULFID {first + 3}..{first + 25}",
    }


def made_up_table(columns: list[str]) -> pd.DataFrame:
    """Sixteen proteins, and three that InterPLM leaves out: too long, without a structure, and a duplicate."""
    rows: list[dict[str, str | None]] = []
    for number in range(NUM_PROTEINS):
        length = 50 + 3 * number
        sequence = "".join(LETTERS[(7 * i + i * i * (number + 2) + number) % 20] for i in range(length))
        cells = background(number, length) | {name: of[number] for name, of in SPECIAL.items() if number in of}
        if number == 15:
            sequence = sequence[:20] + "XU" + sequence[22:]
        rows.append({"Entry": f"P{number:05d}", "Sequence": sequence, "AlphaFoldDB": f"P{number:05d};", **cells})
    kinase = {"Domain [FT]": 'DOMAIN 1..9; /note="RareDom"; DOMAIN 11..19; /note="RareDom"'}
    rows.append(rows[3] | {"Entry": "P90001", **kinase})
    rows.append(rows[4] | {"Entry": "P90002", "Sequence": f"{rows[4]['Sequence']}A", "AlphaFoldDB": None, **kinase})
    rows.append(rows[5] | {"Entry": "P90003", "Sequence": "ACDEFGHIKL" * 103, **kinase})
    table = pd.DataFrame(rows, columns=["Entry", "Sequence", "AlphaFoldDB", *columns])
    table.insert(2, "Length", table["Sequence"].str.len())
    return table


def made_up_activations(labels: list[Any], names: list[str]) -> list[np.ndarray]:
    """Features that know a concept more or less well, at levels on and beside the thresholds; one array per shard."""
    rng = np.random.default_rng(0)
    # Concept, share of its residues on validation and on test, share of other residues.
    plan = [
        ("Domain_Kinase", 0.8, 0.8, 0.02), ("Helix", 0.5, 0.4, 0.02), ("Domain_SH3 1", 0.3, 0.3, 0.0), ("", 0, 0, 0),
        ("Modified residue_Phosphoserine", 0.9, 0.9, 0.005), ("Region_Disordered", 0.9, 0.0, 0.0),
        ("Disulfide bond", 0.7, 0.7, 0.01), ("Beta strand", 0.6, 0.3, 0.03),
        ("Region_Glycosylation hinge", 0.8, 0.8, 0.0), ("amino_acid_C", 1.0, 1.0, 0.0),
        ("Zinc finger_any", 0.4, 0.5, 0.01), ("Coiled coil", 0.2, 0.3, 0.04),
    ]  # fmt: skip
    found = []
    for shard, values in enumerate(labels):
        out = np.zeros((values.shape[0], len(plan) + 3), dtype=np.float32)
        for feature, (name, valid, test, noise) in enumerate(plan):
            if not name:
                continue
            inside = values[:, names.index(name)] > 0
            share = valid if shard in VALID else test
            on = rng.random(len(inside)) < np.where(inside, share, noise)
            # Validation has higher levels than test: the best threshold is another one there.
            levels = rng.integers(2 if shard in VALID else 0, len(LEVELS), len(inside))
            out[on, feature] = np.array(LEVELS, dtype=np.float32)[levels[on]]
        out[:, -3] = out[:, 0]  # a tie with the first feature, on everything
        # Two features that find all domains and nothing else, and only differ in plain F1.
        inside = values[:, names.index("Compositional bias_Basic residues")] > 0
        (starts,) = np.nonzero(inside & ~np.roll(inside, 1))
        out[starts, -2] = out[starts, -1] = out[starts + 1, -1] = 0.9
        found.append(out)
    return found


def real_activations(sequence: str) -> np.ndarray:
    """[L, 24] fp32 activations that are a formula of letter and position; about a third are above 0."""
    codes = np.array([ord(letter) for letter in sequence])[:, None]
    places, features = np.arange(len(sequence))[:, None], np.arange(REAL_FEATURES)
    raw = (codes * (features + 3) + places * (2 * features + 1) + places * places * (features % 4)) % 53
    return np.asarray(np.maximum(raw - 34, 0) / 18, dtype=np.float32)


def modules(clone: str) -> Any:
    """InterPLM's modules; what they import beyond this run is an empty stand-in."""
    sys.path.insert(0, clone)
    os.environ["INTERPLM_DATA"] = tempfile.mkdtemp()  # its import makes a folder in the home otherwise
    for name in ABSENT:
        if importlib.util.find_spec(name) is None:
            stand_in = types.ModuleType(name)
            stand_in.__getattr__ = lambda _: object  # type: ignore[method-assign]
            sys.modules[name] = stand_in
    prefix = "interplm.analysis.concepts"
    names = ("extract_annotations", "prepare_eval_set", "compare_activations", "calculate_f1", "report_metrics")
    found = {name: importlib.import_module(f"{prefix}.{name}") for name in (*names, "concept_constants")}
    found["dictionary"] = importlib.import_module("interplm.sae.dictionary")
    return types.SimpleNamespace(**found)


def labelled(theirs: Any, table: pd.DataFrame, folder: Path, num_shards: int, min_instances: int) -> list[pd.DataFrame]:
    """Run extraction; the proteins of each shard."""
    chosen = theirs.extract_annotations.preprocess_proteins(table, 1022)
    theirs.extract_annotations.shard_protein_data(chosen, folder, num_shards)
    options = theirs.extract_annotations.enumerate_protein_subcategories(chosen, min_instances)
    constants, shards = theirs.concept_constants, []
    # It stops at a shard where such a column is empty, as one of the two is of the real proteins.
    stretches = [name for name in constants.binary_meta_cols if name in table.columns]
    for shard in range(num_shards):
        path = folder / f"shard_{shard}" / "protein_data.tsv"
        theirs.extract_annotations.convert_shard_to_amino_acid_features(
            shard, path, folder, options, stretches, constants.paired_binary_cols
        )
        shards.append(pd.read_csv(path, sep="\t"))
    return shards


def scored(theirs: Any, folder: Path, activations: list[np.ndarray], settings: Any, valid: Any, test: Any) -> Any:
    """Run everything from the labels on, by both of its ways to count; tables and what it prints."""
    theirs.prepare_eval_set.make_eval_subset(folder, valid, test, settings["min_aa"], settings["min_domains"])
    (folder / "ae_normalized.pt").touch()
    compare = theirs.compare_activations
    compare.load_sae = lambda **_: theirs.dictionary.IdentityDict(activations[0].shape[1])
    compare.load_shard_embeddings = lambda _, shard, **__: torch.tensor(activations[shard])
    tables: dict[str, Any] = {}
    for name in ("valid", "test"):
        for is_sparse in (True, False):
            results = folder / f"results_{name}_{is_sparse}"
            compare.analyze_all_shards_in_set(folder, folder, folder / name, results, THRESHOLDS, is_sparse)
            theirs.calculate_f1.combine_metrics_across_shards(results, folder / name, THRESHOLDS)
        ways = [(folder / f"results_{name}_{way}" / "concept_f1_scores.csv") for way in (True, False)]
        assert ways[0].read_bytes() == ways[1].read_bytes(), "its sparse and its dense way differ"
        tables[name] = pd.read_csv(ways[0], float_precision="round_trip")
    paths = [folder / f"results_{name}_True" / "concept_f1_scores.csv" for name in ("valid", "test")]
    printed = Path(folder / "printed.txt")
    with printed.open("w") as stream, contextlib.redirect_stdout(stream):
        theirs.report_metrics.report_metrics(*paths, settings["bound"])
    tables["best"] = pd.read_csv(
        paths[1].parent / "heldout_top_pairings.csv", index_col=0, float_precision="round_trip"
    )
    tables["pairs"] = pd.read_csv(paths[1].parent / "heldout_all_top_pairings.csv", float_precision="round_trip")
    meta = {name: json.loads((folder / name / "metadata.json").read_text()) for name in ("valid", "test")}
    names = (folder / "valid" / "aa_concepts_columns.txt").read_text().split("\n")
    frames = theirs.report_metrics
    average = frames.find_top_heldout_feat_per_concept(*(pd.read_csv(path) for path in paths))["f1_per_domain"].mean()
    return {
        "concepts": names,
        **{
            f"num_{kind}_{name}": meta[name][f"n_positive_{kind}_per_concept"]
            for kind in ("aa", "domains")
            for name in ("valid", "test")
        },
        "average_best_f1": float(average),
        "printed": printed.read_text().split("\n")[-4:-1],
        "tables": tables,
    }


def rows_of(table: pd.DataFrame, names: list[str]) -> list[list[Any]]:
    """Rows of a table of scores without what follows from the others."""
    columns = ["feature", "threshold_pct", "tp", "fp", "tp_per_domain", "f1", "f1_per_domain"]
    return [[names.index(row.concept), *(getattr(row, name) for name in columns)] for row in table.itertuples()]


def sums_of(table: pd.DataFrame, names: list[str]) -> dict[str, float]:
    """Each column of a table weighted by a cosine of concept, feature and threshold, and its number of rows."""
    keys = [names.index(row.concept) * 1.7 + row.feature * 0.37 + row.threshold_pct * 3.1 for row in table.itertuples()]
    weights = np.cos(np.array(keys))
    numbers = ("precision", "recall", "recall_per_domain", "f1", "f1_per_domain", "tp", "fp", "tp_per_domain")
    return {"rows": len(table)} | {name: math.fsum(weights * table[name].to_numpy()) for name in numbers}


def made_up(theirs: Any) -> dict[str, Any]:
    """All numbers of the made-up proteins."""
    constants = theirs.concept_constants
    columns = [name for name, _, _ in constants.categorical_concepts]
    table = made_up_table(columns + constants.binary_meta_cols + constants.paired_binary_cols)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table.to_csv(folder / "table.tsv", sep="\t", index=False)
        shards = labelled(
            theirs, pd.read_csv(folder / "table.tsv", sep="\t"), folder, NUM_SHARDS, MADE_UP["min_required_instances"]
        )
        names = (folder / "uniprotkb_aa_concepts_columns.txt").read_text().split("\n")
        labels = [
            sparse.load_npz(folder / f"shard_{shard}" / "aa_concepts.npz").toarray() for shard in range(NUM_SHARDS)
        ]
        activations = made_up_activations(labels, names)
        found = scored(theirs, folder, activations, MADE_UP, VALID, TEST)
    tables = found.pop("tables")
    marks = []
    for values in labels:
        at = np.arange(1, len(values) + 1)
        marks.append({name: [int((of > 0).sum()), int(of.max()), int((of * at).sum())]
                      for name, of in zip(names, values.T.astype(int)) if of.any()})  # fmt: skip
    return {
        "settings": MADE_UP,
        "columns": sorted(names),
        "table": {name: [None if pd.isna(cell) else cell for cell in table[name]] for name in table.columns},
        "shards": [shard["Entry"].tolist() for shard in shards],
        "labels": marks,
        "num_features": activations[0].shape[1],
        # Per shard and feature, residue and level of what is above 0.
        "activations": [
            [[[int(row), LEVELS.index(round(float(of[row]), 2))] for row in np.flatnonzero(of)] for of in values.T]
            for values in activations
        ],
        "levels": LEVELS,
        **found,
        **{name: rows_of(of, found["concepts"]) for name, of in tables.items()},
    }


def real(theirs: Any, path: str) -> dict[str, Any]:
    """Sums over the scores of real proteins, and the reported tables."""
    table = pd.read_csv(path, sep="\t").drop(columns=list(EMPTY))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = labelled(theirs, table, folder, 2, REAL["min_required_instances"])
        activations = [np.concatenate([real_activations(one) for one in shard["Sequence"]]) for shard in shards]
        found = scored(theirs, folder, activations, REAL, (0, 0), (1, 1))
    tables = found.pop("tables")
    return {
        "settings": REAL,
        "num_proteins": [len(shard) for shard in shards],
        **found,
        **{name: sums_of(tables[name], found["concepts"]) for name in ("valid", "test")},
        **{name: rows_of(tables[name], found["concepts"]) for name in ("best", "pairs")},
    }


def main() -> int:
    """Run both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interplm", required=True, help="clone of InterPLM at commit 5f4cbf9")
    parser.add_argument("--real", required=True, help="tests/fixtures/swissprot_tiny.tsv.gz")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        theirs = modules(args.interplm)
        found = {"made_up": made_up(theirs), "real": real(theirs, args.real)}
    print(json.dumps(found, separators=(",", ":"), sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
