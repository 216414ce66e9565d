"""What learners take: rows, weights and targets that fit, or an error that names the column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import BadInputError
from millrace.learners.linear.servable import finite
from millrace.learners.protocol import Array, Batch, Floats


def rows_of(batch: Batch, d: int) -> tuple[Floats, Array, Floats | None]:
    """x (n, d), y of as many rows, and weight (n,), None where all weigh 1.

    Raises: BadInputError naming the column, what was expected and what came.
    """
    x = finite("x", batch.x, (d,))
    if batch.y is None or batch.y.shape[:1] != x.shape[:1]:
        raise BadInputError(f"column y: expected {len(x)} labels, got {None if batch.y is None else batch.y.shape}")
    if batch.weight is None or (batch.weight.shape == (len(x),) and np.count_nonzero(batch.weight == 1.0) == len(x)):
        return x, batch.y, None
    weight = finite("weight", batch.weight, ())
    if len(weight) != len(x) or weight.min() < 0.0:
        least = weight.min(initial=0.0)
        raise BadInputError(f"column weight: expected {len(x)} numbers >= 0, got {len(weight)}, least {least}")
    return x, batch.y, weight


def cut_of(start: int, stop: int, x: Floats, y: Floats, weight: Floats | None) -> tuple[Floats, Floats, Floats | None]:
    """Rows ``start`` to ``stop`` of x (n, d), y (n, C) and weight (n,), as views; the very same arrays where these are all."""
    if start == 0 and stop == len(x):
        return x, y, weight
    return x[start:stop], y[start:stop], None if weight is None else weight[start:stop]


def columns_of(y: Array, known: Mapping[str, int]) -> NDArray[np.int64] | None:
    """The column of each class name (n,); None where one is new, or no name."""
    try:
        return np.fromiter(map(known.__getitem__, y.tolist()), np.int64, len(y))
    except (KeyError, TypeError):  # TypeError: rows of several, which are no names
        return None


def names_of(y: Array, known: Iterable[str], most: int | None) -> Array:
    """Class names (n,), each a str, and not more of them with the known ones than ``most``. Raises: BadInputError."""
    names = y.ravel().tolist()
    strange = [] if set(map(type, names)) <= {str} else [name for name in names if not isinstance(name, str)]
    if y.ndim != 1 or strange:
        raise BadInputError(f"column y: expected class names (n,), got {y.shape} with {strange[:1]}")
    if most is not None and len(classes := set(known) | set(names)) > most:
        raise BadInputError(f"column y: {len(classes)} classes; there is room for most_classes = {most}; raise it, or fork")
    return y


def numbers_of(y: Array, known: int) -> Floats:
    """Regression targets (n, k), k as learned before, where ``known`` is not 0. Raises: BadInputError."""
    k = known or (1 if y.ndim == 1 else max(1, y.shape[-1]))
    return finite("y", y[:, None] if y.ndim == 1 else y, (k,))
