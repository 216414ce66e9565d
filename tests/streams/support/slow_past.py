"""Windows and the fields of an entity's past, written down slowly: dictionaries, lists and Python's own numbers, row by row.

Nothing of ours is imported but what a field declares. Whoever wants to know what a row must see reads it here.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NONE = math.nan


@dataclass
class SlowEvent:
    """An event in a window."""

    at: int
    values: tuple[float, ...]
    identity: object


@dataclass
class SlowWindow:
    """Of one entity, oldest first."""

    events: list[SlowEvent]
    clock_ms: int
    place: int  # how many events had moved a window with its last one


@dataclass
class SlowWindows:
    """Of all entities; the dictionary is in the order of their last events."""

    window: int
    idle_ms: int
    most: int
    held: dict[object, SlowWindow] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("events", "repeated", "older", "ahead", "outside", "idle", "crowded"), 0)
    )

    def let_go(self, clock_ms: int) -> None:
        """Who is idle goes."""
        gone = [name for name, window in self.held.items() if clock_ms - window.clock_ms > self.idle_ms]
        for name in gone:
            del self.held[name]
        self.counts["idle"] += len(gone)

    def row(self, name: object, event: SlowEvent, clock_ms: int, counts: bool) -> list[SlowEvent]:
        """What a row sees, oldest first, and then, where it counts, its event."""
        self.let_go(clock_ms)
        seen = list(self.held[name].events) if name in self.held else []
        if not counts:
            return seen
        if seen and event.at < seen[-1].at:
            self.counts["older"] += 1
            return seen
        if any((one.at, one.identity) == (event.at, event.identity) for one in seen):
            self.counts["repeated"] += 1
            return seen
        self.counts["events"] += 1
        if name in self.held:
            del self.held[name]
        elif len(self.held) == self.most:
            del self.held[next(iter(self.held))]
            self.counts["crowded"] += 1
        self.held[name] = SlowWindow([*seen, event][-self.window :], clock_ms, self.counts["events"])
        return seen


def slow_field(how: str, over: int, values: Sequence[float], times: Sequence[int], at: int) -> float:
    """One field of a row at ``at`` from the values and times of the events before it, oldest first."""
    newest_first, times_back = list(values)[::-1], list(times)[::-1]
    if how == "lag":
        return newest_first[over - 1] if len(values) >= over else NONE
    if how == "change":
        return newest_first[0] - newest_first[over] if len(values) > over else NONE
    if how == "since":
        return max(at - times_back[over - 1], 0) / 1000 if len(values) >= over else NONE
    return slow_total(how, [value for value in list(values)[-over:] if not math.isnan(value)])


def slow_total(how: str, present: Sequence[float]) -> float:
    """One that is made of several values, oldest first, of which none is missing."""
    if how == "count":
        return float(len(present))
    total = 0.0
    for value in present:
        total += value
    if how == "sum":
        return total
    if not present:
        return NONE
    if how in ("min", "max"):
        return min(present) if how == "min" else max(present)
    mean = total / len(present)
    if how == "mean":
        return mean
    squares = 0.0
    for value in present:
        squares += (value - mean) * (value - mean)
    return math.sqrt(squares / len(present))


def slow_fields(past: Sequence[Any], sources: Sequence[str], seen: Sequence[SlowEvent], at: int) -> list[float]:
    """All declared fields of the past of one row, where (value - center) / scale is not to go beyond 1e100."""
    times = [event.at for event in seen]
    told = [
        slow_field(one.as_, int(one.over), [event.values[sources.index(one.of)] for event in seen], times, at) for one in past
    ]
    return [slow_clip(number, one.center, one.scale) for number, one in zip(told, past, strict=True)]


def slow_clip(number: float, center: float, scale: float) -> float:
    """The nearest number that a field may hold, with a billionth of room for what is centred and scaled."""
    most = 1e100 if (center, scale) == (0.0, 1.0) else 1e100 * (1 - 1e-9)
    least, most = max(-1e100, center - most * scale), min(1e100, center + most * scale)
    return least if number < least else most if number > most else number


def slow_identity(cells: Sequence[float | str | None]) -> int:
    """What the windows keep of a row of the stream beside its time: 64 bits of all cells, signed."""
    total = 0
    for place, cell in enumerate(cells, 1):
        if cell is None or isinstance(cell, str):
            bits = 0 if cell is None else int.from_bytes(hashlib.blake2b(cell.encode(), digest_size=8).digest(), "little")
        else:
            (bits,) = struct.unpack("<Q", struct.pack("<d", cell))
        total += slow_mixed(bits ^ slow_mixed(place * 0x9E3779B97F4A7C15))
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


def slow_mixed(number: int) -> int:
    """SplitMix64 of Steele, Lea and Flood, on Python's integers."""
    most = (1 << 64) - 1
    z = (number + 0x9E3779B97F4A7C15) & most
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & most
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & most
    return z ^ (z >> 31)
