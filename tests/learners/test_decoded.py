"""What is known of the numbers that were decoded last: of them alone, and only as long as nobody can write to them."""

from __future__ import annotations

import numpy as np

from millrace.learners.linear.decoded import Decoded


def test_parts_of_the_newest_numbers_are_known_and_nothing_else() -> None:
    """Rows, columns and the whole are; copies, other arrays and numbers that were noted before are not."""
    known, first, second = Decoded(), np.ones((8, 3)), np.arange(24.0).reshape(8, 3)
    assert not known.has(first)
    known.note(first, single=True)
    assert known.has(first) and known.has_single(first[2:4]) and known.has_single(first[:, 1:])
    assert not known.has(first.copy()) and not known.has(first[[0, 1]]) and not known.has(second)
    known.note(second, single=False)
    assert known.has(second[3:]) and not known.has_single(second[3:])
    assert not known.has(first) and not known.has_single(first)


def test_what_may_be_written_to_is_not_known() -> None:
    """Noted numbers cannot be written to; a view that was made before, and can be, is not known."""
    known, x = Decoded(), np.ones((8, 3))
    before = x[:4]
    known.note(x, single=True)
    assert not x.flags.writeable and not known.has(before) and known.has(x[:4])


def test_a_part_of_an_array_says_nothing_of_the_rest() -> None:
    """Where only a part of an array was looked at, nothing is known of any of it."""
    known, x = Decoded(), np.array([[1.0, np.inf], [2.0, 3.0]])
    x.flags.writeable = False
    known.note(x[1:], single=True)
    assert not known.has(x) and not known.has(x[1:])


def test_numbers_that_are_gone_are_not_taken_for_others() -> None:
    """New arrays often lie where the noted one lay."""
    known = Decoded()
    for _ in range(100):
        known.note(np.ones((64, 8)), single=True)
        others = np.zeros((64, 8))
        others.flags.writeable = False
        assert not known.has(others)
