"""Feature types in UniProt's three formats: column of the REST TSV, key in cells and flat text, name in JSON."""

from __future__ import annotations

# Column of the TSV -> feature key that stands in its cells (https://www.uniprot.org/help/return_fields).
FEATURE_KEYS: dict[str, str] = {
    "Active site": "ACT_SITE",
    "Alternative sequence": "VAR_SEQ",
    "Beta strand": "STRAND",
    "Binding site": "BINDING",
    "Calcium binding": "CA_BIND",
    "Chain": "CHAIN",
    "Coiled coil": "COILED",
    "Compositional bias": "COMPBIAS",
    "Cross-link": "CROSSLNK",
    "DNA binding": "DNA_BIND",
    "Disulfide bond": "DISULFID",
    "Domain [FT]": "DOMAIN",
    "Glycosylation": "CARBOHYD",
    "Helix": "HELIX",
    "Initiator methionine": "INIT_MET",
    "Intramembrane": "INTRAMEM",
    "Lipidation": "LIPID",
    "Metal binding": "METAL",
    "Modified residue": "MOD_RES",
    "Motif": "MOTIF",
    "Mutagenesis": "MUTAGEN",
    "Natural variant": "VARIANT",
    "Non-adjacent residues": "NON_CONS",
    "Non-standard residue": "NON_STD",
    "Non-terminal residue": "NON_TER",
    "Nucleotide binding": "NP_BIND",
    "Peptide": "PEPTIDE",
    "Propeptide": "PROPEP",
    "Region": "REGION",
    "Repeat": "REPEAT",
    "Sequence conflict": "CONFLICT",
    "Sequence uncertainty": "UNSURE",
    "Signal peptide": "SIGNAL",
    "Site": "SITE",
    "Topological domain": "TOPO_DOM",
    "Transit peptide": "TRANSIT",
    "Transmembrane": "TRANSMEM",
    "Turn": "TURN",
    "Zinc finger": "ZN_FING",
}

TYPES: dict[str, str] = {column: column.removesuffix(" [FT]") for column in FEATURE_KEYS}
"""Column of the TSV -> canonical type name: the column without ` [FT]`."""

PAIR_TYPES = frozenset({"Disulfide bond", "Cross-link"})
"""Types whose range names two linked residues, `start` and `end - 1`, and not the stretch between them."""

BOOKKEEPING_TYPES = frozenset(
    {
        "Alternative sequence",
        "Chain",
        "Mutagenesis",
        "Natural variant",
        "Non-adjacent residues",
        "Non-terminal residue",
        "Sequence conflict",
        "Sequence uncertainty",
    }
)
"""Types that report on the entry or on experiments with it; alone they do not make a protein an annotated one."""

TYPE_OF_KEY: dict[str, str] = {key: TYPES[column] for column, key in FEATURE_KEYS.items()}
"""Key in the flat text -> canonical type name."""

KEY_OF_JSON: dict[str, str] = {
    **{TYPES[column]: key for column, key in FEATURE_KEYS.items() if key != "SIGNAL"},
    "Signal": "SIGNAL",
}
"""Feature type of the JSON -> key in the flat text; all but one name are the canonical ones."""
