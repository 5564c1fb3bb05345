"""Area under the precision-recall curve of one predictor per concept, streamed: counts by activation, no residues.

Average precision as in scikit-learn: sum (R_k - R_(k-1)) P_k over the distinct activations from above, ties together;
the residues on which a unit is silent are the last tie. Recall counts residues, whatever the concept's F1 counts.

Activations are compared at 12 significant bits (1 part in 4096): what differs by less differs by the rounding of sums
in another order. So there is a fixed number of levels, and memory does not grow with residues. Values are exact at
this precision. For intervals the levels are cut to eight per octave, whose counts per protein are resampled; the spread
of what they give, moved to lie about the value, is the interval. Beyond `MOST_GROUPS` proteins, random groups of equal
size are resampled in their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.binary_scores import ranking_scores
from plmsae.evaluation.bootstrap import Floats, resampled_sums
from plmsae.evaluation.residue_labels import Labels, Sparse
from plmsae.evaluation.residue_letters import LETTERS
from plmsae.evaluation.scores import NO_LATENT

Ints = NDArray[np.int64]
Codes = NDArray[np.int8]
MOST_GROUPS = 512
_DROPPED_BITS = 12  # of the 24 significant bits of fp32
_PER_OCTAVE = 1 << (23 - _DROPPED_BITS)
_OCTAVES = 16  # 2^-12 to 2^4 times a unit's largest activation on the reference set; what is outside is at the edge
_LOWEST = (127 - 12) * _PER_OCTAVE
NUM_LEVELS = 1 + _OCTAVES * _PER_OCTAVE  # the first is 0
_COARSE = _PER_OCTAVE // 8
_BELOW_COARSE = 5 * _PER_OCTAVE  # they begin at 2^-7 and go up to 2
_NUM_COARSE = 1 + 8 * 8
_CONCEPTS_AT_ONCE = 16


def levels_of(values: NDArray[np.float32]) -> Ints:
    """Level of activations [N], 0 for those that are not above 0."""
    bits = np.maximum(values, np.float32(0)).astype(np.float32).view(np.uint32).astype(np.int64)
    rounded = (bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS
    return np.where(values > 0, np.clip(rounded - _LOWEST + 1, 1, NUM_LEVELS - 1), 0)


def groups_of(owners: Ints, seed: int) -> Ints:
    """What is resampled: [num_rows] the protein of each row, or one of `MOST_GROUPS` groups of proteins."""
    num_proteins = int(owners.max(initial=-1)) + 1
    if num_proteins <= MOST_GROUPS:
        return owners
    return np.asarray(np.random.default_rng(seed).permutation(num_proteins)[owners] % MOST_GROUPS, dtype=np.int64)


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of C predictors.

    Attributes:
        values: [C]; what guessing gives, the share of labelled residues, for a predictor that never fires.
        samples: [num_resamples, C] in each resample; NaN where none of its residues is labelled.
    """

    values: Floats
    samples: Floats


