"""Which versions are kept: the newest, and whatever the ledger names, in whatever order hands and writer come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import pytest
from branches import HOST, SMALL, Rooms, SteppedClock, fold_spec, make_events, mark_at_once, run_to_end
from hypothesis import given
from hypothesis import strategies as st

from millrace.streams.branch.branch import load_checkpoint, save_checkpoint
from millrace.streams.branch.verify import verify, verify_version
from millrace.streams.errors import DamageError, FoldTimeoutError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import Alias, Ledger, Operation, OperationState, Release, Serve, Target, append_decision
from millrace.streams.journal.retention import Retention
from millrace.streams.journal.store import ListStore, kept_marks, sweep
from millrace.streams.stream import ListStream
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker, WorkerIdentity

WHO = {"who": "me", "why": "a reason", "when_ms": 5}
HANDS = st.one_of(
    st.tuples(st.just("mark"), st.booleans()),
    st.tuples(st.sampled_from(["serve", "champion", "last-good"]), st.integers(0, 9)),
    st.tuples(st.just("write"), st.integers(0, 3)),
)


@dataclass
class Town:
    """A writer that marks and sweeps, and operators who plan on what they see and write later."""

    keep: int
    stream: ListStream = field(default_factory=ListStream)
    store: ListStore = field(default_factory=ListStore)
    marks: list[Mark] = field(default_factory=list)
    planned: list[Serve | Alias] = field(default_factory=list)

    def ledger(self) -> Ledger:
        """As a new reader sees it."""
        ledger = Ledger("ledger")
        ledger.follow(self.stream)
        return ledger

    def versions(self) -> list[str]:
        """Every one ever marked."""
        return [mark.version for mark in self.marks if mark.version]

    def mark(self, version: bool) -> None:
        """Mark, let go and sweep, as the worker does; the store in memory has no grace."""
        seq = 2 * len(self.marks) + 3
        name, manifest = save_checkpoint(self.store, "main", seq, {"learner": {"rows": seq}, "features": {"slots": ["a"]}})
        hashes = {"state_seq": seq, "state_sha256": manifest.state_sha256, "checkpoint": name}
        self.marks.append(Mark(branch="main", seq=seq + 1, epoch=1, version=f"main.{seq}" if version else None, **hashes))
        released = Retention(self.stream, self.keep).release(self.marks)
        sweep(self.store, "main", kept_marks(self.marks, 2, released), time.time())

    def plan(self, what: str, pick: int) -> None:
        """Decide on what is true now, for any version that was ever marked or none."""
        choice = [None, *self.versions()][pick % (len(self.versions()) + 1)]
        ledger = self.ledger()
        if what == "serve":
            to = Target(follow="main") if choice is None else Target(version=choice)
            self.planned.append(Serve(endpoint="default", before=ledger.serving.get("default"), to=to, **WHO))
        else:
            self.planned.append(Alias(name=what, before=ledger.aliases.get(what), to=choice, **WHO))

    def do(self, what: str, pick: int) -> None:
        """One action."""
        if what == "mark":
            self.mark(bool(pick))
        elif what == "write":
            if self.planned:
                append_decision(self.stream, self.planned.pop(pick % len(self.planned)))
        else:
            self.plan(what, pick)

    def readable(self) -> set[str]:
        """Versions whose parts are whole."""
        versions = set()
        for mark in self.marks:
            try:
                load_checkpoint(self.store, mark)
            except DamageError:
                continue
            versions |= {mark.version} - {None}
        return versions


@given(st.lists(HANDS, max_size=40), st.integers(1, 3))
def test_no_order_of_hands_deletes_what_an_alias_or_an_endpoint_names(hands: list[tuple], keep: int) -> None:
    """Nor what they named before, nor the newest: and whatever else is old goes at the next mark."""
    town = Town(keep)
    for what, pick in hands:
        town.do(what, pick)
        ledger = town.ledger()
        assert ledger.named <= town.readable()
        assert set(town.versions()[-keep:]) <= town.readable()
        assert set(town.versions()) - ledger.released <= town.readable()
    town.mark(version=True)
    ledger = town.ledger()
    assert set(town.versions()) - ledger.released == set(town.versions()[-keep:]) | ledger.named - ledger.released


def test_what_was_let_go_is_never_named_again() -> None:
    """Neither an alias nor an endpoint whose operator planned it before it was let go."""
    town = Town(keep=1)
    for _ in range(2):
        town.mark(version=True)
    for entry in (
        Alias(name="champion", before=None, to="main.3", **WHO),
        Serve(endpoint="default", before=None, to=Target(version="main.3"), **WHO),
    ):
        append_decision(town.stream, entry)
    assert town.ledger().released == {"main.3"} and not town.ledger().named and len(town.ledger().counted) == 1


def test_a_release_counts_for_what_nothing_names() -> None:
    """Of two versions the named one stays; a release of named ones alone does not count."""
    stream = ListStream()
    append_decision(stream, Alias(name="champion", before=None, to="main.3", **WHO))
    for versions in (["main.3", "main.5"], ["main.3"]):
        append_decision(stream, Release(versions=versions, **WHO))
    ledger = Ledger("ledger")
    ledger.follow(stream)
    assert ledger.released == {"main.5"} and [type(decision) for decision in ledger.counted] == [Alias, Release]


@pytest.mark.parametrize("then", ["running", "aborted"])
def test_a_plan_keeps_the_version_that_it_begins_at_until_it_has_begun_or_is_given_up(then: OperationState) -> None:
    """The writer's marks come and go meanwhile."""
    town, plan = Town(keep=1), {"id": "replay-1", "plan_sha256": "a", "branch": "replay-1"} | WHO
    append_decision(town.stream, Operation(before=None, state="planned", version="main.3", **plan))
    for _ in range(3):
        town.mark(version=True)
    assert town.ledger().released == {"main.5"} and "main.3" in town.readable()
    append_decision(town.stream, Operation(before="planned", state=then, **plan))
    town.mark(version=True)
    assert town.ledger().released == {"main.3", "main.5", "main.7"} and "main.3" not in town.readable()


