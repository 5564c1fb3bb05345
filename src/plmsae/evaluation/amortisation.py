"""The amortisation gap: how far an encoder's codes are from the best codes for the same decoder.

Atoms are brought to unit norm and latents multiplied by the norm they lose, which changes no reconstruction; targets
are x - b_dec; codes are >= 0. Two comparisons, because an encoder is judged by objective or by sparsity:

Equal lambda. F(z) = 1/2 ||x - b_dec - D z||^2 + lambda sum_i z_i, of the encoder's codes and of the optimum, which
FISTA finds to a stated duality gap. Shares are ratios of means over tokens:

    excess     (F_encoder - F_optimum) / F_optimum, 0 for a perfect encoder
    attained   (F(0) - F_encoder) / (F(0) - F_optimum), 1 for a perfect encoder, 0 for one that is silent

An SAE trained with mean ||x - x^||^2 + penalty sum_i z_i has lambda = penalty / 2 (`sparse_coding`), times the scale
of its normaliser if that is folded. One without a penalty has no lambda of its own: by default the one is taken at
which the optimum is as sparse as the encoder, on average (mean L0).

Equal L0. Every token keeps as many atoms as its encoder uses, s_t. Atoms chosen by the encoder and atoms chosen by
orthogonal matching pursuit are refitted alike, by least squares on the support, so that only the choice is compared.
Finding the best s_t atoms is intractable, so the pursuit is a strong opponent but no bound: a negative gap says
that the encoder chose better than it. Coefficients may turn negative in the refit; their share is reported.

FVU is sum ||x - x^||^2 / sum ||x - mu||^2 over the tokens given, mu their mean. Where the SAE's normaliser works per
token, all of this is about the standardised tokens: that is the problem its encoder solves. The stage takes a seeded
sample of the residues of test proteins; intervals are percentile bootstraps over proteins, with lambda held fixed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from plmsae.evaluation.amortisation_figure import draw
from plmsae.evaluation.bootstrap import Floats, Interval, group_sums, intervals
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.residue_sample import ResidueSample, sample_residues
from plmsae.evaluation.token_gaps import TokenGaps, token_gaps
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig

_MEANS = ("certificate", "objective_zero", "objective_encoder", "objective_optimum")
_COUNTS = ("l0_encoder", "l0_optimum", "l0_pursuit")
CODES = ("encoder", "optimum", "encoder_refit", "optimum_refit", "pursuit")


@dataclass(frozen=True)
class AmortisationGap:
    """Means over tokens; see the module docstring. Objectives are in squared units of x.

    Attributes:
        num_tokens: N.
        penalty: lambda, for unit atoms and half the squared error.
        num_unconverged: Tokens whose optimum did not reach the tolerance.
        certificate: Mean duality gap: the true optimum lies at most this far below `objective_optimum`.
        objective_zero: F(0), half the mean squared norm of the targets.
        objective_encoder: F of the encoder's codes.
        objective_optimum: F of the optimum.
        l0_encoder: Atoms per token that the encoder uses.
        l0_optimum: Atoms per token in the optimum.
        l0_pursuit: Atoms per token that the pursuit took: `l0_encoder`, or less where it had nothing left to explain.
        fvu_encoder: FVU of the SAE as it is.
        fvu_optimum: FVU of the optimum; the penalty shrinks its codes.
        fvu_encoder_refit: FVU of least squares on the encoder's atoms.
        fvu_optimum_refit: FVU of least squares on the optimum's atoms.
        fvu_pursuit: FVU of least squares on the pursuit's atoms.
        negative_encoder: Share of the encoder's atoms whose refitted coefficient is negative.
        negative_pursuit: The same for the pursuit's atoms.
        excess: (F_encoder - F_optimum) / F_optimum.
        attained: (F(0) - F_encoder) / (F(0) - F_optimum); 0 where the optimum is silent too.
        fvu_gap: `fvu_encoder_refit` - `fvu_pursuit`: what the encoder's choice of atoms costs at equal L0.
    """

    num_tokens: int
    penalty: float
    num_unconverged: int
    certificate: float
    objective_zero: float
    objective_encoder: float
    objective_optimum: float
    l0_encoder: float
    l0_optimum: float
    l0_pursuit: float
    fvu_encoder: float
    fvu_optimum: float
    fvu_encoder_refit: float
    fvu_optimum_refit: float
    fvu_pursuit: float
    negative_encoder: float
    negative_pursuit: float
    excess: float
    attained: float
    fvu_gap: float

    def metrics(self) -> dict[str, float | int]:
        """All numbers, flat."""
        return dataclasses.asdict(self)


@torch.no_grad()
def amortisation_gap(
    sae: SparseAutoencoder,
    x: Tensor,
    *,
    penalty: float | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 5000,
    threads: int = 1,
) -> AmortisationGap:
    """Compare an SAE's encoder with sparse coding on its own decoder.

    Args:
        sae: Any architecture, baselines included.
        x: Activations as the SAE takes them, [N, d].
        penalty: lambda; if not given, the one at which the optimum's mean L0 is the encoder's (within 1 %, where there
            is such a one above 1e-4 of the largest correlation), measured on at most 64 tokens spread over x.
        tolerance: Relative duality gap of the optimum, a share of F(0) of each token.
        max_iterations: The most FISTA steps per token.
        threads: Blocks of tokens that are solved at once, on one core each; the numbers do not depend on it.

    Raises:
        UserError: x is of another width or empty, or an argument is out of range.
        DataError: x holds NaN or infinity or does not vary, or the encoder fires on none of it.
    """
    gaps = token_gaps(sae, x, penalty=penalty, tolerance=tolerance, max_iterations=max_iterations, threads=threads)
    sums = _sums(gaps).sum(0, keepdims=True)
    found = {name: float(value[0]) for name, value in _quantities(sums, list(gaps.values)).items()}
    num_unconverged = int(gaps.values["unconverged"].sum())
    return AmortisationGap(num_tokens=len(x), penalty=gaps.penalty, num_unconverged=num_unconverged, **found)


def _sums(gaps: TokenGaps) -> Floats:
    """[N, columns] whose sums over tokens determine every number: a one, ||x||^2, the values, and x itself.

    x is taken about its mean, so that the sums of squares do not cancel.
    """
    centred = gaps.x.double() - gaps.x.double().mean(0)
    ones = torch.ones(len(centred), dtype=torch.float64)
    columns = [ones, centred.square().sum(1), *gaps.values.values()]
    return torch.cat([torch.stack(columns, dim=1), centred], dim=1).numpy()


def _quantities(sums: Floats, names: list[str]) -> dict[str, Floats]:
    """Every number from sums [samples, columns] (`_sums`)."""
    count, square = sums[:, 0], sums[:, 1]
    total = {name: sums[:, 2 + place] for place, name in enumerate(names)}
    variation = square - np.square(sums[:, 2 + len(names) :]).sum(1) / count
    found = {name: total[name] / count for name in (*_MEANS, *_COUNTS)}
    found |= {f"fvu_{code}": total[f"error_{code}"] / variation for code in CODES}
    for name in ("encoder", "pursuit"):
        found[f"negative_{name}"] = total[f"negative_{name}"] / np.maximum(total[f"l0_{name}"], 1.0)
    possible = found["objective_zero"] - found["objective_optimum"]
    attained = found["objective_zero"] - found["objective_encoder"]
    found["excess"] = found["objective_encoder"] / found["objective_optimum"] - 1
    found["attained"] = np.where(possible > 0, attained / np.where(possible > 0, possible, 1.0), 0.0)
    found["fvu_gap"] = found["fvu_encoder_refit"] - found["fvu_pursuit"]
    return found


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    max_proteins: int | None,
    num_tokens: int,
    penalty: float | None,
    tolerance: float,
    max_iterations: int,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Measure the gap on residues of test proteins.

    Args:
        inputs: Proteins, SAE and model.
        output: Folder that gets `per_token.parquet`, `amortisation.csv`, `table.csv` and the figure.
        max_proteins: A seeded subset of this many test proteins; None for all.
        num_tokens: Residues, sampled from all of the subset's.
        penalty: See `amortisation_gap`.
        tolerance: See `amortisation_gap`.
        max_iterations: See `amortisation_gap`.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, sample and bootstrap.
    """
    sample = sample_residues(
        inputs, max_proteins=max_proteins, num_tokens=num_tokens, max_tokens=max_tokens, threads=threads, seed=seed
    )
    gaps = token_gaps(
        inputs.sae, sample.x, penalty=penalty, tolerance=tolerance, max_iterations=max_iterations, threads=threads
    )
    owners = np.asarray(pd.factorize(sample.table["accession"], sort=True)[0], dtype=np.int64)
    names = list(gaps.values)
    found = intervals(
        group_sums(_sums(gaps), owners),
        lambda sums: _quantities(sums, names),
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )
    per_token = sample.table.assign(**{name: value.numpy() for name, value in gaps.values.items()})
    per_token = per_token.assign(unconverged=per_token["unconverged"] > 0)
    per_token.to_parquet(output / "per_token.parquet", index=False)
    table = pd.DataFrame([(name, each.value, each.low, each.high) for name, each in found.items()])
    table.columns = pd.Index(["quantity", "value", "low", "high"])
    table.to_csv(output / "amortisation.csv", index=False, float_format="%.6g", lineterminator="\n")
    _readable(found).to_csv(output / "table.csv", index=False, lineterminator="\n")
    draw(gaps, found, confidence, output / "figures" / "amortisation.png")
    metrics: dict[str, float | int] = {
        "num_tokens": len(sample.x),
        "num_proteins": int(owners.max()) + 1,
        "num_unconverged": int(gaps.values["unconverged"].sum()),
        "penalty": gaps.penalty,
    }
    for name, each in found.items():
        metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = each.value, each.low, each.high
    return Outcome(metrics, _summary(metrics, found, sample, penalty is None, inputs.sae.config, confidence))


