"""The learner goes back and the branch goes on: answers of the version, joins of now, and nothing between learned or lost."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from branches import HOST, SCHEMA, SMALL, Rooms, SteppedClock, everything, fold_spec, make_events, mark_at_once, run_to_end
from dying_storage import DyingStore, DyingStream
from hypothesis import given, settings
from hypothesis import strategies as some
from late_labels import RULES, late_fold_spec, make_late_events

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.drift.alarms import DriftConfig
from millrace.learners.protocol import State
from millrace.streams.branch.branch import Backends, FoldSpec, load_checkpoint, restore
from millrace.streams.branch.forks import begin_fork, compose, rewound_fork
from millrace.streams.branch.learner_rollback import rewound as rewound_parts
from millrace.streams.branch.verify import verify
from millrace.streams.checksummed import seal
from millrace.streams.errors import ReplacedError
from millrace.streams.formats.json_rows import Codec, Rows
from millrace.streams.journal.entries import Fork, Step
from millrace.streams.journal.journal import Cursor, counted, summarise
from millrace.streams.labels.served import ServedCodec
from millrace.streams.parts import pack
from millrace.streams.schema import Schema
from millrace.streams.source import CrashError, ListSource
from millrace.streams.stream import ListStream
from millrace.streams.worker.worker import Worker, WorkerIdentity

ROWS = 120
PART = 80  # read when the learner goes back


@dataclass
class Rewound:
    """What outlives a process: the rooms of ``main``, and the journal of the branch that takes its place."""

    parent: Rooms
    how: FoldSpec
    journal: ListStream = field(default_factory=ListStream)

    def backends(self) -> Backends:
        """Of the new branch, for a new process."""
        source = ListSource(self.parent.items, read_rows=self.parent.read_rows)
        return Backends(source, self.parent.producer, self.journal, self.parent.store)

    def begin(self) -> Fork:
        """End ``main`` and begin the other, wherever that was left; as ``millrace rollback --learner`` does."""
        backends = self.backends()
        version = [mark for mark in summarise(self.parent.journal, "main").marks if mark.version][0]
        if summarise(self.parent.journal, "main").end.ended is None:
            worker = self.parent.worker(how=self.how)
            worker.close()
            fork = rewound_fork(self.how, backends, "back", worker._version_log.marks[-1], version, [])
            compose(self.how, backends.store, fork, "main")
            worker.end("rollback", "back")
        newest = [mark for mark in summarise(self.parent.journal, "main").marks if mark.version][-1]
        fork = rewound_fork(self.how, backends, "back", newest, version, [])
        begin_fork(self.how, backends, fork, "main")
        return fork

    def worker(self) -> Worker:
        """A new process on the new branch."""
        self.begin()
        return Worker(self.how, self.backends(), SMALL, WorkerIdentity("back", HOST, SteppedClock()))


def learned(late: bool, seed: int = 0, read_rows: int = 5, part: int = PART) -> Rewound:
    """A branch ``main`` that has read a part of the log."""
    how = late_fold_spec(rules=RULES) if late else fold_spec()
    events = make_late_events(ROWS, seed) if late else make_events(ROWS, seed)
    rooms = Rooms(events, read_rows=read_rows)
    worker = rooms.worker(how=how)
    run_to_end(worker, part)
    mark_at_once(worker)
    return Rewound(rooms, how)


def answers(parts: dict, columns: Rows, how: FoldSpec) -> bytes:
    """What a state answers to rows, as bytes."""
    learner, features = how.make_learner(), how.features()
    learner.load_state_dict(State(parts["learner"], parts["derived"]))
    features.load(parts["features"])
    servable = learner.servable()
    return pack({"scores": servable.predict_many(features.answer(features.encode(columns))), "classes": list(servable.classes)})


@settings(max_examples=12, deadline=None)
@given(late=some.booleans(), seed=some.integers(0, 10_000), read_rows=some.integers(1, 30), part=some.integers(40, ROWS))
def test_it_answers_as_the_version_did_and_has_the_joins_and_counts_of_now(late, seed, read_rows, part):
    """Bit for bit right after; positions, clock and what waits are the newest; the fates add up, then and at the log's end."""
    rewound = learned(late, seed, read_rows, part)
    fork = rewound.begin()
    main = summarise(rewound.parent.journal, "main")
    newest = load_checkpoint(rewound.parent.store, main.marks[-1])
    first = [mark for mark in main.marks if mark.version][0]
    version = load_checkpoint(rewound.parent.store, first)
    worker = Worker(rewound.how, rewound.backends(), SMALL, WorkerIdentity("back", HOST, SteppedClock()))
    current = worker.fold.parts()
    rows, _ = fold_spec().codec.decode(make_events(60, seed + 1))
    assert answers(current, rows, rewound.how) == answers(version, rows, rewound.how)
    for name in ("learner", "derived", "features", "serve"):
        assert pack(current[name]) == pack(version[name]), name
    assert (worker.fold.position, worker.fold.clock_ms) == (newest["counts"]["position"], newest["counts"]["clock_ms"])
    assert fork.positions == worker.fold.position
    read = sum(worker.fold.position.values())
    assert worker.fold.records == read and worker.fold.batches.waiting == 0
    if late:
        for name in ("pending", "due_ms", "early", "known_newest", "settled"):
            assert pack({"": current["join"].get(name)}) == pack({"": newest["join"].get(name)}), name
    before = worker.fold.counts.learned
    run_to_end(worker, ROWS)
    assert worker.fold.records == ROWS and worker.fold.counts.learned >= before
    worker.close()
    assert verify(rewound.how, rewound.backends(), "back", SMALL.keep).findings == []


