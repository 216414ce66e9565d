"""Drift alarms of a pipeline and its classes: cut in any way, resumed anywhere, within the budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.drift.alarms import Alarm, Detectors, DriftConfig, Trail, Watch
from millrace.learners.drift.calibration import BLIND, FIGURES, MISSED, missed_share, reach, threshold_for
from millrace.learners.drift.detectors import Side
from millrace.learners.errors import BadInputError, ConfigError, LearnerError, StateDamageError
from millrace.learners.protocol import Array, Floats
from millrace.streams.errors import DamageError
from millrace.streams.parts import pack, unpack

QUICK = DriftConfig(false_alarm_rows=900)
KINDS = sorted(FIGURES)


def rows(seed: int, n: int) -> tuple[Floats, Array, Array]:
    """Losses that change twice, labels a to c, places with gaps."""
    rng = np.random.default_rng(seed)
    rate = np.where(np.arange(n) < n // 3, 0.1, np.where(np.arange(n) < 2 * n // 3, 0.8, 0.2))
    names = np.array(["a", "b", "c"], dtype=object)[rng.integers(0, 3, n)]
    return (rng.random(n) < rate).astype(float), names, np.cumsum(rng.integers(1, 4, n))


def budget(kind: str) -> int:
    """One that the detector can keep with classes."""
    return reach(kind) // 4


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), shares=st.lists(st.floats(0.0, 1.0), max_size=4))
def test_cut_and_resumed_anywhere_alarms_and_state_are_the_same(kind: str, seed: int, shares: list[float]) -> None:
    """Bit for bit, through bytes at every cut."""
    n = 300 if kind == "kswin" else 1200
    losses, labels, places = rows(seed, n)
    config = DriftConfig(kind, budget(kind))
    whole = Detectors(config, seed=3)
    expected = whole.update(losses, labels, places)
    alarms: list[Alarm] = []
    parts = Detectors(config, seed=3)
    for start, stop in pairwise([0, *sorted(int(share * n) for share in shares), n]):
        resumed = Detectors(config, seed=3)
        resumed.load(unpack(pack(parts.state()), "here"))
        alarms += resumed.update(losses[start:stop], labels[start:stop], places[start:stop])
        parts = resumed
    assert alarms == expected
    assert pack(parts.state()) == pack(whole.state())


def test_a_drift_alarms_the_pipeline_and_the_class_that_has_it() -> None:
    """Label b goes wrong at row 3,000 of 6,000; a never alarms; the onset is given in the caller's places."""
    rng = np.random.default_rng(1)
    labels = np.array(["a", "b"], dtype=object)[rng.integers(0, 2, 6000)]
    rate = np.where((np.arange(6000) >= 3000) & (labels == "b"), 0.9, 0.1)
    alarms = Detectors(DriftConfig(), seed=0).update((rng.random(6000) < rate).astype(float), labels, 10 * np.arange(6000))
    worse = {alarm.label: alarm for alarm in reversed(alarms) if alarm.direction == "worse"}
    assert set(worse) == {None, "b"}
    assert worse["b"].detector == "class b" and worse[None].detector == "pipeline"
    for alarm in worse.values():
        assert 29800 <= alarm.onset_rows <= 30200 < alarm.rows < 34000
        assert alarm.after > alarm.before + 0.2
        assert alarm.new_classes == ()


def test_an_improvement_is_reported_as_one() -> None:
    """Errors that end, noticed after so few rows that the onset, kept for each eighth one, mixes in some of before."""
    losses = np.concatenate([np.ones(500), np.zeros(500)])
    [alarm] = Detectors(DriftConfig(per_class=False), seed=0).update(losses, None, np.arange(1000))
    assert (alarm.direction, alarm.before, alarm.after) == ("better", 1.0, pytest.approx(0, abs=0.3))


def test_an_alarm_names_the_classes_that_came_with_it() -> None:
    """c appears at row 2,000 and is always answered wrongly."""
    labels = np.array(["a", "b"] * 1000 + ["a", "c"] * 500, dtype=object)
    losses = (labels == "c").astype(float)
    alarms = Detectors(DriftConfig(), seed=0).update(losses, labels, np.arange(3000))
    assert [(alarm.label, alarm.new_classes) for alarm in alarms] == [(None, ("c",))]
    assert alarms[0].onset_rows == pytest.approx(2000, abs=16)


