"""The windows of entities, and the fields made of them, against a slow writing-down; however rows are cut: the same bits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from slow_past import SlowEvent, SlowWindows, slow_fields

from millrace.streams.entity.events import Events, Seen
from millrace.streams.entity.past import past_of
from millrace.streams.entity.windows import Windows
from millrace.streams.parts import pack, unpack
from millrace.streams.schema import ALWAYS, LARGEST, PAST, Field

WINDOW, NUMBERS = 5, 2
SOURCES = ("a", "b")
Row = tuple[int, int, tuple[float, float], int, bool, int]  # entity, time, values, identity, whether it counts, clock


def fields() -> list[Field]:
    """Every ``as``, of both values, over one event and over as many as there can be."""
    return [
        Field(f"{how} {of} {over}", of=of, as_=how, over=str(over), missing="reject" if how in ALWAYS else "indicator")
        for how in PAST
        for of in SOURCES
        for over in (1, 3, WINDOW - (how == "change"))
        if over
    ]


def stream(seed: int, rows: int, entities: int, idle_ms: int) -> list[Row]:
    """Rows with all that may happen: repeats, times that go back or stand still, gaps of years, NaN, looks, long silences."""
    chance, clock, told = random.Random(seed), 1_000_000, list[Row]()
    for _ in range(rows):
        if told and chance.random() < 0.08:
            entity, at, values, identity, counts, _ = chance.choice(told[-12:])
            told.append((entity, at, values, identity, counts, clock))
            continue
        clock += chance.choice([0, 0, 1, 3, 40, idle_ms // 3 if chance.random() < 0.05 else 2])
        at = clock + chance.choice([0, 0, 0, -5, -50, 7, 3 * 31_536_000_000 if chance.random() < 0.01 else 0])
        values = (chance.choice([0.1, -2.5, 1e9, chance.gauss(0, 1)]), chance.choice([np.nan, 3.25, chance.random()]))
        entity = chance.randrange(entities) if chance.random() < 0.8 else 0
        told.append((entity, at, values, chance.randrange(1 << 40), chance.random() < 0.85, clock))
    return told


def columns(rows: Sequence[Row]) -> Events:
    """The same as arrays."""
    entity, at, values, identity, counts, clock = zip(*rows, strict=True)
    ints = (np.array(column, dtype=np.int64) for column in (entity, at, identity, clock))
    entities, times, identities, clocks = ints
    return Events(entities, times, np.array(values), identities, np.array(counts), clocks)


def slowly(rows: Sequence[Row], slow: SlowWindows) -> np.ndarray:
    """The fields of all rows, one after the other."""
    told = []
    for entity, at, values, identity, counts, clock in rows:
        seen = slow.row(entity, SlowEvent(at, values, identity), clock, counts)
        told.append(slow_fields(fields(), SOURCES, seen, at))
    return np.array(told)


def cut(rows: int, chance: random.Random) -> list[int]:
    """Ends of pieces, among them empty ones."""
    ends = sorted(chance.randrange(rows + 1) for _ in range(chance.choice([0, 1, 7, rows // 4])))
    return [0, *ends, rows]


def taken(windows: Windows, rows: Sequence[Row], ends: Sequence[int], let_go: bool) -> np.ndarray:
    """The fields of all rows, taken in pieces; with ``let_go`` the clock is told after each."""
    told = []
    for start, stop in zip(ends, ends[1:], strict=False):
        if start == stop:
            continue
        events = columns(rows[start:stop])
        seen = windows.take(events)
        told.append(past_of(fields(), SOURCES, seen, events.at))
        if let_go:
            windows.let_go(int(events.clock_ms[-1]))
    return np.concatenate(told)


@pytest.mark.parametrize(
    ("entities", "most", "idle_ms"), [(4, 100, 300), (30, 100, 90), (40, 7, 200), (25, 3, 10**6), (9, 1, 50)]
)
@pytest.mark.parametrize("seed", range(4))
def test_every_field_is_what_a_slow_writing_down_says_however_rows_are_cut(
    seed: int, entities: int, most: int, idle_ms: int
) -> None:
    """Fields, windows and counts, with entities idle and crowded out in the midst."""
    rows, chance = stream(seed, 250, entities, idle_ms), random.Random(seed)
    slow = SlowWindows(WINDOW, idle_ms, most)
    expected = slowly(rows, slow)
    slow.let_go(rows[-1][5])
    states = []
    for let_go in (False, True, True, False):
        windows = Windows(WINDOW, idle_ms, most, NUMBERS)
        told = taken(windows, rows, cut(len(rows), chance), let_go)
        windows.let_go(rows[-1][5])
        assert told.tobytes() == expected.tobytes()
        assert msgspec.to_builtins(windows.counts) == slow.counts
        states.append(pack(windows.state()))
    assert len(set(states)) == 1
    held = windows.state()
    assert held["ids"].tolist() == sorted(slow.held)
    for row, entity in enumerate(held["ids"].tolist()):
        window, filled = slow.held[entity], int(held["filled"][row])
        assert (held["clock_ms"][row], held["place"][row]) == (window.clock_ms, window.place)
        for name in ("at", "identity", "values"):
            expected_of = np.array([getattr(event, name) for event in window.events])
            assert held[name][row, :filled].tobytes() == expected_of.tobytes()
            assert not held[name][row, filled:].any()


def test_all_that_may_happen_happens_in_these_streams() -> None:
    """Else they would prove little."""
    total = dict.fromkeys(("events", "repeated", "older", "idle", "crowded"), 0)
    for entities, most, idle_ms in ((30, 100, 90), (40, 7, 200)):
        slow = SlowWindows(WINDOW, idle_ms, most)
        slowly(stream(0, 400, entities, idle_ms), slow)
        total = {name: count + slow.counts[name] for name, count in total.items()}
    assert min(total.values()) > 5, total


@pytest.mark.parametrize("seed", range(6))
def test_repeats_among_more_events_of_one_moment_than_a_window_has(seed: int) -> None:
    """An event that has left its window is a new one when it comes again; one that is still there is not."""
    chance, clock, rows = random.Random(seed), 1_000, list[Row]()
    for _ in range(300):
        clock += chance.random() < 0.06
        identity = chance.randrange(WINDOW + 2)
        rows.append((chance.randrange(3), clock, (float(identity), 0.5), identity, True, clock))
    slow = SlowWindows(WINDOW, 10**6, 3)
    expected = slowly(rows, slow)
    assert min(slow.counts["repeated"], slow.counts["events"]) > 50
    for _ in range(3):
        windows = Windows(WINDOW, 10**6, 3, NUMBERS)
        assert taken(windows, rows, cut(len(rows), chance), False).tobytes() == expected.tobytes()
        assert msgspec.to_builtins(windows.counts) == slow.counts


class Counted(Windows):
    """Counts the pieces that it was halved to."""

    pieces = 0

    def take(self, events: Events) -> Seen:
        self.pieces += 1
        return super().take(events)


def test_a_piece_with_repeats_is_taken_at_once() -> None:
    """A producer that sends every record twice costs twice as much, and not a call for each row."""
    rows = [row for row in stream(3, 200, 30, 10**6) for _ in range(2)]
    windows, slow = Counted(WINDOW, 10**6, 100, NUMBERS), SlowWindows(WINDOW, 10**6, 100)
    assert taken(windows, rows, [0, len(rows)], False).tobytes() == slowly(rows, slow).tobytes()
    assert windows.pieces == 1 and windows.counts.repeated > 150


def test_a_state_goes_on_as_the_windows_it_was_taken_of() -> None:
    """After its bytes were written and read."""
    rows = stream(5, 300, 12, 200)
    whole, first = Windows(WINDOW, 200, 6, NUMBERS), Windows(WINDOW, 200, 6, NUMBERS)
    expected = taken(whole, rows, [0, 300], False)
    begun = taken(first, rows, [0, 140], False)
    second = Windows(WINDOW, 200, 6, NUMBERS)
    second.counts = first.counts
    second.load(unpack(pack(first.state()), "here"))
    assert np.concatenate([begun, taken(second, rows, [140, 300], False)]).tobytes() == expected.tobytes()
    assert pack(second.state()) == pack(whole.state()) and second.counts == whole.counts


def test_what_replicas_get_looks_as_the_windows_do() -> None:
    """Of entities that are kept, and of others."""
    rows = stream(6, 300, 12, 10**9)
    windows, replica = Windows(WINDOW, 10**9, 100, NUMBERS), Windows(WINDOW, 10**9, 100, NUMBERS)
    windows.take(columns(rows))
    replica.load(unpack(pack(windows.answering()), "here"))
    asked, now_ms = np.arange(-1, 14), rows[-1][5]
    ours, theirs = windows.look(asked, now_ms), replica.look(asked, now_ms)
    before = pack(windows.state())
    assert same(ours, theirs) and ours.length.max() == WINDOW and ours.length[0] == 0
    assert pack(windows.state()) == before, "looking changes nothing"


def test_a_replica_sees_of_idle_entities_what_the_fold_would_see() -> None:
    """At every time of a silence, before the state's clock too, and without a change to anything."""
    rows = stream(8, 200, 12, 90)
    last_ms = rows[-1][5]
    windows, replica = Windows(WINDOW, 90, 100, NUMBERS), Windows(WINDOW, 90, 100, NUMBERS)
    windows.take(columns(rows))
    windows.let_go(last_ms)
    state = unpack(pack(windows.state()), "here")
    replica.load(unpack(pack(windows.answering()), "here"))
    entities, seen = np.array(sorted({row[0] for row in rows})), set()
    for now_ms in (0, last_ms, *range(last_ms + 1, last_ms + 95)):
        fold = Windows(WINDOW, 90, 100, NUMBERS)
        fold.load(state)
        clock_ms = np.full(len(entities), max(last_ms, now_ms))
        asked = Events(entities, clock_ms, np.zeros((len(entities), 2)), entities, np.zeros(len(entities), bool), clock_ms)
        fold.let_go(max(last_ms, now_ms))
        told = replica.look(entities, now_ms)
        assert same(told, fold.take(asked))
        seen.add(int((told.length > 0).sum()))
    assert min(seen) == 0 and len(seen) > 3


