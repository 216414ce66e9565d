"""Surgical replay: a fork that leaves the poison out is the model that never saw it, through any crash."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import msgspec
import pytest
from branches import HOST, SMALL, START_MS, Rooms, SteppedClock, everything, make_events, run_to_end
from dying_storage import DyingStore, DyingStream
from forks import TILL_7, Forked, finish, forked, never_poisoned, phases_to, poisoned, truth
from hypothesis import given, settings
from hypothesis import strategies as some
from late_labels import RULES, late_fold_spec, make_late_events

from millrace.streams.branch.branch import FoldSpec, refold, restore
from millrace.streams.branch.difference import difference
from millrace.streams.branch.forks import begin_fork, end_branch
from millrace.streams.branch.verify import verify
from millrace.streams.errors import DamageError, EndedError, ReplacedError
from millrace.streams.journal.entries import End, Step
from millrace.streams.journal.exclusions import Key, OffsetRange, Time, describe, left_out
from millrace.streams.journal.journal import Cursor, Writer, counted, summarise
from millrace.streams.labels.served import LateLabel, Prediction, encode, encode_row
from millrace.streams.parts import pack, sha256
from millrace.streams.records import Event, encode_headers
from millrace.streams.source import CrashError
from millrace.streams.state.exclusion_reader import Excluding
from millrace.streams.stream import ListStream
from millrace.streams.worker.worker import Worker, WorkerIdentity

LIMIT = 1e-8  # relative; batches are cut elsewhere, so the last bits of sums differ


def far(learner, other) -> float:
    """How far apart two learners are, classes in any order of columns aside (they come in the same)."""
    return difference(truth(learner), truth(other))


def apart(late: bool, seed: int, read_rows: int = 5) -> tuple[float, float]:
    """How far the fork and its parent are from the model that never saw the poison."""
    forked_rooms = forked(late, seed, read_rows)
    end = forked_rooms.parent.items[-1].offset + 1
    clean = never_poisoned(forked_rooms)
    parent = forked_rooms.parent.worker(how=forked_rooms.how)
    mended = finish(forked_rooms.worker(), end)
    assert mended.fold.records == end, "the fates add up"
    return far(mended, clean), far(parent, clean)


@settings(max_examples=30, deadline=None)
@given(late=some.booleans(), seed=some.integers(0, 10_000), read_rows=some.integers(1, 40))
def test_the_fork_is_the_model_that_never_saw_the_poison(late, seed, read_rows):
    """G, Q, classes, counts and answers, to 1e-8, with and without late labels; the parent is another."""
    mended, parent = apart(late, seed, read_rows)
    assert mended <= LIMIT
    assert parent > LIMIT


class Poisoned(FoldSpec):
    """Broken: reads a fork as if it excluded nothing."""

    def reader_of(self, fork):
        return self.reader


def test_a_fork_that_learns_an_excluded_row_is_another_model():
    """The comparison notices a broken twin."""
    forked_rooms = forked()
    fields = {name: getattr(forked_rooms.how, name) for name in forked_rooms.how.__dataclass_fields__}
    twin = Forked(forked_rooms.parent, Poisoned(**fields))
    mended = finish(twin.worker(), forked_rooms.parent.items[-1].offset + 1)
    assert far(mended, never_poisoned(forked_rooms)) > LIMIT


@pytest.mark.parametrize("late", [False, True])
def test_a_fork_begins_with_its_parents_hash_and_lets_nothing_out_but_its_journal_and_checkpoints(late):
    """Copied parts, one mark of epoch 0, and not one score or dead letter more than the parent left."""
    forked_rooms = forked(late)
    left = {topic: list(records) for topic, records in forked_rooms.parent.producer.records.items()}
    worker = finish(forked_rooms.worker(), forked_rooms.parent.items[-1].offset + 1)
    fork, mark = list(counted(forked_rooms.journal, "mended", Cursor()))[:2]
    assert (mark.seq, mark.epoch, mark.state_seq) == (2, 0, 1)
    assert mark.state_sha256 == fork.parent.state_sha256 and fork.exclude == [TILL_7]
    assert forked_rooms.parent.producer.records == left
    assert worker.fold.counts.rejected == forked_rooms.parent.worker(how=forked_rooms.how).fold.counts.rejected
    assert worker.fold.counts.passed > 0


def test_verify_proves_a_fork_from_the_version_it_begins_at():
    """And the parent as ever; a start that is not the parent's is a finding."""
    forked_rooms = forked()
    worker = finish(forked_rooms.worker(), forked_rooms.parent.items[-1].offset + 1)
    worker.close()
    report = verify(forked_rooms.how, forked_rooms.backends(), "mended", SMALL.keep)
    assert report.findings == [] and report.proved[-1].version == worker.newest_version
    assert report.base == f"version {summarise(forked_rooms.journal, 'mended').fork.parent.branch}.{report_seq(forked_rooms)}"
    assert verify(forked_rooms.how, forked_rooms.parent.backends(), "main", SMALL.keep).findings == []
    forged = ListStream()
    fork = forked_rooms.fork()
    parent = msgspec.structs.replace(fork.parent, state_sha256="0" * 64)
    begin_fork(forked_rooms.how, replace(forked_rooms.backends(), journal=forged), msgspec.structs.replace(fork, parent=parent))
    report = verify(forked_rooms.how, replace(forked_rooms.backends(), journal=forged), "mended", SMALL.keep)
    assert report.findings


