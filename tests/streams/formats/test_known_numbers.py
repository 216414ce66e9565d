"""Numbers that are known from decoding are learned as if they had been looked at: the same state, and the same refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.linear.decoded import NEWEST
from millrace.learners.protocol import Batch, Floats
from millrace.streams.features.columns import Features
from millrace.streams.formats.arrow import stream_bytes
from millrace.streams.formats.contents import Contents
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema

D, ROWS = 4, 512
ARRAY = Schema((Field("x", size=D),), Label("y", "integer"))
NAMED = Schema(tuple(Field(f"f{at}") for at in range(D)), Label("y", "integer"))
SCALED = Schema((Field("x", size=D, center=0.5, scale=3.0),), Label("y", "integer"))


def array_message(x: Floats, kind: pa.DataType) -> bytes:
    """Rows with one list of numbers of this type."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel(), kind), D)
    return stream_bytes(pa.record_batch({"x": column, "y": pa.array(np.abs(x).argmax(axis=1))}))


def named_message(x: Floats, kind: pa.DataType) -> bytes:
    """Rows with a column for each number; the last is always of float64."""
    columns = {f"f{at}": pa.array(x[:, at], pa.float64() if at == D - 1 else kind) for at in range(D)}
    return stream_bytes(pa.record_batch(columns | {"y": pa.array(np.abs(x).argmax(axis=1))}))


CASES = [(ARRAY, array_message), (NAMED, named_message), (SCALED, array_message)]


@pytest.mark.parametrize(("schema", "message"), CASES)
def test_messages_of_both_precisions_leave_the_state_that_their_numbers_do(
    schema: Schema, message: Callable[[Floats, pa.DataType], bytes]
) -> None:
    """Single, double, single again, some refused; each is learned as copies of its numbers are, of which nothing is known."""
    contents, features = Contents(schema, 1 << 20), Features(schema)
    ours, theirs = (Ridge(RidgeConfig(solve_rows=256), D, 0) for _ in range(2))
    rng = np.random.default_rng(0)
    for number, kind in enumerate([pa.float32(), pa.float32(), pa.float64(), pa.float32()]):
        x = rng.standard_normal((ROWS, D)) * (1.0 if number % 2 else 1e3)
        x = x.astype(np.float32).astype(np.float64) if kind == pa.float32() or number < 3 else x
        x[::100, 1] = np.nan if number == 1 else x[::100, 1]
        x[:, 0] = x[:, 0] + (1e-9 if number == 2 else 0.0)
        rows, refused = contents.decode([Event(number, 1, None, b"", message(x, kind))])
        batch = features.encode(rows)
        assert len(refused) == (6 if number == 1 else 0)
        for start in range(0, len(batch), 128):
            part = batch.rows(start, min(start + 128, len(batch)))
            ours.servable().predict_many(part)
            ours.learn_many(part)
            theirs.learn_many(Batch(np.array(part.x), part.y, weight=part.weight))
    ours_truth, theirs_truth = ours.state_dict().truth, theirs.state_dict().truth
    for name, value in theirs_truth.items():
        assert np.array_equal(np.asarray(ours_truth[name]), np.asarray(value)), name
    assert theirs_truth["finer"][0] == 1


def test_of_which_messages_all_numbers_are_known_to_be_single() -> None:
    """An array of float32, or columns of nothing else; not where a row was refused, or a value was scaled."""
    x = np.ones((ROWS, D))
    infinite = np.where(np.arange(ROWS)[:, None] == 7, np.inf, x)
    single = {f"f{at}": pa.array(x[:, at], pa.float32()) for at in range(D)} | {"y": pa.array(np.arange(ROWS))}
    for schema, value, known, is_single in [
        (ARRAY, array_message(x, pa.float32()), True, True),
        (ARRAY, array_message(x, pa.float64()), True, False),
        (NAMED, stream_bytes(pa.record_batch(single)), True, True),
        (NAMED, named_message(x, pa.float32()), True, False),
        (ARRAY, array_message(infinite, pa.float32()), False, False),
        (SCALED, array_message(x, pa.float32()), False, False),
    ]:
        rows, _ = Contents(schema, 1 << 20).decode([Event(0, 1, None, b"", value)])
        part = Features(schema).encode(rows).rows(3, 300)
        assert (NEWEST.has(part.x), NEWEST.has_single(part.x)) == (known, is_single)