def same(one: Seen, other: Seen) -> bool:
    """Whether both saw the same, bit for bit."""
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("values", "at", "length"))


class OwnEvent(Windows):
    """Broken: a row sees its own event."""

    def take(self, events: Events) -> Seen:
        super().take(events)
        return self.look(events.entity, int(events.clock_ms[-1]))


class ByPieces(Windows):
    """Broken: rows of one piece do not see each other."""

    def take(self, events: Events) -> Seen:
        seen = self.look(events.entity, int(events.clock_ms[0]))
        super().take(events)
        return seen


class TakesAll(Windows):
    """Broken: a time that goes back, or comes twice, is taken like any other."""

    def take(self, events: Events) -> Seen:
        later = np.arange(len(events)) + self.counts.events + 10**7
        return super().take(Events(events.entity, later, events.values, later, events.counts, events.clock_ms))


class NeverLetsGo(Windows):
    """Broken: nobody is idle."""

    def __init__(self, window: int, idle_ms: int, most: int, numbers: int) -> None:
        super().__init__(window, 10**15, most, numbers)


class HasRoom(Windows):
    """Broken: there is room for all."""

    def __init__(self, window: int, idle_ms: int, most: int, numbers: int) -> None:
        super().__init__(window, idle_ms, 10**6, numbers)