def test_classes_past_the_bound_are_watched_by_the_pipeline_alone() -> None:
    """The state stays small, the first ones are kept, and the others are no error."""
    config = DriftConfig(max_classes=3)
    detectors = Detectors(config, seed=0)
    names = np.array([f"class {at}" for at in range(500)], dtype=object)
    detectors.update(np.zeros(500), names, np.arange(500))
    state = detectors.state()
    assert [name for name, _ in state["first"]] == ["class 0", "class 1", "class 2"]
    assert [watch[0] for watch in state["watches"]] == [None, "class 0", "class 1", "class 2"]


def test_a_long_stream_keeps_a_small_state() -> None:
    """The places of 200,000 rows are kept in a few."""
    detectors = Detectors(DriftConfig(per_class=False), seed=0)
    detectors.update(np.zeros(200_000), None, np.arange(200_000))
    assert len(pack(detectors.state())) < 8000


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 5000), st.floats(0.1, 0.9))
def test_a_trail_finds_a_change_to_an_eighth_of_how_long_ago_it_was(n: int, share: float) -> None:
    """Or to eight rows; wherever it is."""
    trail, row = Trail(), int(share * n)
    losses = (np.arange(n) >= row).astype(float)
    trail.add(0, 3 * np.arange(n), [0.0, *np.cumsum(losses).tolist()])
    place, before, after = trail.split(n, float(losses.sum()), Side(worse=True, earliest=0))
    assert abs(row - place / 3) <= max(8, (n - row) / 8)
    assert before <= after


def test_every_flipped_bit_of_a_state_is_damage() -> None:
    """In the stored bytes; the few that change nothing that is read restore the same state."""
    detectors = Detectors(QUICK, seed=0)
    detectors.update(*rows(0, 60))
    blob, spared = pack(detectors.state()), 0
    for bit in range(8 * len(blob)):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        resumed = Detectors(QUICK, seed=0)
        try:
            resumed.load(unpack(bytes(flipped), "here"))
        except (DamageError, StateDamageError):
            continue
        assert pack(resumed.state()) == blob
        spared += 1
    assert spared < 8 * len(blob) / 50


def test_a_state_of_other_detectors_is_refused() -> None:
    """Another kind, another seed."""
    state = Detectors(QUICK, seed=0).state()
    with pytest.raises(LearnerError, match="detector and seed"):
        Detectors(QUICK, seed=1).load(state)
    with pytest.raises(LearnerError, match="page-hinkley"):
        Detectors(DriftConfig("page-hinkley", budget("page-hinkley")), seed=0).load(state)
    with pytest.raises(StateDamageError, match="crc32c"):
        Detectors(QUICK, seed=0).load(state | {"threshold": 0.123})
    with pytest.raises(StateDamageError):
        Detectors(QUICK, seed=0).load({"rows": 3})


def test_a_state_is_a_copy() -> None:
    """What is learned afterwards does not reach into it."""
    detectors = Detectors(QUICK, seed=0)
    losses, labels, places = rows(0, 200)
    detectors.update(losses[:100], labels[:100], places[:100])
    state = detectors.state()
    before = pack(state)
    detectors.update(losses[100:], labels[100:], places[100:])
    assert pack(state) == before


def test_columns_that_do_not_fit_are_refused_and_nothing_is_taken() -> None:
    """Shapes, and a loss that is no number; an infinite one is a large one."""
    detectors = Detectors(QUICK, seed=0)
    names = np.array(["a", "a"], dtype=object)
    for losses, labels in ((np.zeros(3), names), (np.zeros((2, 1)), None), (np.array([0.0, np.nan]), names)):
        with pytest.raises(BadInputError, match="losses"):
            detectors.update(losses, labels, np.arange(len(losses)))
    assert detectors.rows == 0
    assert detectors.update(np.array([np.inf, -5.0]), names, np.arange(2)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("detector", "ddm"), ("false_alarm_rows", 0), ("false_alarm_rows", 1.5), ("max_classes", True), ("act", "panic")],
)
def test_a_config_that_cannot_be_meant_is_refused(key: str, value: object) -> None:
    """Naming key and value."""
    with pytest.raises(ValueError, match=f"{key} = {value!r}"):
        DriftConfig(**{key: value})