def test_late_labels_of_predictions_that_waited_are_joined():
    """A prediction made before, its label after: learned once, on the row as the version's tables put it."""
    rewound = learned(late=True, seed=3)
    worker = rewound.worker()
    waiting = worker.fold.labels.waiting_predictions
    joined = worker.fold.labels.counts.joined
    assert waiting > 0
    run_to_end(worker, ROWS)
    never = Rooms(rewound.parent.items).worker(how=rewound.how)
    run_to_end(never, ROWS)
    assert worker.fold.labels.counts == never.fold.labels.counts and worker.fold.labels.counts.joined > joined
    assert worker.fold.labels.settled == never.fold.labels.settled


def test_the_rows_between_are_not_learned_again():
    """The learner at the end has seen those of the version and those after; a ridge's own count of rows says so."""
    rewound = learned(late=False)
    worker = rewound.worker()
    version = worker.fold.learner.rows if hasattr(worker.fold.learner, "rows") else None
    counts = worker.fold.counts.learned
    gram = worker.fold.learner.state_dict().truth
    run_to_end(worker, ROWS)
    main = Rooms(rewound.parent.items).worker(how=rewound.how)
    run_to_end(main, ROWS)
    assert worker.fold.counts.learned + worker.fold.batches.waiting < main.fold.counts.learned + main.fold.batches.waiting
    assert version is None or worker.fold.learner.rows - version == worker.fold.counts.learned - counts
    assert pack(gram) != pack(worker.fold.learner.state_dict().truth)


@pytest.mark.parametrize(("which", "after"), [("main", False), ("main", True), ("back", False), ("back", True)])
def test_a_crash_at_any_append_changes_nothing(which, after):
    """Of either journal; wherever the process dies, the branch that goes on is the same bit for bit and verifies."""
    whole = finished(learned(late=True))
    for at in itertools.count(1):
        rewound, dying = learned(late=True), DyingStream(at, after)
        if which == "main":
            dying.values = rewound.parent.journal.values
            rewound.parent.journal = dying
        else:
            rewound.journal = dying
        state = finished(rewound)
        if dying.left > 0:
            break
        assert state == whole, at
    assert at > (3 if which == "main" else 10)


def test_a_crash_at_any_blob_changes_nothing():
    """Of those that the rollback stores."""
    whole = finished(learned(late=True))
    for blob in range(1, 60, 5):
        rewound = learned(late=True)
        store = DyingStore(blob)
        store.blobs = rewound.parent.store.blobs
        rewound.parent.store = store
        assert finished(rewound) == whole, blob
        assert store.left < 0, "nobody died"


def finished(rewound: Rewound) -> dict[str, bytes]:
    """Start processes until one reaches the end."""
    while True:
        try:
            worker = rewound.worker()
            run_to_end(worker, ROWS)
            worker.close()
        except CrashError:
            continue
        assert verify(rewound.how, rewound.backends(), "back", SMALL.keep).findings == []
        return everything(worker)


def test_a_start_that_is_not_of_its_two_versions_is_a_finding():
    """The mark says another hash, as if somebody had put another learner there."""
    rewound = learned(late=True)
    rewound.worker().close()
    forged = ListStream()
    fork = rewound.begin()
    other = [mark for mark in summarise(rewound.parent.journal, "main").marks if mark.version][1]
    wrong = rewound_fork(rewound.how, rewound.backends(), "back", mark_of(rewound, fork), other, [])
    begin_fork(rewound.how, replace(rewound.backends(), journal=forged), wrong, "main")
    entries = list(counted(forged, "back", Cursor()))
    honest = ListStream()
    for entry in (fork, entries[1]):
        honest.send(seal(entry))
    assert verify(rewound.how, replace(rewound.backends(), journal=honest), "back", SMALL.keep).findings


