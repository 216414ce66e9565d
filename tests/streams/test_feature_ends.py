"""The least and largest number of each feature, bit for bit as row after row gives them."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from millrace.learners.protocol import Floats
from millrace.streams.features.ends import NewestEnds

SHAPES = [(1, 3), (16, 1), (256, 64), (255, 7), (48, 5), (32, 0), (4096, 2)]


def row_by_row(x: Floats) -> tuple[bytes, bytes]:
    """The ends as one row after the other gives them."""
    return reduce(np.minimum, x).tobytes(), reduce(np.maximum, x).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
def test_ends_are_those_of_row_after_row(shape: tuple[int, int], zeros: float) -> None:
    """Among numbers of every size, and zeros of both signs, and in columns of some that is not in one piece."""
    rng = np.random.default_rng(shape[0])
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-300, 300, shape)
    x = np.where(rng.random(shape) < zeros, np.copysign(0.0, rng.standard_normal(shape)), x)
    x = np.abs(x) if zeros < 1.0 and shape[0] % 32 == 0 else x
    for part in (x, x[:, ::2], np.asfortranarray(x)):
        ends = NewestEnds().of(part)
        assert (ends[0].tobytes(), ends[1].tobytes()) == row_by_row(part)


def test_ends_are_worked_out_anew_for_other_rows() -> None:
    """After rows of one sign, of zeros and of another sign the ends are always those of the rows that are asked about."""
    ends = NewestEnds()
    for rows in (np.full((32, 2), -3.0), np.zeros((32, 2)), np.full((32, 2), 5.0), np.full((32, 2), -1.0)):
        assert ends.of(rows)[0].tolist() == ends.of(rows)[1].tolist() == rows[0].tolist()