def report_seq(forked_rooms: Forked) -> int:
    """Of the version that the fork begins at."""
    return summarise(forked_rooms.journal, "mended").fork.parent.seq


def test_a_fork_whose_start_is_damaged_goes_back_to_the_version_and_without_that_stops_with_the_choices():
    """Its own copy, then the parent's, then an error that says what may be done."""
    forked_rooms = forked()
    forked_rooms.worker()
    summary = summarise(forked_rooms.journal, "mended")
    del forked_rooms.parent.store.blobs["mended", summary.marks[0].checkpoint]
    restored = restore(forked_rooms.how, forked_rooms.backends(), summary)
    assert restored.mark is None and restored.state_seq == 1
    parts = {name: pack(part) for name, part in restored.fold.parts().items()}
    assert parts["learner"] in forked_rooms.parent.store.blobs.values()
    del forked_rooms.parent.store.blobs["main", summary.fork.learner_from]
    with pytest.raises(DamageError, match="plan a replay from another version"):
        restore(forked_rooms.how, forked_rooms.backends(), summary)


@pytest.mark.parametrize("late", [False, True])
def test_a_crash_after_any_phase_of_a_replay_changes_nothing(late):
    """Wherever the process ends, the fork is the same bit for bit, and its journal folds to it."""
    forked_rooms = forked(late)
    end = forked_rooms.parent.items[-1].offset + 1
    whole_worker = forked_rooms.worker()
    phases = sum(1 for _ in phases_to(whole_worker, end))
    whole = everything(whole_worker)
    for count in range(1, phases + 1, 3 if late else 1):
        again = Forked(forked_rooms.parent, forked_rooms.how)
        for _ in itertools.islice(phases_to(again.worker(), end), count):
            pass
        assert everything(finish(again.worker(), end)) == whole, count
    fold = restore(forked_rooms.how, forked_rooms.backends(), replace(summarise(forked_rooms.journal, "mended"), marks=[])).fold
    entries = [entry for entry in counted(forked_rooms.journal, "mended", Cursor()) if isinstance(entry, Step)]
    list(refold(fold, entries, forked_rooms.backends().source, forked_rooms.how.reader_of(forked_rooms.fork())))
    assert {name: pack(part) for name, part in fold.parts().items()} == whole


