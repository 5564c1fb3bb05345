"""Five fields of cron, in UTC: checked, spelled for Kubeflow, and when they come round next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import product

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# 29 February comes after at most eight years (1896, 1904).
_LONGEST_DAYS = 8 * 366


@dataclass(frozen=True)
class Field:
    """One field: what it is called, its smallest and largest number, and names of numbers."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def values(self, text: str) -> frozenset[int]:
        """The numbers that a text names.

        Raises:
            ValueError: It is not written as a field of cron, or a number is out of range.
        """
        items = text.split(",")
        if len(items) > 1 and any(item.startswith("*") for item in items):
            raise ValueError(f"{self.name} '{text}': a list holds no '*'")
        return frozenset().union(*(self._range(item) for item in items))

    def _range(self, text: str) -> range:
        span, slash, step = text.partition("/")
        if slash and not (step.isdecimal() and int(step) >= 1):
            raise ValueError(f"{self.name} '{text}': a step is a number from 1")
        if span == "*":
            low, high = self.low, self.high
        else:
            first, dash, last = span.partition("-")
            low = self._number(first)
            high = self._number(last) if dash else low
            if slash and not dash:
                # Some programs read it as `3-59/5`, others as `3`.
                raise ValueError(f"{self.name} '{text}': write the range of the step, {span}-{self.high}/{step}")
            if low > high:
                raise ValueError(f"{self.name} '{text}': the range ends before it begins")
        return range(low, high + 1, int(step) if slash else 1)

    def _number(self, text: str) -> int:
        if text.lower() in self.names:
            return self.low + self.names.index(text.lower())
        if not (text.isascii() and text.isdecimal()):
            or_name = f" and no name like '{self.names[1]}'" if self.names else ""
            raise ValueError(f"{self.name} '{text}' is no number{or_name}")
        if not self.low <= int(text) <= self.high:
            raise ValueError(f"{self.name} {text} is not in {self.low}-{self.high}")
        return int(text)


# 7 is Sunday too.
FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, _MONTHS),
    Field("day of week", 0, 7, _DAYS),
)


@dataclass(frozen=True)
class Cron:
    """A schedule of five fields, from `parse_cron`.

    Attributes:
        texts: The fields as they were written.
        values: The numbers of each; days of the week are 0 to 6 from Sunday.
    """

    texts: tuple[str, ...]
    values: tuple[frozenset[int], ...]

    @property
    def six_fields(self) -> str:
        """As Kubeflow Pipelines reads it: seconds first, no names, Sunday as 0.

        Its parser (robfig/cron 1) takes five fields for seconds to months. A field with a star stays as it is, since
        the star decides how the two kinds of days go together.
        """
        plain = [
            text if text.startswith("*") else ",".join(map(str, sorted(values)))
            for text, values in zip(self.texts, self.values, strict=True)
        ]
        return " ".join(["0", *plain])

    def next_after(self, moment: datetime) -> datetime | None:
        """The first minute after `moment` that the schedule names; None if there is none (30 February)."""
        first = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        times = list(product(sorted(self.values[1]), sorted(self.values[0])))
        for days in range(_LONGEST_DAYS + 1):
            day = first.date() + timedelta(days)
            if not self._names(day):
                continue
            for hour, minute in times:
                found = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
                if found >= first:
                    return found
        return None

    def _names(self, day: date) -> bool:
        """Whether a day is meant: with both kinds of days restricted, either will do, as in every cron."""
        of_month, of_week = day.day in self.values[2], day.isoweekday() % 7 in self.values[4]
        starred = any(self.texts[index].startswith("*") for index in (2, 4))
        return day.month in self.values[3] and (of_month and of_week if starred else of_month or of_week)


def parse_cron(text: str) -> Cron:
    """Parse `MINUTE HOUR DAY MONTH WEEKDAY`: `*`, numbers, names of months and days, ranges, steps, lists.

    Raises:
        ValueError: It is none, or never comes round.
    """
    texts = tuple(text.split())
    if len(texts) != len(FIELDS):
        raise ValueError(
            f"cron has five fields (minute, hour, day of month, month, day of week), not {len(texts)}, "
            "e.g. '30 3 * * sun'"
        )
    values = [field.values(part) for field, part in zip(FIELDS, texts, strict=True)]
    values[4] = frozenset(day % 7 for day in values[4])
    cron = Cron(texts, tuple(values))
    if cron.next_after(datetime(2000, 1, 1, tzinfo=UTC)) is None:
        raise ValueError(f"'{text}' never comes round: no such day")
    return cron