@pytest.mark.parametrize("broken", [OwnEvent, ByPieces, TakesAll, NeverLetsGo, HasRoom])
def test_a_broken_twin_is_told_apart(broken: type[Windows]) -> None:
    """Each breaks one promise."""
    rows, slow = stream(2, 250, 20, 90), SlowWindows(WINDOW, 90, 4)
    expected = slowly(rows, slow)
    assert slow.counts["crowded"] > 0
    windows = broken(WINDOW, 90, 4, NUMBERS)
    assert not np.array_equal(taken(windows, rows, [0, 100, 101, 250], True), expected, equal_nan=True)


@pytest.mark.parametrize("how", PAST)
def test_no_field_can_be_taken_for_another(how: str) -> None:
    """No two of them are alike in these streams."""
    rows, slow = stream(3, 200, 6, 10**6), SlowWindows(WINDOW, 10**6, 100)
    told = slowly(rows, slow)
    names = [field.name for field in fields()]
    own = told[:, names.index(f"{how} a 3")]
    others = [told[:, names.index(f"{other} a 3")] for other in PAST if other != how]
    assert all(own.tobytes() != other.tobytes() for other in others)


@pytest.mark.parametrize("scale", [1.0, 0.25, 1e-30])
@pytest.mark.parametrize("signs", [(1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)])
@pytest.mark.parametrize("how", PAST)
def test_a_field_stays_in_its_range_where_values_are_as_large_as_can_be(
    how: str, signs: tuple[float, float], scale: float
) -> None:
    """Sums and changes of the largest numbers, and a field whose scale lets it hold less; a learner refuses what is beyond."""
    missing = "reject" if how in ALWAYS else "mean"
    made = [Field(f"{how} {over}", of="a", as_=how, over=str(over), missing=missing, scale=scale) for over in (1, 3)]
    rows: list[Row] = [(7, at, (LARGEST * signs[at % 2], 0.0), at, True, at) for at in range(8)]
    windows, slow = Windows(WINDOW, 10**9, 9, NUMBERS), SlowWindows(WINDOW, 10**9, 9)
    events = columns(rows)
    told = past_of(made, SOURCES, windows.take(events), events.at)
    expected = [
        slow_fields(made, SOURCES, slow.row(entity, SlowEvent(at, values, identity), clock, counts), at)
        for entity, at, values, identity, counts, clock in rows
    ]
    assert told.tobytes() == np.array(expected).tobytes()
    assert np.nanmax(np.abs(told / scale)) <= LARGEST
