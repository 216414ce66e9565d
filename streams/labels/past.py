"""What a served record says of its entity's past: whether a window can have given it.

Source: docs/design/journal.md, rule 20.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from millrace.learners.protocol import Floats
from millrace.streams.formats.meaning import RecordError
from millrace.streams.parts import sha256
from millrace.streams.schema import ALWAYS, LATEST_MS, Field, Schema

SLACK = 1e-6  # of the largest value that a field takes: keeps what rounding adds to a mean or a sum from being refused
Told = tuple[float | None, ...]


class PastCheck:
    """Refuses what no window of a schema's entity can have given; what another schema's fields were is not looked at."""

    def __init__(self, schema: Schema) -> None:
        self._own = ("", sha256(schema.declared))
        self._fields = schema.past
        by_name = {field.name: field for field in schema.fields}
        ends = [_ends(field, by_name[field.of]) for field in schema.past]
        self._low, self._high = (np.array([pair[side] for pair in ends], dtype=np.float64) for side in (0, 1))
        self._never_missing = np.array([field.as_ in ALWAYS for field in schema.past], dtype=bool)
        self._whole = np.array([field.as_ == "count" for field in schema.past], dtype=bool)

    def check(self, told: Sequence[tuple[str, Told]]) -> None:
        """Of each record that has a ``past`` the sha256 of the fields it was answered with, and that.

        Raises: RecordError with the first field that cannot be, "wrong-shape", "missing-field" or "out-of-range".
        """
        own = [past for features, past in told if features in self._own]
        if not own:
            return
        for past in own:
            if len(past) != len(self._fields):
                raise RecordError(
                    "wrong-shape", f"past has {len(past)} numbers, and {len(self._fields)} fields are of the past"
                )
        if not self._fields:
            return
        absent = np.array([[number is None for number in past] for past in own], dtype=bool)
        numbers = np.array([[0.0 if number is None else number for number in past] for past in own], dtype=np.float64)
        self._refuse_missing(absent)
        self._refuse_outside(numbers, absent)

    def _refuse_missing(self, absent: np.ndarray) -> None:
        if (wrong := (absent & self._never_missing).any(axis=0)).any():
            field = self._fields[int(wrong.argmax())]
            raise RecordError("missing-field", f'past: {field.name} is null, and as = "{field.as_}" is never missing')

    def _refuse_outside(self, numbers: Floats, absent: np.ndarray) -> None:
        within = (numbers >= self._low) & (numbers <= self._high) & (~self._whole | (numbers == np.floor(numbers)))
        if (wrong := ~(within | absent)).any():
            row, column = (int(at) for at in np.argwhere(wrong)[0])
            low, high, name = self._low[column], self._high[column], self._fields[column].name
            whole = "a whole number " if self._whole[column] else ""
            raise RecordError(
                "out-of-range", f"past: {name} = {numbers[row, column]:g} must be {whole}from {low:g} to {high:g}"
            )


def _ends(field: Field, source: Field) -> tuple[float, float]:
    """The least and the largest that a window can give.

    >>> amount = Field("amount", low=0.0, high=100.0)
    >>> _ends(Field("n", of="amount", as_="count", over="3"), amount)
    (0.0, 3.0)
    """
    over, span = int(field.over), source.high - source.low
    slack = SLACK * max(abs(source.low), abs(source.high))
    if field.as_ == "count":
        return 0.0, float(over)
    if field.as_ == "since":
        return 0.0, 2 * LATEST_MS / 1000.0
    if field.as_ == "sum":  # of values of which any number may be missing
        return over * (min(source.low, 0.0) - slack), over * (max(source.high, 0.0) + slack)
    if field.as_ == "deviation":
        return 0.0, span + slack
    if field.as_ == "change":
        return -span, span
    return source.low - slack, source.high + slack
