"""Helices and strands from the positions of Cα atoms alone: P-SEA (Labesse et al. 1997, CABIOS 13, 291).

Around residue i four distances and angles are taken: d2, d3, d4 from i - 1 to i + 1, i + 2, i + 3, the angle tau of
i - 1, i, i + 1 and the dihedral alpha of i - 1 ... i + 2. A helix is at least five residues in a row with d3 and d4, or
tau and alpha, of an ideal helix; it grows by a residue at each end that has d3 or tau. A strand is at least four
residues with d2, d3 and d4, or tau and alpha, of an ideal strand, or three with five other Cα at 4.2 to 5.2 Å; it grows
by a residue at each end that has d3. Where both are found it is a strand. (Lengths and contacts as in biotite's
`annotate_sse`, which gives the same letters for chains without gaps.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Centre and half width: Å, and degrees.
_HELIX = {"d2": (5.5, 0.5), "d3": (5.3, 0.5), "d4": (6.4, 0.6), "tau": (89.0, 12.0), "alpha": (50.0, 20.0)}
_STRAND = {"d2": (6.7, 0.6), "d3": (9.9, 0.9), "d4": (12.4, 1.1), "tau": (124.0, 14.0), "alpha": (-170.0, 45.0)}
_SHORTEST_HELIX, _SHORTEST_STRAND, _SHORT_STRAND = 5, 4, 3
_CONTACT, _FEWEST_CONTACTS = (4.2, 5.2), 5


def assign_secondary_structure(ca: Floats, positions: NDArray[np.int64]) -> NDArray[np.str_]:
    """One letter per residue of a chain: `H` helix, `E` strand, `-` neither.

    Args:
        ca: [N, 3] Cα coordinates in Å.
        positions: [N] ascending positions in the sequence; nothing is measured across a gap.

    Returns:
        [N] letters.
    """
    found = np.full(len(ca), "-", dtype="<U1")
    measured = _measure(np.asarray(ca, dtype=np.float64), positions)
    segment = np.cumsum(np.diff(positions, prepend=positions[:1]) != 1)
    helix = _runs((_is("d3 d4", measured, _HELIX)) | _is("tau alpha", measured, _HELIX), segment, _SHORTEST_HELIX)
    helix = _grown(helix, _is("d3", measured, _HELIX) | _is("tau", measured, _HELIX), segment)
    strict = _is("d2 d3 d4", measured, _STRAND) | _is("tau alpha", measured, _STRAND)
    some = _runs(strict, segment, _SHORT_STRAND)
    strand = _runs(strict, segment, _SHORTEST_STRAND) | _in_contact(ca, some, segment)
    strand = _grown(strand, _is("d3", measured, _STRAND), segment)
    found[helix] = "H"
    found[strand] = "E"
    return found


def _measure(ca: Floats, positions: NDArray[np.int64]) -> dict[str, Floats]:
    """Distances and angles of every residue; NaN where one of the residues is not there."""
    padded = np.full((len(ca) + 4, 3), np.nan)
    padded[1 : len(ca) + 1] = ca
    place = np.full(len(ca) + 4, np.iinfo(np.int64).min // 2)
    place[1 : len(ca) + 1] = positions
    own = np.arange(1, len(ca) + 1)

    def at(step: int) -> Floats:
        present = place[own + step] == place[own] + step
        return np.asarray(np.where(present[:, None], padded[own + step], np.nan))

    before, here, after, second, third = (at(step) for step in (-1, 0, 1, 2, 3))
    first, middle, last = here - before, after - here, second - after
    with np.errstate(invalid="ignore"):
        cosine = (-first * middle).sum(axis=1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(middle, axis=1))
        normal_1, normal_2 = np.cross(first, middle), np.cross(middle, last)
        unit = middle / np.linalg.norm(middle, axis=1, keepdims=True)
        sine = (np.cross(normal_1, normal_2) * unit).sum(axis=1)
        alpha = np.degrees(np.arctan2(sine, (normal_1 * normal_2).sum(axis=1)))
    return {
        "d2": np.linalg.norm(after - before, axis=1),
        "d3": np.linalg.norm(second - before, axis=1),
        "d4": np.linalg.norm(third - before, axis=1),
        "tau": np.degrees(np.arccos(np.clip(cosine, -1, 1))),
        "alpha": alpha,
    }


def _is(names: str, measured: dict[str, Floats], ideal: dict[str, tuple[float, float]]) -> Bools:
    """Residues whose named measures are all those of the ideal."""
    inside = np.ones(len(measured["d2"]), dtype=bool)
    for name in names.split():
        centre, width = ideal[name]
        off = measured[name] - centre
        if name == "alpha":
            off = (off + 180.0) % 360.0 - 180.0
        inside &= np.abs(off) <= width  # NaN is not
    return inside


def _runs(mask: Bools, segment: NDArray[np.int64], shortest: int) -> Bools:
    """The mask without runs shorter than `shortest`."""
    run = _run_numbers(mask, segment)
    return mask & (np.bincount(run, minlength=len(mask) + 1)[run] >= shortest)


def _run_numbers(mask: Bools, segment: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the stretch of equal mask and segment that each residue is in."""
    if len(mask) == 0:
        return np.zeros(0, dtype=np.int64)
    change = (mask[1:] != mask[:-1]) | (segment[1:] != segment[:-1])
    return np.concatenate([[0], np.cumsum(change)]).astype(np.int64)


def _grown(mask: Bools, relaxed: Bools, segment: NDArray[np.int64]) -> Bools:
    """The mask with a relaxed residue more at each end of its runs."""
    beside = np.zeros(len(mask), dtype=bool)
    same = segment[1:] == segment[:-1]
    beside[1:] |= mask[:-1] & same
    beside[:-1] |= mask[1:] & same
    return mask | (beside & relaxed)


def _in_contact(ca: Floats, some: Bools, segment: NDArray[np.int64]) -> Bools:
    """Runs with enough other residues at the distance of a neighbouring strand."""
    members = np.flatnonzero(some)
    if len(members) == 0:
        return some
    run = _run_numbers(some, segment)[members]
    apart = np.linalg.norm(ca[members][:, None] - ca[None], axis=-1)
    contact = (apart >= _CONTACT[0]) & (apart <= _CONTACT[1])
    counts = np.bincount(run, weights=contact.sum(axis=1))
    found = np.zeros(len(some), dtype=bool)
    found[members] = counts[run] >= _FEWEST_CONTACTS
    return found