def survive(forked_rooms: Forked) -> dict[str, bytes]:
    """Start processes until one reaches the end."""
    end = forked_rooms.parent.items[-1].offset + 1
    while True:
        try:
            return everything(finish(forked_rooms.worker(), end))
        except CrashError:
            continue


def test_a_crash_while_a_fork_is_begun_or_written_changes_nothing():
    """Before and after every append of its journal, and at every blob of its store."""
    forked_rooms = forked()
    whole = survive(forked_rooms)
    for at, after in itertools.product(range(1, len(forked_rooms.journal.values) + 1), (False, True)):
        assert survive(Forked(forked_rooms.parent, forked_rooms.how, DyingStream(at, after))) == whole, (at, after)
    for blob in range(1, 12):
        store = DyingStore(blob)
        store.blobs = {key: value for key, value in forked_rooms.parent.store.blobs.items() if key[0] == "main"}
        rooms = replace(forked_rooms.parent, store=store)
        assert survive(Forked(rooms, forked_rooms.how)) == whole, blob
        assert store.left < 0, "nobody died"


# --- late labels that are left out


ROW = encode_row({"x": [1, 2, 3], "town": "p"})


def told(*records: tuple[int, Prediction | LateLabel, bool]) -> list[Event]:
    """Records at these milliseconds, by the poisoner or not."""
    headers = encode_headers((("producer", b"till-7"),))
    return [
        Event(at, START_MS + ms, None, headers if bad else b"", encode(record)) for at, (ms, record, bad) in enumerate(records)
    ]


def served(name: str) -> Prediction:
    """An answer."""
    return Prediction(name, ROW, "main", 1, 3, (), ())


class Silent(Excluding):
    """Broken: says nothing of labels that it leaves out, so their rows get the default label."""

    def decode(self, events, tp, /):
        return super().decode([event for event in events if not left_out(self.exclude, event, tp)], tp)


def counts_of(events: list[Event], how: FoldSpec, read_rows: int) -> dict[str, int]:
    """What became of records on a branch that leaves the poisoner out from its beginning."""
    rooms = Rooms(events, read_rows=read_rows)
    fork = msgspec.structs.replace(how.new_fork("main", rooms.backends().source), exclude=[TILL_7])
    for declared in (how.config, how.schema.declared):
        rooms.store.put("main", declared)
    Writer(rooms.journal, "main", Cursor()).append(fork)
    worker = rooms.worker(how=how)
    run_to_end(worker, len(events))
    assert worker.fold.records == len(events), "the fates add up"
    join = worker.fold.labels
    return msgspec.structs.asdict(join.counts) | {"learned": worker.fold.counts.learned + worker.fold.batches.waiting}


STORY = told(
    (0, served("poisoned"), False),
    (1, served("unanswered"), False),
    (2, served("answered"), False),
    (3, LateLabel("foretold", "b"), True),
    (4, served("foretold"), False),
    (5, served("mended"), False),
    (6, LateLabel("poisoned", "b"), True),
    (7, LateLabel("mended", "b"), True),
    (8, LateLabel("mended", "a"), False),
    (9, LateLabel("answered", "b"), False),
    (10, served("of the poisoner"), True),
    (11, LateLabel("of the poisoner", "a"), False),
    (12, LateLabel("foretold too early", "b"), True),
    (250, served("foretold too early"), False),
    (400, served("later"), False),
    (600, served("latest"), False),
)


@pytest.mark.parametrize("read_rows", [1, 2, 5, 16])
def test_a_row_whose_label_is_left_out_gets_no_default_label_and_may_get_another(read_rows):
    """Its label before or after it; a label of the same id by another producer is learned; one too early says nothing."""
    fates = counts_of(STORY, late_fold_spec(rules=RULES), read_rows)
    assert (fates["joined"], fates["defaulted"], fates["unlabelled"], fates["unmatched"]) == (2, 2, 2, 1)
    assert fates["learned"] == 4


