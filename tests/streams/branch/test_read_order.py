"""A replay meets rows and labels in the order in which its parent did, whatever the size of its reads."""

from __future__ import annotations

import random

import pytest

from millrace.streams.branch.read_order import Retraced, future, onward, past, path_of
from millrace.streams.checksummed import seal
from millrace.streams.journal.entries import End, Fork, Parent, Step
from millrace.streams.records import Event, Read, make_read
from millrace.streams.source import ListSource, Topic
from millrace.streams.stream import ListStream


class TwoLists:
    """A source of two partitions, each read in turn."""

    def __init__(self, rows: int) -> None:
        self._lists = {name: ListSource([Event(at, at, None, b"", b"") for at in range(rows)], name) for name in ("a", "b")}

    @property
    def position(self) -> dict[str, int]:
        return {tp: at for source in self._lists.values() for tp, at in source.position.items()}

    def topics(self) -> dict[str, Topic]:
        return {name: Topic(name, 1) for name in self._lists}

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {tp: at for source in self._lists.values() for tp, at in source.bounds().items()}

    def seek(self, position: dict[str, int]) -> None:
        for name, source in self._lists.items():
            source.seek({f"{name}:0": position[f"{name}:0"]})

    def next_batch(self, limit: int) -> list[Read]:
        return [read for source in self._lists.values() for read in source.next_batch(limit // 2 or 1)]

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


def journal(branch: str, reads: list[list[tuple[str, int, int]]], parent: Parent | None, successor: str | None) -> ListStream:
    """A branch that began at a parent, read so, and ended in favour of another where one is named."""
    stream, fields = ListStream(), {"learner": "ridge", "learner_revision": 1, "config_sha256": "", "features_sha256": ""}
    entries = [Fork(branch=branch, seq=1, epoch=0, parent=parent, positions={}, topics={}, seed=0, **fields)]
    for step in reads:
        lines = [(*read, read[2] - read[1], 0) for read in step]
        entries.append(Step(branch=branch, seq=len(entries) + 1, epoch=0, reads=lines, clock_ms=0))
    if successor is not None:
        entries.append(End(branch=branch, seq=len(entries) + 1, epoch=0, cause="replay", successor=successor))
    for entry in entries:
        stream.send(seal(entry))
    return stream


MAIN = [[("a:0", 0, 2)], [("b:0", 0, 3)], [("a:0", 2, 5)], [("b:0", 3, 4)]]
FIRST = [[("a:0", 2, 5)], [("b:0", 3, 4)], [("b:0", 4, 6)], [("a:0", 5, 6)]]  # from main's seq 3 on, and further
SECOND = [[("b:0", 6, 7)], [("a:0", 6, 9)]]
CHAIN = {
    "main": journal("main", MAIN, None, "first"),
    "first": journal("first", FIRST, Parent("main", 3, ""), "second"),
    "second": journal("second", SECOND, Parent("first", 5, ""), None),
}


def test_a_replay_of_an_old_version_goes_the_way_of_its_branch_and_then_of_those_that_took_its_place():
    """Each offset once, in the order in which it was met first; what a successor had read again is passed."""
    path = onward(future(CHAIN.__getitem__, "main", 2), {"a:0": 2, "b:0": 0})
    assert path == [
        ("b:0", 0, 3),
        ("a:0", 2, 5),
        ("b:0", 3, 4),
        ("b:0", 4, 6),
        ("a:0", 5, 6),
        ("b:0", 6, 7),
        ("a:0", 6, 9),
    ]


def test_a_branch_from_nothing_goes_the_way_that_led_to_the_live_one():
    """Its parents' reads up to where each was left, then its own; where it begins before any of them, none is left out."""
    path = onward(past(CHAIN.__getitem__, "second"), {"a:0": 0, "b:0": 1})
    assert path == [
        ("a:0", 0, 2),
        ("b:0", 1, 3),
        ("a:0", 2, 5),
        ("b:0", 3, 6),
        ("a:0", 5, 6),
        ("b:0", 6, 7),
        ("a:0", 6, 9),
    ]
    assert onward([("a:0", 5, 8)], {"a:0": 2}) == [("a:0", 2, 8)] and onward([("c:0", 0, 4)], {"a:0": 0}) == []


def test_a_third_branch_that_looked_at_its_own_parent_alone_would_go_another_way():
    """The broken twin: the order of the first branch is lost where the second began."""
    own = onward(path_of([], 0), {"a:0": 0, "b:0": 1})
    assert own != onward(past(CHAIN.__getitem__, "second"), {"a:0": 0, "b:0": 1})