def _readable(found: dict[str, Interval]) -> pd.DataFrame:
    """The table of the report: one row per code."""
    labels = {
        "encoder": "the encoder's code",
        "optimum": "optimum at equal lambda",
        "encoder_refit": "encoder's atoms, refitted",
        "optimum_refit": "optimum's atoms, refitted",
        "pursuit": "matching pursuit, refitted",
    }
    rows = []
    for code in CODES:
        objective = found[f"objective_{code}"].short(1) if f"objective_{code}" in found else ""
        l0 = found[f"l0_{code.removesuffix('_refit')}"].short(1)
        rows.append((labels[code], l0, found[f"fvu_{code}"].short(4), objective))
    return pd.DataFrame(rows, columns=["code", "atoms per residue", "FVU", "objective"])


def _summary(
    metrics: dict[str, float | int],
    found: dict[str, Interval],
    sample: ResidueSample,
    matched: bool,
    config: SaeConfig,
    confidence: float,
) -> str:
    how = "at which the optimum is as sparse as the encoder" if matched else "as given"
    gap = found["fvu_gap"]
    if gap.low > 0:
        verdict = "the pursuit chooses better atoms than the encoder"
    elif gap.high < 0:
        verdict = "the encoder chooses better atoms than the pursuit, which is greedy and no bound"
    else:
        verdict = "the two choices do not differ beyond the interval"
    short = f" {metrics['num_unconverged']:,} of them did not reach the duality gap." * (metrics["num_unconverged"] > 0)
    return (
        f"On {metrics['num_tokens']:,} residues of {metrics['num_proteins']:,} test proteins (a sample of "
        f"{sample.num_residues:,}) the {config.architecture} encoder is compared with sparse coding on its own "
        f"decoder.{short} At equal lambda ({metrics['penalty']:.4g}, {how}) its objective is "
        f"{100 * found['excess'].value:.1f} % [{100 * found['excess'].low:.1f}, {100 * found['excess'].high:.1f}] "
        f"above the optimum, and it attains {100 * found['attained'].value:.1f} % "
        f"[{100 * found['attained'].low:.1f}, {100 * found['attained'].high:.1f}] of the decrease that is possible. At "
        f"equal L0 ({found['l0_encoder'].value:.1f} atoms per residue), both refitted by least squares, the FVU is "
        f"{found['fvu_encoder_refit'].text(4)} on the encoder's atoms and {found['fvu_pursuit'].text(4)} on those of "
        f"orthogonal matching pursuit; the gap is {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]: {verdict}. The "
        f"SAE as it is has {found['fvu_encoder'].text(4)}. Brackets: {confidence:.0%} bootstrap intervals over "
        "proteins."
    )