def test_a_budget_that_a_detector_cannot_keep_is_refused() -> None:
    """With what it can, which is then taken."""
    most = reach("fhddm") // 2
    with pytest.raises(ConfigError, match=rf"at most {most} rows .* another detector \(.*adwin"):
        DriftConfig("fhddm", most + 1)
    DriftConfig("fhddm", most)
    with pytest.raises(ConfigError, match="Lower it.$"):
        DriftConfig(false_alarm_rows=10**12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_budget_never_gets_a_more_nervous_threshold(kind: str) -> None:
    """Figures rise as thresholds get stricter, and the figure taken is never below what was asked."""
    figures = [figure for _, figure in FIGURES[kind]]
    assert figures == sorted(figures)
    strict = [threshold for threshold, _ in FIGURES[kind]]
    assert strict == sorted(strict, reverse=kind != "page-hinkley")
    for asked in (1, *figures):
        assert threshold_for(kind, asked, asked)[1] >= asked


@pytest.mark.parametrize(("false_alarm_rows", "seeds"), [(800, 10), (5_000, 10), (50_000, 5)])
def test_false_alarms_stay_within_the_budget(false_alarm_rows: int, seeds: int) -> None:
    """Pipeline and classes together, on stationary streams of several error rates and unequal classes."""
    alarms = taken = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        n = 2 * false_alarm_rows if false_alarm_rows > 10_000 else 20_000
        labels = np.array(list("abcdefgh"), dtype=object)[np.minimum(rng.geometric(0.4, n) - 1, 7)]
        losses = (rng.random(n) < (0.1, 0.3, 0.5)[seed % 3]).astype(float)
        alarms += len(Detectors(DriftConfig(false_alarm_rows=false_alarm_rows), seed).update(losses, labels, np.arange(n)))
        taken += n
    assert alarms <= taken / false_alarm_rows


SEEN = [(kind, threshold) for kind in KINDS for threshold, _ in FIGURES[kind][-3:] if kind != "kswin"]


@pytest.mark.parametrize(("kind", "threshold"), [*SEEN, ("kswin", 1e-6)])
def test_what_a_threshold_misses_is_what_the_table_says(kind: str, threshold: float) -> None:
    """On streams of their own, in which the error rate goes from 0.1 to 0.3: within what so few streams can tell."""
    streams, misses = 2 if kind == "kswin" else 12, 0
    for seed in range(streams):
        losses = np.random.default_rng([seed, 99]).random(6000) < np.repeat((0.1, 0.3), (2000, 4000))
        alarms = Watch(kind, threshold, seed).feed(losses.astype(float).tolist(), np.arange(6000))
        misses += not any(row >= 2000 and alarm.direction == "worse" for row, alarm in alarms)
    share = MISSED.get(kind, {}).get(threshold, 0.0)
    assert abs(misses / streams - share) <= 4 * (share * (1 - share) / streams) ** 0.5 + 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget_rows", [50, 1000, 10_000])
def test_a_detector_that_misses_most_changes_begins_no_branch(kind: str, budget_rows: int) -> None:
    """The message names detectors and a budget with which one begins."""
    config = DriftConfig(kind, budget_rows)
    assert config.missed == missed_share(kind, 2 * budget_rows, budget_rows)
    if config.missed <= BLIND:
        config.refuse_new()
        return
    with pytest.raises(ConfigError, match=rf"'{kind}': with false_alarm_rows = {budget_rows} it misses \d+% of") as refused:
        config.refuse_new()
    others, _, lower = str(refused.value).partition("another detector (")[2].partition(")")
    for other in others.split(", "):
        DriftConfig(other, budget_rows).refuse_new()
    if lower != ".":
        most = int(lower.removeprefix(", or set false_alarm_rows = ").removesuffix(" or less."))
        DriftConfig(kind, most).refuse_new()
        with pytest.raises(ConfigError, match="no branch is begun"):
            DriftConfig(kind, most + 1).refuse_new()


def test_losses_that_hang_on_each_other_alarm_more_often_than_the_budget_says() -> None:
    """So README, status and the page on drift say that the budget is for independent losses; this would show a mend."""
    alarms = taken = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        fresh, kept = rng.random(20_000) < 0.3, rng.random(20_000) < 0.3  # lag-1 correlation 0.3, the rate stays 0.3
        places = np.maximum.accumulate(np.where(kept, 0, np.arange(20_000)))
        alarms_raised = Detectors(DriftConfig(false_alarm_rows=2000, per_class=False), seed).update(
            fresh[places].astype(float), None, np.arange(20_000)
        )
        alarms, taken = alarms + len(alarms_raised), taken + 20_000
    assert alarms > 2 * taken / 2000