def mark_of(rewound: Rewound, fork: Fork):
    """The mark of a fork's parent."""
    marks = summarise(rewound.parent.journal, "main").marks
    return next(mark for mark in marks if mark.state_seq == fork.parent.seq and mark.version)


def test_a_start_is_made_again_from_the_fork_entry_where_its_own_copy_is_gone():
    """From the version's learner, which lies with the branch, and the parent's newest state."""
    rewound = learned(late=True)
    fork = rewound.begin()
    summary = summarise(rewound.journal, "back")
    copy = restore(rewound.how, rewound.backends(), summary).fold
    del rewound.parent.store.blobs["back", summary.marks[0].checkpoint]
    again = restore(rewound.how, rewound.backends(), summary)
    assert again.mark is None and again.fold.position == fork.positions
    assert {name: pack(part) for name, part in again.fold.parts().items()} == {
        name: pack(part) for name, part in copy.parts().items()
    }


def test_the_steps_of_the_old_branch_end_where_the_new_one_begins():
    """No record is read by both, and none by neither."""
    rewound = learned(late=False)
    worker = rewound.worker()
    run_to_end(worker, ROWS)
    reads = [
        (start, stop)
        for journal, branch in ((rewound.parent.journal, "main"), (rewound.journal, "back"))
        for entry in counted(journal, branch, Cursor())
        if isinstance(entry, Step)
        for _, start, stop, _, _ in entry.reads
    ]
    assert [start for start, _ in reads] == [0, *(stop for _, stop in reads[:-1])] and reads[-1][1] == ROWS
    assert msgspec.structs.asdict(worker.fold.counts)["learned"] > 0


def test_a_writer_that_was_live_hears_that_its_branch_has_ended():
    """At its next append."""
    rewound = learned(late=False)
    live = rewound.parent.worker(how=rewound.how)
    rewound.begin()
    with pytest.raises(ReplacedError, match="back"):
        list(live.step())


def test_detectors_are_the_newest_and_count_on():
    """What they have seen is not forgotten, and the places of rows never go back."""
    how = replace(fold_spec(), drift=DriftConfig(false_alarm_rows=2000, per_class=False, act="version"))
    rooms = Rooms(make_events(ROWS))
    worker = rooms.worker(how=how)
    run_to_end(worker, PART)
    rewound = Rewound(rooms, how)
    rewound.begin()
    newest = load_checkpoint(rooms.store, summarise(rooms.journal, "main").marks[-1])
    worker = Worker(how, rewound.backends(), SMALL, WorkerIdentity("back", HOST, SteppedClock()))
    current = worker.fold.parts()
    assert pack(current["detectors"]) == pack(newest["detectors"])
    assert worker.fold.counts.learned == newest["counts"]["counts"]["learned"]
    run_to_end(worker, ROWS)
    worker.close()
    assert verify(how, rewound.backends(), "back", SMALL.keep).findings == []


WIDE = Schema((*SCHEMA.fields[:2], replace(SCHEMA.fields[2], max=40)), SCHEMA.label, weight="w")


def growing() -> Rewound:
    """Late labels of rows whose towns are new all the time."""
    ridge = RidgeConfig(solve_rows=9)
    codec = {"codec": Codec(WIDE, 4096), "served": ServedCodec(WIDE, 4096, "list")}
    how = replace(late_fold_spec(rules=RULES), schema=WIDE, make_learner=lambda: Ridge(ridge, WIDE.width, 0), **codec)
    events = [
        msgspec.structs.replace(event, value=re.sub(rb'("town": ?")', rb"\g<1>%d" % (event.offset // 4), event.value))
        for event in make_late_events(ROWS, 3)
    ]
    rooms = Rooms(events)
    run_to_end(rooms.worker(how=how), PART)
    return Rewound(rooms, how)


def test_a_start_that_keeps_the_tables_of_now_is_noticed(monkeypatch):
    """The broken twin: predictions that wait are learned by slots that the version's weights do not belong to."""
    rewound = growing()
    main = summarise(rewound.parent.journal, "main").marks
    before = load_checkpoint(rewound.parent.store, main[0 if main[0].version else 1])["features"]["slots"]["town"]
    whole = finished(rewound)
    assert len(before) < 10

    def keeps(features, make_learner, version, newest):
        return rewound_parts(features, make_learner, version, newest) | {"features": newest["features"]}

    monkeypatch.setattr("millrace.streams.branch.branch.rewound", keeps)
    other = growing()
    twin = other.worker()
    newest = load_checkpoint(rewound.parent.store, summarise(rewound.parent.journal, "main").marks[-1])["join"]
    assert {*newest["names"][:, 0].tolist()} - {*before, None}, "somebody waits whose town is new"
    run_to_end(twin, ROWS)
    assert everything(twin)["learner"] != whole["learner"]