def test_a_reader_that_gives_the_default_to_a_row_whose_label_is_left_out_is_noticed(monkeypatch):
    """The broken twin."""
    monkeypatch.setattr("millrace.streams.branch.branch.Excluding", Silent)
    with pytest.raises(AssertionError):
        assert counts_of(STORY, late_fold_spec(rules=RULES), 5)["defaulted"] == 2


@settings(max_examples=30, deadline=None)
@given(seed=some.integers(0, 10_000), read_rows=some.integers(1, 40))
def test_no_state_of_a_fork_depends_on_how_records_were_grouped_into_reads(seed, read_rows):
    """With labels left out, early and late."""
    events = poisoned(make_late_events(60, seed), seed, start=0)
    states = []
    for rows in (read_rows, 60):
        rooms = Rooms(events, read_rows=rows)
        how = late_fold_spec(rules=replace(RULES, memory_rows=8))
        begun = rooms.worker(how=how)
        begun._reader = Excluding(how.reader, (TILL_7,))
        run_to_end(begun, len(events))
        states.append(everything(begun))
        begun.fold.load(begun.fold.parts())
        assert everything(begun) == states[-1]
    assert states[0] == states[1]


# --- what is named, and the end of a branch


def test_each_kind_of_exclusion_names_what_it_says_and_nothing_else():
    """Offsets of one partition, a time, a header, a key by its hash."""
    event = Event(7, 1000, b"customer", encode_headers((("producer", b"till-7"),)), b"{}")
    assert left_out([OffsetRange("t:0", 7, 8)], event, "t:0")
    assert not left_out([OffsetRange("t:0", 7, 8)], event, "t:1") and not left_out([OffsetRange("t:0", 6, 7)], event, "t:0")
    assert left_out([Time(1000, 1001)], event, "t:0") and not left_out([Time(999, 1000)], event, "t:0")
    assert left_out([TILL_7], event, "t:0") and not left_out([TILL_7], Event(7, 1000, None, b"", b""), "t:0")
    assert not left_out([TILL_7], Event(7, 1, None, b"\xff\xff\xff\x7f\xff", b""), "t:0"), "another program's headers"
    assert left_out([Key(sha256(b"customer"))], event, "t:0") and not left_out([Key(sha256(b"c"))], event, "t:0")
    assert "customer" not in describe(Key(sha256(b"customer")))


def test_an_ended_branch_is_opened_by_nobody_and_names_its_successor():
    """Its live writer hears of it; ending it the same way again is nothing; another way is refused."""
    rooms = Rooms(make_events(60))
    worker = rooms.worker()
    list(worker.step())
    end_branch(rooms.journal, "main", HOST, "replay", "mended")
    with pytest.raises(EndedError, match="--branch mended"):
        list(worker.step())
    assert issubclass(EndedError, ReplacedError)
    with pytest.raises(EndedError, match="Branch mended goes on in its place"):
        rooms.worker()
    end_branch(rooms.journal, "main", HOST, "replay", "mended")
    assert [type(entry) for entry in counted(rooms.journal, "main", Cursor())].count(End) == 1
    with pytest.raises(EndedError):
        end_branch(rooms.journal, "main", HOST, "replay", "another")


def test_a_branch_that_nobody_follows_goes_on_letting_out_once_it_is_followed():
    """Its first scores are those of its first step then."""
    forked_rooms = forked()
    worker = forked_rooms.worker()
    list(worker.step())
    before = len(forked_rooms.parent.producer.records["small.scores"])
    live = Worker(forked_rooms.how, forked_rooms.backends(), SMALL, WorkerIdentity("mended", HOST, SteppedClock()))
    finish(live, forked_rooms.parent.items[-1].offset + 1)
    let_out = [json.loads(output.value) for output in forked_rooms.parent.producer.records["small.scores"][before:]]
    assert {output["branch"] for output in let_out} == {"mended"} and let_out[-1]["seq"] <= live.seq
