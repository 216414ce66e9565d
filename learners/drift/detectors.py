"""Drift detectors on one stream of losses in [0, 1]: river's, with what they leave out: the side, and state as bytes.

The only door to river, which is imported when a detector is made (its import takes a second or more). Nothing is pickled:
ADWIN's window is what river's ``__getstate__`` gives, the others are their numbers as float64. A damaged ADWIN window is a
Rust panic, which derives from BaseException; it becomes StateDamageError here.

Left out: DDM and EDDM. At an error rate of 2 % DDM's lowest point is 0 +- 0 in every second start; then the first error is an
alarm whatever the threshold. EDDM sees only losses of exactly 1. FHDDM is fed 1 - loss: river's docs say 1 = error, its code
looks for a falling mean. It cannot see improvements.

At a budget of 10,000 rows HDDM_W and KSWIN (30 losses against 30) miss a change of the error rate from 0.1 to 0.3.

Source: river 0.26, drift/; docs/design/learners.md#drift-detectors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import StateDamageError
from millrace.learners.protocol import Floats

RESTORE = "Restore it from a copy, or use the release that wrote it."
RNG_WORDS = 625  # of the state of Python's Mersenne twister, which KSWIN draws from


@dataclass(frozen=True, slots=True)
class Side:
    """What a detector that has just alarmed says of the change."""

    worse: bool  # the loss rose
    earliest: int  # rows since the detector was made that were surely before it


class Adwin:
    """Adaptive windowing, two-sided. It looks every 32 rows.

    Source: Bifet and Gavaldà, SDM 2007.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        """``threshold`` is delta, above 0: more alarms sooner, and more often without cause."""
        self._adwin = _river().ADWIN(delta=threshold)
        self._window = self._adwin._helper  # never replaced, for this object ends with its first alarm
        self.update: Callable[[float], bool] = self._window.update

    def side(self, rows: int, total: float) -> Side:
        """What it cut off was before; it stops cutting as soon as it can, so what is left is not all after."""
        after = self._adwin.width
        before = (total - self._adwin.total) / (rows - after) if after < rows else 0.0
        return Side(self._adwin.total / after > before, rows - int(after))

    def state(self) -> bytes:
        """1,300 to 2,200 bytes."""
        return bytes(self._window.__getstate__())

    def load(self, state: bytes, rows: int) -> None:
        """Raises: StateDamageError."""
        _set(self._window, state)
        if self._adwin.width != rows:
            raise StateDamageError(f"An ADWIN window of {rows} rows was stored, and {self._adwin.width} came back. {RESTORE}")


class PageHinkley:
    """Two-sided CUSUM against the running mean.

    Source: Page, Biometrika 1954.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        """``threshold`` is lambda, in units of summed loss: more alarms later and less often."""
        self._test = _river().PageHinkley(threshold=threshold)

    def update(self, loss: float) -> bool:
        """Take one loss."""
        self._test.update(loss)
        return bool(self._test._drift_detected)

    def side(self, rows: int, total: float) -> Side:
        """Which sum passed the threshold."""
        return Side(self._test._sum_increase - self._test._min_increase > self._test.threshold, 0)

    def state(self) -> bytes:
        """Six numbers."""
        test, mean = self._test, self._test._x_mean
        sums = (test._sum_increase, test._sum_decrease, test._min_increase, test._max_decrease)
        return np.array([mean.n, mean._mean, *sums]).tobytes()

    def load(self, state: bytes, rows: int) -> None:
        """Raises: StateDamageError."""
        test, (n, mean, *sums) = self._test, _floats(state, 6)
        test._x_mean = test._x_mean._from_state(n, mean)
        test._sum_increase, test._sum_decrease, test._min_increase, test._max_decrease = sums


class Kswin:
    """Kolmogorov-Smirnov test of the last 30 losses against 30 drawn from the 70 before.

    Source: Raab, Heusinger and Schleif, Neurocomputing 2020.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        """``threshold`` is alpha, the p-value that alarms: more alarms sooner, and more often without cause."""
        self._test = _river().KSWIN(alpha=threshold, seed=seed)

    def update(self, loss: float) -> bool:
        """Take one loss; some 350 microseconds."""
        self._test.update(loss)
        return bool(self._test._drift_detected)

    def side(self, rows: int, total: float) -> Side:
        """The recent losses, which is what river keeps after an alarm, against all before."""
        recent = self._test.window
        before = (total - sum(recent)) / (rows - len(recent))
        return Side(sum(recent) / len(recent) > before, rows - self._test.window_size)

    def state(self) -> bytes:
        """The window and the generator."""
        version, rng_words, _ = self._test._rng.getstate()
        return np.array([version, *rng_words, *self._test.window], dtype=np.float64).tobytes()

    def load(self, state: bytes, rows: int) -> None:
        """Raises: StateDamageError."""
        version, *numbers = _floats(state, 1 + RNG_WORDS + min(rows, self._test.window_size))
        self._test.n = rows
        try:
            self._test._rng.setstate((int(version), tuple(map(int, numbers[:RNG_WORDS])), None))
        except (TypeError, ValueError, OverflowError) as error:
            raise StateDamageError(f"The generator of a KSWIN cannot be restored ({error}). {RESTORE}") from error
        self._test.window = deque(numbers[RNG_WORDS:], maxlen=self._test.window_size)


