"""The scale against one row at a time in plain Python, and what a learner makes of rows that lie far outside."""

from __future__ import annotations

import numpy as np
import pytest
from clipped_rows import RowByRow
from hypothesis import given
from hypothesis import strategies as st

from millrace.learners.protocol import Batch, Floats, Scaling
from millrace.streams.branch.revisions import features_of
from millrace.streams.features.scale import Scale
from millrace.streams.parts import pack, unpack
from millrace.streams.schema import Field, Label, Schema


def learned(scale: Scale, values: Floats, pieces: list[int]) -> Floats:
    """What the learner gets of values (n,), learned in pieces."""
    out, at = [np.zeros((0, 1))], 0
    for size in [*pieces, len(values)]:
        block = values[at : at + size, None]
        out += [scale.learn(block[start:stop]) for start, stop in scale.cuts(len(block), at)]
        at += len(block)
    return np.concatenate(out)[:, 0]


STREAMS = {
    "normal": lambda rng: rng.standard_normal(1500),
    "heavy tails": lambda rng: rng.standard_t(1.2, 1500),
    "a shift": lambda rng: np.concatenate([rng.standard_normal(700), 1e5 + rng.standard_normal(800)]),
    "constant at first": lambda rng: np.concatenate([np.zeros(300), 1e5 + rng.standard_normal(1200)]),
    "a clock": lambda rng: 1.7e9 + np.arange(1500.0),
    "a rare flag": lambda rng: (rng.random(1500) < 0.004).astype(float),
    "a pixel at the edge": lambda rng: np.where(rng.random(1500) < 0.01, rng.integers(1, 256, 1500), 0).astype(float),
    "a sparse outlier": lambda rng: np.where(np.arange(1500) == 1000, 9.97e36, (rng.random(1500) < 0.1).astype(float)),
    "an outlier first": lambda rng: np.concatenate([[9.97e36], rng.standard_normal(1499)]),
    "an outlier later": lambda rng: np.concatenate([rng.standard_normal(900), [9.97e36], rng.standard_normal(599)]),
}


@pytest.mark.parametrize("name", STREAMS)
@given(seed=st.integers(0, 1000), pieces=st.lists(st.integers(1, 400), max_size=8))
def test_it_clips_what_one_row_at_a_time_clips(name: str, seed: int, pieces: list[int]) -> None:
    """However the rows are cut; what is not clipped is untouched, bit for bit."""
    values, plain = STREAMS[name](np.random.default_rng(seed)), RowByRow()
    ours, theirs = learned(Scale("clip", 1), values, pieces), np.array([plain.row(value) for value in values.tolist()])
    assert np.allclose(ours, theirs, rtol=1e-9, atol=0.0)
    assert (ours == values).tolist() == (theirs == values).tolist()


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("normal", 0),
        ("a clock", 0),
        ("a rare flag", 0),
        ("a pixel at the edge", 0),
        ("an outlier later", 1),
        ("a sparse outlier", 1),
    ],
)
def test_only_what_lies_far_outside_is_clipped(name: str, most: int) -> None:
    """A counter that runs on, and a flag that is seldom set, are left alone; a fill value is not, and is counted."""
    values, scale = STREAMS[name](np.random.default_rng(5)), Scale("clip", 1)
    assert (learned(scale, values, []) != values).sum() == most == scale.clipped[0]


def test_a_feature_that_has_moved_is_learned_as_it_comes_within_a_look() -> None:
    """At most the 256 rows until the next look are clipped."""
    values, scale = STREAMS["a shift"](np.random.default_rng(3)), Scale("clip", 1)
    ours = learned(scale, values, [])
    assert (ours[700:768] != values[700:768]).all() and (ours[768:] == values[768:]).all() and scale.clipped[0] == 68


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
def test_a_standardised_feature_does_not_depend_on_its_unit(unit: float) -> None:
    """Nor on where it lies."""
    rng = np.random.default_rng(1)
    values, scale = rng.standard_normal(1000), Scale("standardise", 1)
    ours = learned(scale, unit * (values + 40.0), [7, 300])
    plain = learned(Scale("standardise", 1), values, [])
    assert np.allclose(ours, plain, atol=1e-6) and np.abs(ours).max() <= 10.0
    assert abs(ours[512:].mean()) < 0.2 and abs(ours[512:].std() - 1.0) < 0.2


@pytest.mark.parametrize("scaling", ["none", "declared", "clip", "standardise"])
@given(cut=st.integers(0, 900), seed=st.integers(0, 100))
def test_it_goes_on_from_its_state_as_if_it_had_never_stopped(scaling: Scaling, cut: int, seed: int) -> None:
    """Bit for bit, and it answers for a row what it would learn for it."""
    values = np.random.default_rng(seed).standard_t(2.0, 900)
    whole, before, after = (Scale(scaling, 1, np.array([True])) for _ in range(3))
    expected = np.concatenate([learned(whole, values[:cut], []), learned(whole, values[cut:], [])])
    learned(before, values[:cut], [])
    after.load(unpack(pack(before.state()), "here"))
    assert after.applied(np.array([[55.0]])) == before.applied(np.array([[55.0]]))
    assert learned(after, values[cut:], []).tobytes() == expected[cut:].tobytes()
    assert pack(after.state()) == pack(whole.state())


def test_a_state_says_the_same_whenever_a_worker_was_restored() -> None:
    """A feature that varied, stands still and varies again; wherever between two looks a worker was restored."""
    rng, schema = np.random.default_rng(1), Schema((Field("a"),), Label("y", "integer"))
    x = np.concatenate([rng.standard_normal(200), np.zeros(312), rng.standard_normal(200)])[:, None]
    for cut in range(500, len(x), 7):
        live, restored = (features_of(schema, "clip", 3) for _ in range(2))
        live.learn(Batch(x[:cut]))
        restored.load(unpack(pack(live.state()), "state"))
        assert live.learn(Batch(x[cut:])).x.tobytes() == restored.learn(Batch(x[cut:])).x.tobytes()
        assert pack(live.state()) == pack(restored.state())


@pytest.mark.parametrize("revision", [2, 3])
def test_a_feature_that_becomes_busy_between_two_looks_is_judged_by_the_last_one_after_a_restart(revision: int) -> None:
    """Sparse at the look after 256 rows and busy at row 300, where a state is taken; that of revision 2 does not say so."""
    rng, schema = np.random.default_rng(0), Schema((Field("a"),), Label("y", "integer"))
    repeated = np.repeat(rng.standard_normal(128), 2)
    x = np.concatenate([repeated, rng.standard_normal(200), [1e4] * 3, rng.standard_normal(400)])[:, None]
    live, restored = (features_of(schema, "clip", revision) for _ in range(2))
    live.learn(Batch(x[:300]))
    restored.load(unpack(pack(live.state()), "state"))
    same = np.array_equal(live.learn(Batch(x[300:])).x, restored.learn(Batch(x[300:])).x)
    assert (same, pack(live.state()) == pack(restored.state())) == ((True, True) if revision == 3 else (False, False))


def test_what_is_declared_is_clipped_where_nothing_is_learned() -> None:
    """Ten of its scales from its center, for workers that are merged; a field that declares none is left alone."""
    scale = Scale("declared", 2, np.array([True, False]))
    assert scale.learn(np.array([[11.0, 11.0], [-99.0, 5.0]])).tolist() == [[10.0, 11.0], [-10.0, 5.0]]
    assert scale.clipped.tolist() == [2, 0]
