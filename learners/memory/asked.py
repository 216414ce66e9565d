"""What was answered when a row was asked, and by how much the memory held it to be wrong: text, in a column of rows that wait.

Names go with the numbers, for by the time the label comes the learner may have more classes, or others in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np

from millrace.learners.protocol import Floats


@dataclass(frozen=True, slots=True)
class Asked:
    """Of one row."""

    classes: tuple[str, ...]  # names of the numbers; empty for regression
    answers: tuple[float | None, ...]  # of the learner itself; None, which JSON has for it: not finite
    errors: tuple[float | None, ...]  # by which they were held to be wrong; what was answered has a share of them added


_DECODE = msgspec.json.Decoder(Asked).decode
_ENCODE = msgspec.json.Encoder().encode


def as_text(asked: Asked) -> str:
    """One row's, as it waits.

    >>> as_text(Asked(("ham", "spam"), (0.25, 0.75), (0.5, -0.5)))
    '{"classes":["ham","spam"],"answers":[0.25,0.75],"errors":[0.5,-0.5]}'
    """
    return _ENCODE(asked).decode()


def aligned(numbers: Floats, names: Sequence[str], columns: Sequence[str]) -> Floats:
    """Numbers (n, C) of ``names`` as those of ``columns`` (n, m), 0 for a column that has none; without either as they are."""
    names, columns = tuple(names), tuple(columns)
    if names == columns:
        return numbers
    to, source = _places(names, columns)
    if len(to) == len(columns) > 0:
        return numbers.take(source, axis=1)
    out = np.zeros((len(numbers), len(columns)))
    out[:, to] = numbers[:, source]
    return out


@lru_cache(maxsize=64)
def _places(names: tuple[str, ...], columns: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Which columns have a name, and where that stands."""
    places = {name: at for at, name in enumerate(names)}
    to = [at for at, name in enumerate(columns) if name in places]
    return to, [places[columns[at]] for at in to]


def of_texts(texts: Sequence[str], columns: Sequence[str]) -> tuple[Floats, Floats]:
    """Answers and errors (n, m) of rows, by today's ``columns``; of numbers as they are; NaN for what was not finite."""
    rows = [_DECODE(text) for text in texts]
    answers = [aligned(np.array([row.answers], dtype=np.float64), row.classes, columns) for row in rows]
    errors = [aligned(np.array([row.errors], dtype=np.float64), row.classes, columns) for row in rows]
    return np.concatenate(answers), np.concatenate(errors)