class HddmA:
    """Hoeffding's bound on the mean so far against its lowest (highest) point, two-sided.

    Source: Frías-Blanco et al., IEEE TKDE 2014.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        """``threshold`` is the drift confidence: more alarms sooner, and more often without cause."""
        self._test = _river().binary.HDDMA(drift_confidence=threshold, warning_confidence=1.0, two_sided_test=True)

    def update(self, loss: float) -> bool:
        """Take one loss."""
        self._test.update(loss)
        return bool(self._test._drift_detected)

    def side(self, rows: int, total: float) -> Side:
        """Which extreme was left too far behind."""
        worse = bool(self._test._mean_incr(self._test.drift_confidence))
        return Side(worse, int((self._test._x_min if worse else self._test._x_max).n))

    def state(self) -> bytes:
        """Three means."""
        test = self._test
        return np.array([number for mean in (test._x_min, test._x_max, test._z) for number in (mean.n, mean._mean)]).tobytes()

    def load(self, state: bytes, rows: int) -> None:
        """Raises: StateDamageError."""
        numbers, restored = _floats(state, 6), self._test._z._from_state
        self._test._x_min, self._test._x_max = restored(*numbers[:2]), restored(*numbers[2:4])
        self._test._z = restored(*numbers[4:])


class HddmW:
    """McDiarmid's bound on exponentially weighted means, two-sided.

    Source: Frías-Blanco et al., IEEE TKDE 2014.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        """``threshold`` is the drift confidence: more alarms sooner, and more often without cause."""
        self._test = _river().binary.HDDMW(drift_confidence=threshold, warning_confidence=1.0, two_sided_test=True)

    def update(self, loss: float) -> bool:
        """Take one loss."""
        self._test.update(loss)
        return bool(self._test._drift_detected)

    def side(self, rows: int, total: float) -> Side:
        """Which cut point was left too far behind."""
        return Side(bool(self._test._detect_mean_incr(self._test.drift_confidence)), 0)

    def state(self) -> bytes:
        """Five weighted means and two cut points."""
        test = self._test
        numbers = [number for sample in self._samples() for number in (sample._ibc, sample._is_init)]
        cuts = [test._incr_cutpoint, test._decr_cutpoint]
        means = b"".join(bytes(sample._ewma._ewmean.__getstate__()) for sample in self._samples())
        return np.array([*numbers, *cuts], dtype=np.float64).tobytes() + means

    def load(self, state: bytes, rows: int) -> None:
        """Raises: StateDamageError."""
        test, samples = self._test, self._samples()
        numbers, means = _floats(state[:96], 12), state[96:]
        bytes_each = len(samples[0]._ewma._ewmean.__getstate__())
        if len(means) != bytes_each * len(samples):
            raise StateDamageError(
                f"The weighted means of an HDDM_W take {bytes_each * len(samples)} bytes, {len(means)} came back. {RESTORE}"
            )
        for at, sample in enumerate(samples):
            sample._ibc, sample._is_init = numbers[2 * at], bool(numbers[2 * at + 1])
            _set(sample._ewma._ewmean, means[at * bytes_each : (at + 1) * bytes_each])
        test._incr_cutpoint, test._decr_cutpoint = numbers[10:]

    def _samples(self) -> list[Any]:
        test = self._test
        return [test._total, test._s1_decr, test._s1_incr, test._s2_decr, test._s2_incr]


class Fhddm:
    """Hoeffding's bound on the mean of the last 100 against the best such mean; it sees a rise only.

    Source: Pesaranghader and Viktor, ECML-PKDD 2016.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        """``threshold`` is the confidence level: more alarms sooner, and more often without cause."""
        self._test = _river().binary.FHDDM(confidence_level=threshold)

    def update(self, loss: float) -> bool:
        """Take one loss, as what was right of the answer."""
        self._test.update(1.0 - loss)
        return bool(self._test._drift_detected)

    def side(self, rows: int, total: float) -> Side:
        """It knows a rise only, against the best window ever."""
        return Side(True, 0)

    def state(self) -> bytes:
        """The window, its sum and the best mean."""
        return np.array([self._test._u_max, self._test.n_one, *self._test._sliding_window], dtype=np.float64).tobytes()

    def load(self, state: bytes, rows: int) -> None:
        """Raises: StateDamageError."""
        size = self._test.sliding_window_size  # river lets go of the first row as soon as it is full
        self._test._u_max, self._test.n_one, *window = _floats(state, 2 + min(rows, size - 1))
        self._test._sliding_window = deque(window, maxlen=size)


# ``update`` takes one loss in [0, 1] and says whether it is an alarm; ``side`` is of the alarm just raised, after ``rows``
# losses whose sum is ``total``; ``state`` is all that changes the future, and ``load`` goes on where it was taken after
# ``rows`` losses. After an alarm a sensor is thrown away and a fresh one is made, which is what river does by itself.
Sensor = Adwin | PageHinkley | Kswin | HddmA | HddmW | Fhddm
SENSORS: dict[str, Callable[[float, int], Sensor]] = {  # kind -> (threshold, seed) -> a fresh one
    "adwin": Adwin,
    "page-hinkley": PageHinkley,
    "kswin": Kswin,
    "hddm-a": HddmA,
    "hddm-w": HddmW,
    "fhddm": Fhddm,
}


def _river() -> Any:
    return import_module("river.drift")


def _floats(state: bytes, count: int) -> list[float]:
    """Raises: StateDamageError where there are not ``count`` numbers."""
    if len(state) != 8 * count:
        raise StateDamageError(f"A detector's state takes {8 * count} bytes, {len(state)} came back. {RESTORE}")
    numbers: Floats | NDArray[Any] = np.frombuffer(state, dtype=np.float64)
    return [float(number) for number in numbers]


def _set(restored: Any, state: bytes) -> None:
    """Raises: StateDamageError where Rust cannot read the bytes."""
    try:
        restored.__setstate__(state)
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # its class cannot be imported
            raise
        raise StateDamageError(f"river cannot read the stored state of a detector ({error}). {RESTORE}") from error