@pytest.mark.parametrize("keep", [0, 2])
def test_a_worker_keeps_the_newest_versions_and_verify_misses_none_of_the_others(keep: int) -> None:
    """With keep = 0 all of them."""
    rooms, stream = Rooms(make_events(200)), ListStream()
    config = WorkerConfig(step_rows=5, checkpoint_rows=11, version_rows=20, keep=SMALL.keep)
    backends = replace(rooms.backends(), retention=Retention(stream, keep))
    worker = Worker(fold_spec(), backends, config, WorkerIdentity("main", HOST, SteppedClock()))
    run_to_end(worker, 200)
    mark_at_once(worker)
    ledger = Ledger("ledger")
    ledger.follow(stream)
    versions = [mark.version for mark in worker._version_log.marks if mark.version]
    assert len(versions) >= 9 and ledger.released == (set(versions[:-keep]) if keep else set())
    assert verify(fold_spec(), backends, "main", config.keep).findings == []


def test_one_version_is_folded_again_from_its_parent_or_the_nearest_checkpoint() -> None:
    """And not a step further than it is."""
    rooms = Rooms(make_events(200))
    config = WorkerConfig(step_rows=5, checkpoint_rows=11, version_rows=60, keep=SMALL.keep)
    worker = rooms.worker(config=config, how=fold_spec())
    run_to_end(worker, 200)
    worker.close()
    versions = [mark for mark in worker._version_log.marks if mark.version]
    for base, mark in zip([None, *versions], versions, strict=False):
        report = verify_version(fold_spec(), rooms.backends(), str(mark.version), False, lambda: False)
        assert report.base == (f"version {base.version}" if base else "fork") and not report.findings
        assert report.proved == [mark] and (report.state_seq, report.state_sha256) == (mark.state_seq, mark.state_sha256)
    nearest = verify_version(fold_spec(), rooms.backends(), str(versions[-1].version), True, lambda: False)
    assert (
        nearest.base.startswith("checkpoint of seq") and nearest.entries < report.entries and nearest.proved == [versions[-1]]
    )
    with pytest.raises(FoldTimeoutError):
        verify_version(fold_spec(), rooms.backends(), str(versions[-1].version), False, lambda: True)


def test_a_ledger_that_cannot_be_read_lets_nothing_go_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Learning goes on; the store grows meanwhile."""
    town = Town(keep=1)
    append_decision(town.stream, Alias(name="champion", before=None, to="main.3", **WHO))
    town.stream.values[0] = town.stream.values[0].replace(b"main.3", b"main.4")
    for _ in range(3):
        town.mark(version=True)
    assert len(town.readable()) == 3 and "No version was let go: The ledger" in caplog.text
