import pytest

from plmsae.training.schedules import annealed_k, default_learning_rate, warmup, warmup_decay


def test_warmup_plateau_and_decay_by_hand() -> None:
    factors = [warmup_decay(step, num_steps=10, warmup_steps=4, decay_steps=5) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_no_warmup_and_no_decay_is_constant() -> None:
    assert {warmup_decay(step, 7, 0, 0.0) for step in range(7)} == {1.0}


@pytest.mark.parametrize(("rise", "fall"), [(100, 20.0), (3, 0.2), (0, 20.0)])
def test_the_factor_is_never_zero_or_above_one(rise: int, fall: float) -> None:
    assert all(0 < warmup_decay(step, 20, rise, fall) <= 1 for step in range(20))


def test_a_warmup_from_zero_is_one_step_later() -> None:
    assert [warmup(step, 4, from_zero=True) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [warmup(step, 2.5, from_zero=True) for step in range(4)] == pytest.approx([0.0, 0.4, 0.8, 1.0])
    assert warmup_decay(0, 10, 4, 0.0, from_zero=True) == 0.0


def test_default_rate_halves_when_the_dictionary_grows_fourfold() -> None:
    assert default_learning_rate(2**14) == pytest.approx(2e-4)
    assert default_learning_rate(2**12) == pytest.approx(4e-4)


def test_the_penalty_rises_over_the_first_part_alone() -> None:
    factors = [warmup(step, 4) for step in range(40)]
    assert factors == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 37)
    assert {warmup(step, 0.0) for step in range(7)} == {1.0}
    assert warmup(0, 0.5) == 1.0  # shorter than a step


def test_k_falls_linearly_over_the_first_part_and_stays() -> None:
    values = [annealed_k(step, num_steps=20, k=8, start=48, fraction=0.25) for step in range(20)]
    assert values == [48, 40, 32, 24, 16] + [8] * 15
    assert {annealed_k(step, 20, 8, 48, 0.0) for step in range(20)} == {8}
    assert {annealed_k(step, 20, 8, 8, 0.5) for step in range(20)} == {8}