class LevelCounter:
    """Counts the residues of a split by level of one unit per concept.

    Args:
        units: [C] unit of each concept, or `NO_LATENT`.
        groups: [num_rows] what each sequence is resampled with (`groups_of`).
    """

    def __init__(self, units: Ints, groups: Ints) -> None:
        self._units = units
        self._groups = groups
        self._num_groups = int(groups.max(initial=-1)) + 1
        # Unlabelled and labelled residues; level 0 is filled in at the end.
        self._fine = np.zeros((len(units), 2, NUM_LEVELS), dtype=np.int32)
        self._coarse = np.zeros((len(units), self._num_groups, 2, _NUM_COARSE), dtype=np.int32)

    def read(self, activations: Sparse, labels: Labels, first: int) -> tuple[Ints, Ints]:
        """What `add` takes of a batch; changes nothing, so that batches may be read at once.

        Args:
            activations: [R, n] CSR fp32, normalised.
            labels: Labels of the R residues.
            first: Number of the batch's first sequence in the split.

        Returns:
            Places of every activation of the units in the two tables of counts.
        """
        some = np.flatnonzero(self._units != NO_LATENT)
        chosen = activations[:, self._units[some]].tocoo()
        level = levels_of(chosen.data)
        on = level > 0
        level, concept, residue = level[on], some[chosen.col[on]], chosen.row[on]
        labelled = (labels.residues.toarray()[residue, concept] > 0).astype(np.int64)
        group = np.repeat(self._groups[first : first + labels.num_rows], np.diff(labels.row_starts))[residue]
        fine = (concept * 2 + labelled) * NUM_LEVELS + level
        blurred = np.clip((level - 1 - _BELOW_COARSE) // _COARSE + 1, 1, _NUM_COARSE - 1)
        coarse = ((concept * self._num_groups + group) * 2 + labelled) * _NUM_COARSE + blurred
        return fine, coarse

    def add(self, found: tuple[Ints, Ints]) -> None:
        """Bring what `read` found into the counts."""
        for table, places in zip((self._fine, self._coarse), found):
            np.add.at(table.reshape(-1), places, np.int32(1))

    def result(self, labels: Labels, num_resamples: int, seed: int) -> AveragePrecision:
        """Average precision on the split.

        Args:
            labels: Labels of all residues of the split.
            num_resamples: Bootstrap resamples.
            seed: Seed of the resamples.
        """
        totals = _totals(labels, self._groups, self._num_groups)  # [G, 2, C]
        self._coarse[..., 0] = totals.transpose(2, 0, 1) - self._coarse[..., 1:].sum(axis=-1)
        self._fine[..., 0] = totals.sum(axis=0).T - self._fine[..., 1:].sum(axis=-1)
        values = np.array([float(_average(levels)) for levels in self._fine])
        return _sampled(values, self._coarse, num_resamples, seed)


def letter_average_precision(
    valid: Labels, valid_codes: Codes, test: Labels, test_codes: Codes, groups: Ints, num_resamples: int, seed: int
) -> AveragePrecision:
    """Average precision on test of the residue's letter: its score is the share of labelled ones on validation.

    Args:
        valid: Labels of the validation residues.
        valid_codes: Their letters (`residue_letters.letter_codes`).
        test: Labels of the test residues.
        test_codes: Their letters.
        groups: [num_rows] what each test sequence is resampled with.
        num_resamples: Bootstrap resamples.
        seed: Seed of the resamples.
    """
    before = _by_letter(valid, valid_codes, np.zeros(valid.num_rows, dtype=np.int64), 1)[:, 0]  # [C, 2, 21]
    num_groups = int(groups.max(initial=-1)) + 1
    counts = _by_letter(test, test_codes, groups, num_groups)  # [C, G, 2, 21]
    share = before[:, 1] / np.maximum(before.sum(axis=1), 1)
    levels = np.zeros_like(counts)
    for concept, shares in enumerate(share):
        place = np.unique(shares, return_inverse=True)[1].reshape(-1)
        levels[concept] = counts[concept] @ np.eye(len(shares), dtype=np.int32)[place]
    return _sampled(_average(levels.sum(axis=1)), levels, num_resamples, seed)


def _by_letter(labels: Labels, codes: Codes, groups: Ints, num_groups: int) -> NDArray[np.int32]:
    """[C, G, 2, 21] unlabelled and labelled residues of each letter; the last is any other one."""
    width = len(LETTERS) + 1
    key = np.repeat((groups * width).astype(np.int32), np.diff(labels.row_starts))
    key += np.where(codes >= 0, codes, np.int8(len(LETTERS)))
    total = np.bincount(key, minlength=num_groups * width).reshape(num_groups, width)
    ones = np.ones(len(key), dtype=np.int32)
    pointers = np.arange(len(key) + 1, dtype=np.int32)
    indicator = sparse.csr_matrix((ones, key, pointers), shape=(len(key), num_groups * width))
    labelled = (indicator.T @ labels.residues).toarray().reshape(num_groups, width, -1).transpose(2, 0, 1)
    return np.stack([total - labelled, labelled], axis=2).astype(np.int32)


def _totals(labels: Labels, groups: Ints, num_groups: int) -> Ints:
    """[G, 2, C] unlabelled and labelled residues of each concept."""
    shape = (num_groups, len(groups))
    rows = sparse.csr_matrix((np.ones(len(groups), dtype=np.int64), (groups, np.arange(len(groups)))), shape=shape)
    labelled = rows @ labels.residues_per_row()
    return np.stack([(rows @ np.diff(labels.row_starts))[:, None] - labelled, labelled], axis=1)


def _average(counts: NDArray[np.integer] | Floats) -> Floats:
    """Average precision [...] from unlabelled and labelled residues [..., 2, levels], levels ascending."""
    counts = np.asarray(counts, dtype=np.float64)
    return ranking_scores(counts[..., 1, :], counts[..., 0, :])["average_precision"]


def _sampled(values: Floats, counts: NDArray[np.integer], num_resamples: int, seed: int) -> AveragePrecision:
    """Values [C] with those of resampled groups, from counts [C, G, 2, levels]."""
    samples = []
    for start in range(0, len(counts), _CONCEPTS_AT_ONCE):
        part = counts[start : start + _CONCEPTS_AT_ONCE].swapaxes(0, 1)
        drawn = _average(resampled_sums(part, num_resamples, seed))
        # What the levels blur, a little and alike in every resample, is taken off.
        drawn += values[start : start + _CONCEPTS_AT_ONCE] - _average(part.sum(axis=0))
        samples.append(np.clip(drawn, 0.0, 1.0))
    return AveragePrecision(values, np.concatenate(samples, axis=1))
