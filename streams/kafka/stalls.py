"""Which partitions give nothing though the log has something: clients of every kind have gone silent on one of many.

Known cases are in docs/decisions/0004-kafka-python.md. A client is mended in two steps. It is sent to the position once more;
if that does not help, another client takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from millrace.streams.source import Position


@dataclass(slots=True)
class Stalls:
    """Looks at positions and ends from time to time."""

    after_s: float  # with something to read and nothing read, a partition has stalled
    _still: dict[str, tuple[int, float, int]] = field(default_factory=dict)  # position, since when, how often mended

    def see(self, position: Position, ends: Position, now_s: float) -> tuple[list[str], list[str]]:
        """Partitions to seek anew, and those that need another client, as of now.

        >>> stalls, at, end = Stalls(10.0), {"t:0": 5}, {"t:0": 9}
        >>> [stalls.see(at, end, now_s) for now_s in (0.0, 9.0, 10.0, 19.0, 20.0)]
        [([], []), ([], []), (['t:0'], []), ([], []), ([], ['t:0'])]
        """
        seek, replace = list[str](), list[str]()
        for tp, at in position.items():
            before, since_s, mended = self._still.get(tp, (-1, now_s, 0))
            if at >= ends.get(tp, at) or at != before:
                self._still[tp] = (at, now_s, 0)
            elif now_s - since_s >= self.after_s:
                (seek if mended % 2 == 0 else replace).append(tp)
                self._still[tp] = (at, now_s, mended + 1)
        return seek, replace
