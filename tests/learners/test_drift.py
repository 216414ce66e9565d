"""The drift sensors: river's own decisions, an honest onset, and a state that goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift as river

from millrace.learners.drift.detectors import SENSORS, Adwin, Sensor, Side
from millrace.learners.errors import StateDamageError

THRESHOLDS = {"adwin": 0.1, "page-hinkley": 60.0, "kswin": 0.001, "hddm-a": 1e-3, "hddm-w": 1e-3, "fhddm": 1e-6}
BARE: dict[str, Callable[[float], Any]] = {
    "adwin": lambda threshold: river.ADWIN(delta=threshold),
    "page-hinkley": lambda threshold: river.PageHinkley(threshold=threshold),
    "kswin": lambda threshold: river.KSWIN(alpha=threshold, seed=7),
    "hddm-a": lambda threshold: river.binary.HDDMA(drift_confidence=threshold, two_sided_test=True),
    "hddm-w": lambda threshold: river.binary.HDDMW(drift_confidence=threshold, two_sided_test=True),
    "fhddm": lambda threshold: river.binary.FHDDM(confidence_level=threshold),
}
KINDS = sorted(SENSORS)


def stream(seed: int, *pieces: tuple[int, float]) -> list[float]:
    """Zeros and ones, so many of each error rate, one after the other."""
    rng = np.random.default_rng(seed)
    return np.concatenate([(rng.random(rows) < rate).astype(float) for rows, rate in pieces]).tolist()


def fresh(kind: str) -> Sensor:
    """An untaught sensor."""
    return SENSORS[kind](THRESHOLDS[kind], 7)


def first_side(kind: str, losses: list[float]) -> tuple[Side, int]:
    """What a sensor says of its first alarm, and the row of it."""
    sensor = fresh(kind)
    at = next(at for at, loss in enumerate(losses) if sensor.update(loss))
    return sensor.side(at + 1, math.fsum(losses[: at + 1])), at


def alarms(kind: str, losses: list[float]) -> list[int]:
    """Rows at which a sensor alarms, made fresh after each."""
    places, sensor = [], fresh(kind)
    for at, loss in enumerate(losses):
        if sensor.update(loss):
            places.append(at)
            sensor = fresh(kind)
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_a_sensor_alarms_where_the_detector_of_river_does(kind: str) -> None:
    """Several times over, with its own reset against our fresh ones; FHDDM is fed what was right."""
    rows = 150 if kind == "kswin" else 1500
    losses = stream(3, (rows, 0.1), (rows, 0.9), (rows, 0.2), (rows, 0.8))
    bare, expected = BARE[kind](THRESHOLDS[kind]), []
    for at, loss in enumerate(losses):
        bare.update(1.0 - loss if kind == "fhddm" else loss)
        if bare.drift_detected:
            expected.append(at)
    assert len(expected) >= 2
    assert alarms(kind, losses) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_rise_is_worse(kind: str) -> None:
    """From 10 % to 80 % at row 1,000; and what is surely before it is."""
    side, at = first_side(kind, stream(5, (1000, 0.1), (1000, 0.8)))
    assert 1000 <= at < 1200
    assert side.worse and side.earliest <= 1010


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fhddm"])
def test_a_fall_is_better(kind: str) -> None:
    """All but FHDDM, which cannot see one, know an improvement for what it is."""
    side, at = first_side(kind, stream(6, (1000, 0.8), (1000, 0.1)))
    assert 1000 <= at < 1200
    assert not side.worse and side.earliest <= 1010


def test_fhddm_is_silent_about_an_improvement() -> None:
    """Fed as its docs say, it would alarm here and sleep through a rise."""
    assert alarms("fhddm", stream(6, (500, 0.8), (1000, 0.05))) == []
    bare = river.binary.FHDDM(confidence_level=THRESHOLDS["fhddm"])
    fired = False
    for loss in stream(6, (500, 0.8), (1000, 0.05)):
        bare.update(loss)
        fired = fired or bare.drift_detected
    assert fired


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0), binary=st.booleans())
def test_a_restored_sensor_goes_on_bit_for_bit(kind: str, seed: int, share: float, binary: bool) -> None:
    """Cut anywhere before the first alarm: same alarms, same side, same bytes at the end."""
    rng = np.random.default_rng(seed)
    rows = 200 if kind == "kswin" else 600
    losses = np.concatenate([rng.beta(2, 8, rows), rng.beta(8, 2, rows)])
    losses = ((rng.random(len(losses)) < losses).astype(float) if binary else losses).tolist()
    whole, first, split = fresh(kind), fresh(kind), int(share * rows)
    for at, loss in enumerate(losses):
        if at == split:
            second = fresh(kind)
            second.load(first.state(), at)
            first = second
        alarmed = whole.update(loss)
        assert first.update(loss) == alarmed
        if alarmed:
            total = sum(losses[: at + 1])
            assert first.side(at + 1, total) == whole.side(at + 1, total)
            return
        if at % 100 == 0:
            assert first.state() == whole.state()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_cut_short_is_damage(kind: str) -> None:
    """Also where Rust panics over it, which is no Exception."""
    sensor = fresh(kind)
    for loss in stream(1, (50, 0.3)):
        sensor.update(loss)
    state = sensor.state()
    for length in (0, 1, len(state) // 2, len(state) - 1):
        with pytest.raises(StateDamageError):
            fresh(kind).load(state[:length], 50)


def test_a_window_of_adwin_with_a_bit_flipped_never_panics_past_us(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a checksum to stop them first: bytes are refused as damage, or read as another window; nothing else."""
    sensor, refused = Adwin(0.1, 0), 0
    for loss in stream(1, (300, 0.3)):
        sensor.update(loss)
    state = sensor.state()
    for bit in range(0, 8 * len(state), 5):  # each byte is hit
        flipped = bytearray(state)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            Adwin(0.1, 0).load(bytes(flipped), 300)
        except StateDamageError:
            refused += 1
    assert refused
    capfd.readouterr()  # what Rust says of its panics


def test_another_error_than_a_panic_passes_through() -> None:
    """An interrupt while a state is read is not damage."""
    sensor = Adwin(0.1, 0)
    sensor._window = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        sensor.load(b"", 0)


class Interrupted:
    """A window whose reader is stopped by Ctrl-C."""

    def __setstate__(self, state: bytes) -> None:
        """Never comes back."""
        raise KeyboardInterrupt


def test_adwin_drops_rows_only_where_it_alarms() -> None:
    """So that its width is the rows since it was made, and what a cut leaves tells the onset."""
    sensor = Adwin(1.0, 0)
    for at, loss in enumerate(stream(2, (2000, 0.3), (1000, 0.9))):
        if sensor.update(loss):
            break
        assert sensor._adwin.width == at + 1
    assert sensor._adwin.width < at + 1
