import math
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.constraints import unit_rows_
from plmsae.saes.sparse_coding import Method, Solution, lipschitz_bound, objective, soft_threshold, sparse_code

methods = pytest.mark.parametrize("method", ["ista", "fista"])
forms = pytest.mark.parametrize("nonnegative", [False, True])


def problem(num_tokens: int = 6, d: int = 10, n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Targets of norm about 1 and unit atoms."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n, d, generator=generator, dtype=torch.float64)
    unit_rows_(atoms)
    return torch.randn(num_tokens, d, generator=generator, dtype=torch.float64) / math.sqrt(d), atoms


@cache
def optimum(penalty: float, nonnegative: bool) -> Solution:
    """Of `problem()`, to a gap of about 1e-11."""
    return sparse_code(
        *problem(), penalty, nonnegative=nonnegative, tolerance=1e-11, max_iterations=100_000
    ).require_converged()


@methods
@forms
@pytest.mark.parametrize("penalty", [0.02, 0.2])
@pytest.mark.parametrize("warm", [False, True])
def test_the_bounds_of_beck_and_teboulle_hold_at_every_step(
    method: Method, nonnegative: bool, penalty: float, warm: bool
) -> None:
    x, atoms = problem()
    best = optimum(penalty, nonnegative)
    assert float(best.gap.max()) <= 1e-10
    start = torch.rand(6, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if warm else None
    run = sparse_code(
        x, atoms, penalty, method=method, nonnegative=nonnegative, tolerance=0.0, max_iterations=400,
        start=start, keep_history=True,
    )  # fmt: skip
    assert run.history is not None
    assert run.history.shape == (401, 6)
    k = torch.arange(1, 401, dtype=torch.float64).unsqueeze(1)
    distance = ((0.0 if start is None else start) - best.codes).square().sum(1)
    bound = {"ista": run.lipschitz * distance / (2 * k), "fista": 2 * run.lipschitz * distance / (k + 1) ** 2}[method]
    excess = run.history[1:] - (best.objective - best.gap)  # an upper bound of F_k - F*
    assert bool((excess <= bound + 1e-10).all())
    assert bool((excess >= -1e-12).all())
    if method == "ista":
        assert bool((run.history.diff(dim=0) <= 1e-12).all())  # ISTA descends at every step


@forms
def test_every_iterate_is_that_of_the_paper(nonnegative: bool) -> None:
    """Beck & Teboulle's (4.1)-(4.3) as they are written, one token at a time, beside the batch with its savings."""
    x, atoms = problem(num_tokens=2)
    lipschitz, penalty = lipschitz_bound(atoms), 0.05
    for token in x:
        old, y, t = torch.zeros(30).double(), torch.zeros(30).double(), 1.0
        for step in range(1, 30):
            new = soft_threshold(
                y - atoms @ (atoms.T @ y - token) / lipschitz, penalty / lipschitz, nonnegative=nonnegative
            )
            t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
            y, old, t = new + (t - 1) / t_next * (new - old), new, t_next
            ours = sparse_code(token[None], atoms, penalty, nonnegative=nonnegative, tolerance=0.0, max_iterations=step)
            torch.testing.assert_close(ours.codes[0], new, rtol=0, atol=1e-12)


def test_fista_needs_far_fewer_steps_than_ista() -> None:
    x, atoms = problem(d=16, n=48)
    most: dict[Method, int] = {}
    for method in get_args(Method):
        run = sparse_code(x, atoms, 0.02, method=method, tolerance=1e-3, max_iterations=20_000)
        most[method] = int(run.require_converged().iterations.max())
    assert 3 * most["fista"] < most["ista"], most


@forms
@pytest.mark.parametrize("penalty", [0.02, 0.1])
def test_the_optimum_is_that_of_scikit_learn(nonnegative: bool, penalty: float) -> None:
    x, atoms = problem(num_tokens=3)
    ours = sparse_code(x, atoms, penalty, nonnegative=nonnegative, tolerance=1e-12, max_iterations=200_000)
    for token, code in zip(x.numpy(), ours.require_converged().codes.numpy()):
        # scikit-learn divides the squared error by 2 n, where n counts equations: the d coordinates here.
        theirs = Lasso(
            alpha=penalty / len(token), fit_intercept=False, positive=nonnegative, tol=1e-12, max_iter=100_000
        )
        theirs.fit(atoms.numpy().T, token)
        np.testing.assert_allclose(code, theirs.coef_, atol=2e-5)
        if nonnegative:
            assert code.min() >= 0


@methods
def test_on_an_orthonormal_dictionary_the_optimum_is_one_soft_threshold(method: Method) -> None:
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    x, _ = problem(num_tokens=20, d=12)
    for penalty in (0.05, 0.3, 10.0):
        signed = sparse_code(x, basis, penalty, method=method, nonnegative=False, tolerance=1e-13)
        scores = x @ basis.T
        expected = scores.sign() * (scores.abs() - penalty).clamp_min(0)
        torch.testing.assert_close(signed.require_converged().codes, expected, atol=1e-6, rtol=0)
        positive = sparse_code(x, basis, penalty, method=method, tolerance=1e-13).require_converged().codes
        torch.testing.assert_close(positive, (scores - penalty).clamp_min(0), atol=1e-6, rtol=0)
    assert not bool(positive.any())  # no correlation reaches a penalty of 10


@forms
def test_the_two_conventions_differ_by_a_factor_of_two(nonnegative: bool) -> None:
    x, atoms = problem()
    half = sparse_code(x, atoms, 0.05, nonnegative=nonnegative, keep_history=True)
    full = sparse_code(x, atoms, 0.10, nonnegative=nonnegative, convention="full", keep_history=True)
    assert half.history is not None
    assert full.history is not None
    assert torch.equal(half.codes, full.codes)
    assert torch.equal(half.iterations, full.iterations)
    torch.testing.assert_close(full.objective, 2 * half.objective)
    torch.testing.assert_close(full.gap, 2 * half.gap)
    torch.testing.assert_close(full.history, 2 * half.history)
    written_out = (x - full.codes @ atoms).square().sum(1) + 0.10 * full.codes.abs().sum(1)
    torch.testing.assert_close(full.objective, written_out)
    torch.testing.assert_close(objective(x, atoms, full.codes, 0.10, convention="full"), written_out)
    torch.testing.assert_close(objective(x, atoms, half.codes, 0.05), half.objective)
    same_number = sparse_code(x, atoms, 0.10, nonnegative=nonnegative).codes
    assert float((same_number - full.codes).abs().max()) > 0.01


@methods
@given(
    seed=st.integers(0, 2**16),
    penalty=st.floats(0.02, 2.0),
    scale=st.floats(1e-3, 1e3),
    nonnegative=st.booleans(),
    steps=st.integers(0, 60),
)
@settings(deadline=None, max_examples=12)
def test_the_gap_bounds_the_distance_to_the_optimum_at_any_step(
    method: Method, seed: int, penalty: float, scale: float, nonnegative: bool, steps: int
) -> None:
    """Also: F decreases from z = 0, scaling x and lambda scales z, and the optimum satisfies the KKT conditions."""
    x, atoms = problem(num_tokens=3, d=6, n=14, seed=seed)
    best = sparse_code(x, atoms, penalty, nonnegative=nonnegative, tolerance=1e-8, max_iterations=100_000)
    best.require_converged()
    how: dict[str, Any] = {"method": method, "nonnegative": nonnegative, "tolerance": 0.0, "max_iterations": steps}
    run = sparse_code(x, atoms, penalty, **how)
    assert bool((run.gap >= run.objective - best.objective - 1e-12).all())
    assert bool((run.objective <= 0.5 * x.square().sum(1) + 1e-12).all())
    torch.testing.assert_close(run.objective, objective(x, atoms, run.codes, penalty))
    scaled = sparse_code(scale * x, atoms, scale * penalty, **how)
    # A token whose gap rounds to 0 stops; that is within the square root of the precision.
    torch.testing.assert_close(scaled.codes, scale * run.codes, rtol=1e-6, atol=1e-6 * scale)
    correlation = (x - best.codes @ atoms) @ atoms.T
    slack = 1e-3 * penalty + 2e-4  # a gap of 1e-9 leaves the residual within sqrt(2 gap)
    assert float((correlation if nonnegative else correlation.abs()).max()) <= penalty + slack
    active = best.codes.abs() > 1e-3
    torch.testing.assert_close(
        correlation[active], penalty * best.codes[active].sign(), rtol=0, atol=1e-3 * penalty + 1e-3
    )


def test_running_out_of_steps_is_said_and_still_bounded() -> None:
    x, atoms = problem()
    x[2] = 0.0  # optimal at the start
    short = sparse_code(x, atoms, 0.01, max_iterations=3)
    assert short.converged.tolist() == [False, False, True, False, False, False]
    assert short.iterations.tolist() == [3, 3, 0, 3, 3, 3]
    best = sparse_code(x, atoms, 0.01, tolerance=1e-9, max_iterations=100_000).require_converged()
    assert bool((short.objective - best.objective <= short.gap).all())
    with pytest.raises(DataError, match="5 of 6 tokens did not reach the duality gap within 3 iterations"):
        short.require_converged()


def test_a_token_has_the_same_code_alone_and_in_a_batch() -> None:
    x, atoms = problem()
    together = sparse_code(x, atoms, 0.03)
    assert len(set(together.iterations.tolist())) > 1  # tokens leave the batch at different steps
    for row in range(len(x)):
        alone = sparse_code(x[row : row + 1], atoms, 0.03)
        torch.testing.assert_close(alone.codes[0], together.codes[row], rtol=1e-9, atol=1e-12)
        assert int(alone.iterations[0]) == int(together.iterations[row])
    assert sparse_code(x[:0], atoms, 0.03).codes.shape == (0, 30)


def test_starting_at_the_optimum_takes_no_step() -> None:
    x, atoms = problem()
    best = sparse_code(x, atoms, 0.05, tolerance=1e-8)
    again = sparse_code(x, atoms, 0.05, tolerance=1e-7, start=best.codes)
    assert int(again.iterations.max()) == 0
    assert torch.equal(again.codes, best.codes)


@given(seed=st.integers(0, 2**16), n=st.integers(1, 40), d=st.integers(1, 40), tolerance=st.sampled_from([1e-4, 0.01]))
@settings(deadline=None, max_examples=60)
def test_the_step_is_safe_and_nearly_the_longest(seed: int, n: int, d: int, tolerance: float) -> None:
    atoms = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(atoms, 2)) ** 2
    assert exact <= lipschitz_bound(atoms, tolerance) <= (1 + tolerance) * exact


def test_the_step_of_dictionaries_that_mislead_a_power_iteration() -> None:
    # Equal largest singular values; rank one; an atom of zeros; sizes at the ends of the range.
    assert lipschitz_bound(torch.eye(7)) == pytest.approx(1.0, rel=0.011)
    assert lipschitz_bound(torch.ones(5, 3)) == pytest.approx(15.0, rel=0.011)
    assert lipschitz_bound(torch.tensor([[0.0, 0.0], [3e100, 4e100]], dtype=torch.float64)) == pytest.approx(
        25e200, rel=0.011
    )
    assert lipschitz_bound(torch.eye(3, dtype=torch.float64) * 1e-100) == pytest.approx(1e-200, rel=0.011)
    assert lipschitz_bound(torch.zeros(4, 3)) == 0.0
    with pytest.raises(DataError, match="too large to square"):
        lipschitz_bound(torch.full((2, 2), 1e200, dtype=torch.float64))
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        lipschitz_bound(torch.eye(3), tolerance=0.0)


@given(v=st.floats(-10, 10), threshold=st.floats(0, 5))
def test_the_soft_threshold_is_the_proximal_map(v: float, threshold: float) -> None:
    for nonnegative in (False, True):
        z = float(soft_threshold(torch.tensor(v, dtype=torch.float64), threshold, nonnegative=nonnegative))
        grid = np.append(np.linspace(0 if nonnegative else -12, 12, 2001), z)
        values = 0.5 * (grid - v) ** 2 + threshold * np.abs(grid)
        assert values[-1] <= values.min() + 1e-12


def test_half_precision_input_is_solved_in_double() -> None:
    x, atoms = problem()
    low = sparse_code(x.bfloat16(), atoms.float(), 0.05)
    assert low.codes.dtype == torch.float64
    torch.testing.assert_close(low.codes, sparse_code(x.bfloat16().double(), atoms.float().double(), 0.05).codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_targets_that_are_no_numbers_are_refused_by_row(value: float) -> None:
    x, atoms = problem()
    x[4, 3] = value
    with pytest.raises(DataError, match="1 of 6 targets") as error:
        sparse_code(x, atoms, 0.1)
    assert error.value.where == "row 4"


def test_bad_arguments_are_refused() -> None:
    x, atoms = problem()
    broken = atoms.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(DataError, match="atoms hold NaN"):
        sparse_code(x, broken, 0.1)
    with pytest.raises(UserError, match="atoms have width 10"):
        sparse_code(x[:, :9], atoms, 0.1)
    with pytest.raises(UserError, match="atoms have width 10"):
        sparse_code(x[0], atoms, 0.1)
    with pytest.raises(UserError, match=r"not \[n, d\]"):
        sparse_code(x, atoms[0], 0.1)
    for penalty in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="not a positive number"):
            sparse_code(x, atoms, penalty)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "lars"}, "unknown method"),
        ({"convention": "third"}, "unknown convention"),
        ({"tolerance": -1e-3}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"max_iterations": -1}, "max_iterations"),
        ({"max_iterations": 1.5}, "max_iterations"),
        ({"lipschitz": 0.0}, "lipschitz"),
        ({"start": torch.zeros(6, 29)}, "codes of shape"),
        ({"start": -torch.ones(6, 30)}, "negative codes"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            sparse_code(x, atoms, 0.1, **arguments)
    with pytest.raises(DataError, match="codes hold NaN"):
        sparse_code(x, atoms, 0.1, start=torch.full((6, 30), math.nan))
    with pytest.raises(UserError, match="some atom must differ from zero"):
        sparse_code(x, torch.zeros(3, 10), 0.1)
