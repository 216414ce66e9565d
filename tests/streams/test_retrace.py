"""A replay meets rows and labels in the order in which its parent did, whatever the size of its reads."""

from __future__ import annotations

import random

import pytest

from millrace.streams.entries import Step
from millrace.streams.records import Event, Read, make_read
from millrace.streams.retrace import Retraced, path_of
from millrace.streams.source import ListSource, Topic


class TwoLists:
    """A source of two partitions, each read in turn."""

    def __init__(self, rows: int) -> None:
        self._lists = {name: ListSource([Event(at, at, None, b"", b"") for at in range(rows)], name) for name in ("a", "b")}

    @property
    def position(self) -> dict[str, int]:
        return {tp: at for one in self._lists.values() for tp, at in one.position.items()}

    def topics(self) -> dict[str, Topic]:
        return {name: Topic(name, 1) for name in self._lists}

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {tp: at for one in self._lists.values() for tp, at in one.bounds().items()}

    def seek(self, position: dict[str, int]) -> None:
        for name, one in self._lists.items():
            one.seek({f"{name}:0": position[f"{name}:0"]})

    def next_batch(self, limit: int) -> list[Read]:
        return [read for one in self._lists.values() for read in one.next_batch(limit // 2 or 1)]

    def read(self, tp: str, start: int, stop: int) -> Read:
        return make_read(tp, start, stop, self._lists[tp[0]].read(tp, start, stop).events)


def steps(reads: list[list[tuple[str, int, int]]]) -> list[Step]:
    """Entries that say so."""
    return [
        Step(branch="main", seq=at, epoch=1, reads=[(*read, read[2] - read[1], 0) for read in step], clock_ms=0)
        for at, step in enumerate(reads, 3)
    ]


LIVED = [[("a:0", 0, 2)], [("a:0", 2, 3), ("b:0", 0, 4)], [("b:0", 4, 5)], [("a:0", 3, 9)], [("b:0", 5, 6)]]


def rows(source: Retraced, limits: random.Random) -> list[tuple[str, int]]:
    """Every record in the order in which it is read."""
    seen = []
    while reads := source.next_batch(limits.randint(1, 7)):
        seen += [(read.tp, event.offset) for read in reads for event in read.events]
    return seen


def test_neighbours_are_one_piece_and_what_came_before_is_left_out():
    """The path begins after the version's own entries."""
    assert path_of(steps(LIVED), 0) == [("a:0", 0, 3), ("b:0", 0, 5), ("a:0", 3, 9), ("b:0", 5, 6)]
    assert path_of(steps(LIVED), 4)[0] == ("b:0", 4, 5)


@pytest.mark.parametrize("seed", range(20))
def test_rows_come_in_the_order_in_which_they_came_and_a_second_process_goes_on_in_it(seed):
    """In reads of any size, through a stop at any place, and past the path's end to the log's."""
    chance = random.Random(seed)
    lived = [(tp, at) for step in LIVED for tp, start, stop in step for at in range(start, stop)]
    path = path_of(steps(LIVED), 0)
    whole = rows(Retraced(TwoLists(12), path), chance)
    assert whole[: len(lived)] == lived
    assert sorted(whole) == [(tp, at) for tp in ("a:0", "b:0") for at in range(12)]
    first, second = Retraced(TwoLists(12), path), Retraced(TwoLists(12), path)
    seen = []
    for _ in range(chance.randint(0, 4)):
        seen += [(read.tp, event.offset) for read in first.next_batch(chance.randint(1, 5)) for event in read.events]
    second.seek(first.position)
    seen += rows(second, chance)
    assert seen[: len(lived)] == lived and sorted(seen) == sorted(whole)


def test_large_messages_are_read_a_few_at_a_time():
    """One may hold many rows, and a replay of a thousand of them must not hold them all."""
    events = [Event(at, at, None, b"", b"x" * 1_000_000) for at in range(70)]
    source, sizes = Retraced(ListSource(events, "a"), [("a:0", 0, 70)]), []
    while reads := source.next_batch(4096):
        sizes += [len(read.events) for read in reads]
    assert sizes[0] == 64 and set(sizes[1:]) <= {1, 2, 4} and sum(sizes) == 70
