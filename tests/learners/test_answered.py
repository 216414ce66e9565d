"""Rows that were just answered are learned as any others, and what may have been written to since is looked at again."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from millrace.learners.analytic.dropped import note_finer
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Batch, Floats

NAMES = np.array(["a", "b", "c"], dtype=object)


def rows(seed: int, count: int, far: float = 0.0) -> Batch:
    """Rows that cannot be written to, their mean ``far`` deviations away."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5)) + far
    x.flags.writeable = False
    return Batch(x, NAMES[x.argmax(axis=1) % 3], weight=None if seed % 2 else rng.uniform(0.0, 2.0, count))


def packed(ridge: Ridge) -> dict[str, object]:
    """All that a ridge would store, arrays as their bytes."""
    state = ridge.state_dict()
    parts = state.truth | {f"derived {name}": value for name, value in state.derived.items()}
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in parts.items()}


@pytest.mark.parametrize("config", [{}, {"expand": 40}, {"intercept": False}, {"decay": 0.99}, {"solve_rows": 100}])
def test_answering_rows_first_changes_no_bit_of_what_is_learned(config: dict[str, float]) -> None:
    """A ridge that answers every batch before it learns it has the state of one that only learns."""
    answers, learns = (Ridge(RidgeConfig(**{"solve_rows": 256, **config}), 5, 7) for _ in range(2))
    for seed in range(16):
        batch = rows(seed, 256, far=0.0 if seed < 8 else 1e4)
        answers.servable().predict_many(batch)
        answers.learn_many(batch)
        learns.learn_many(Batch(np.array(batch.x), batch.y, weight=batch.weight))
        assert packed(answers) == packed(learns), f"batch {seed}"


def test_rows_that_were_answered_are_not_seen_from_an_older_centre() -> None:
    """Between an answer and its learning the centre has moved; the rows are seen from where it is."""
    answers, learns = (Ridge(RidgeConfig(solve_rows=4096), 5, 7) for _ in range(2))
    batches = [rows(1, 32), *(rows(seed, 32, far=1e6) for seed in range(3, 60, 2))]
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        answers.learn_many(batch)
        learns.learn_many(batch)
        if following is not None:
            answers.servable().predict_many(following)
    centre = answers.servable().arrays()["centre"]
    assert not np.array_equal(packed(answers)["centre"], centre.tobytes()), "the centre has not moved since it was solved"
    assert packed(answers) == packed(learns)


def test_a_buffer_that_is_filled_again_after_it_was_answered_is_learned_as_it_is() -> None:
    """A caller may answer and learn from one array of its own, with other numbers in it each time."""
    ridge, other = (Ridge(RidgeConfig(solve_rows=256), 5, 7) for _ in range(2))
    ridge.learn_many(rows(0, 256))
    other.learn_many(rows(0, 256))
    buffer = np.array(rows(1, 256).x)
    ridge.servable().predict_many(Batch(buffer))
    buffer[:] = rows(2, 256).x
    ridge.learn_many(Batch(buffer, rows(2, 256).y))
    other.learn_many(Batch(rows(2, 256).x, rows(2, 256).y))
    assert packed(ridge) == packed(other)
    ridge.servable().predict_many(Batch(buffer))
    buffer[3, 2] = np.inf
    with pytest.raises(BadInputError, match=r"column x: expected finite numbers"):
        ridge.learn_many(Batch(buffer, rows(2, 256).y))


def is_single(value: float) -> bool:
    """Whether C's float holds the value, by the struct module."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0] == value
    except OverflowError:
        return False


def at_the_edges() -> Floats:
    """Numbers next to the ends of float32's range, below its normal numbers, with and without bits that it has not."""
    powers = [2.0**power for power in (-151, -150, -149, -148, -127, -126, -125, 0, 24, 127, 128, 300, -300)]
    steps = [0.0, 2.0**-22, 2.0**-23, 2.0**-24, 2.0**-52, 1.0 - 2.0**-24, 1.0 - 2.0**-25]
    return np.array([0.0, -0.0] + [sign * power * (1.0 + step) for sign in (1, -1) for power in powers for step in steps])


def test_which_features_are_finer_than_float32_is_as_the_struct_module_says() -> None:
    """One value of each column is looked at beside ones; a column that was finer once stays so."""
    edges = at_the_edges()
    alone = np.zeros(1, dtype=np.int8)
    for value in edges.tolist():
        finer, x = alone.copy(), np.array([[1.0], [value], [0.0]])
        note_finer(finer, x)
        assert finer[0] == (not is_single(value)), value.hex()
    together = np.zeros(len(edges), dtype=np.int8)
    note_finer(together, np.stack([np.ones(len(edges)), edges]))
    assert together.tolist() == [not is_single(value) for value in edges.tolist()]
    before = together.copy()
    note_finer(together, np.ones((4, len(edges))))
    assert together.tolist() == before.tolist()
