"""Five fields of cron: what is refused, what Kubeflow gets, and when they come round."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plmsae.cluster.cron import parse_cron
from tests.cluster.kfp_server import check_trigger

MOMENT = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)  # a Saturday


@pytest.mark.parametrize(
    ("text", "six"),
    [
        ("30 3 * * 0", "0 30 3 * * 0"),
        ("30 3 * * sun", "0 30 3 * * 0"),
        ("30 3 * * 7", "0 30 3 * * 0"),
        ("0 2 1 * *", "0 0 2 1 * *"),
        ("*/15 * * * *", "0 */15 * * * *"),
        ("0 8-18/5 * * MON-fri", "0 0 8,13,18 * * 1,2,3,4,5"),
        ("5,35 0 1 jan,jul *", "0 5,35 0 1 1,7 *"),
        ("0 0 * * fri-7", "0 0 0 * * 0,5,6"),
        ("  0   0 1-3 2 *", "0 0 0 1,2,3 2 *"),
    ],
)
def test_kubeflow_gets_six_fields_that_it_reads(text: str, six: str) -> None:
    assert parse_cron(text).six_fields == six
    check_trigger({"cron_schedule": {"cron": six}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 30 3 * * 0", "has five fields .*, not 6"),
        ("30 3 * *", "not 4"),
        ("@weekly", "not 1"),
        ("", "not 0"),
        ("60 3 * * *", "minute 60 is not in 0-59"),
        ("0 24 * * *", "hour 24 is not in 0-23"),
        ("0 0 0 * *", "day of month 0 is not in 1-31"),
        ("0 0 1 13 *", "month 13 is not in 1-12"),
        ("0 0 * * 8", "day of week 8 is not in 0-7"),
        ("0 0 * * sonntag", "day of week 'sonntag' is no number and no name like 'mon'"),
        ("0 0 * febr *", "no name like 'feb'"),
        ("x 0 * * *", "minute 'x' is no number$"),
        ("-1 0 * * *", "minute '' is no number"),
        ("² 0 * * *", "is no number"),
        ("0 0 ? * *", "day of month '\\?' is no number"),
        ("0 0 L * *", "is no number"),
        ("*/0 * * * *", "a step is a number from 1"),
        ("*/x * * * *", "a step is a number from 1"),
        ("5/15 * * * *", "write the range of the step, 5-59/15"),
        ("0 0 * * fri-mon", "the range ends before it begins"),
        ("*,5 * * * *", "a list holds no '\\*'"),
        ("1,,2 * * * *", "minute '' is no number"),
        ("0 0 30 2 *", "never comes round"),
        ("0 0 31 4,6,9,11 *", "never comes round"),
    ],
)
def test_what_is_no_schedule_says_why(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_cron(text)


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("30 3 * * 0", "2026-11-22 03:30"),
        ("30 3 * * sat", "2026-11-28 03:30"),  # not the very minute that it is
        ("31 3 * * sat", "2026-11-21 03:31"),
        ("0 2 1 * *", "2026-12-01 02:00"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
        ("59 23 31 12 *", "2026-12-31 23:59"),
        ("0 0 13 * fri", "2026-11-27 00:00"),  # either kind of day will do: the 27th is a Friday
        ("0 0 */2 * mon", "2026-11-23 00:00"),  # with a star both must: an odd Monday
    ],
)
def test_when_it_comes_round(text: str, following: str) -> None:
    found = parse_cron(text).next_after(MOMENT)
    assert found is not None
    assert found.strftime("%Y-%m-%d %H:%M") == following
    assert parse_cron(text).next_after(MOMENT.astimezone()) == found


def test_a_leap_day_after_a_century_without_one() -> None:
    assert parse_cron("0 0 29 2 *").next_after(datetime(2096, 3, 1, tzinfo=UTC)) == datetime(2104, 2, 29, tzinfo=UTC)


@settings(max_examples=30)
@given(st.frozensets(st.integers(0, 59), min_size=1), st.frozensets(st.integers(0, 23), min_size=1), st.integers(0, 6))
def test_no_minute_is_left_out(minutes: frozenset[int], hours: frozenset[int], weekday: int) -> None:
    """Against every minute of the week, one after the other."""
    cron = parse_cron(f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * {weekday}")
    expected = MOMENT + timedelta(minutes=1)
    while not (expected.minute in minutes and expected.hour in hours and (expected.weekday() + 1) % 7 == weekday):
        expected += timedelta(minutes=1)
    assert cron.next_after(MOMENT) == expected
