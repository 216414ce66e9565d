"""docs/design/journal.md, test 3: seeded schedules of writers with delays, lost acknowledgements, crashes and zombies."""

from __future__ import annotations

from collections import Counter

import pytest
from schedules import LATE, LATE_EVENTS, PRUNING, Schedule

from millrace.streams.errors import DamageError, ReplacedError
from millrace.streams.journal.journal import Pending, Writer
from millrace.streams.worker.worker import Worker

SCHEDULES = 5040
LATE_SCHEDULES = 720
PRUNING_SCHEDULES = 720
SHARDS = 12  # so that two processes share the work


class Trusting(Writer):
    """Broken: takes any acknowledgement for proof that the branch is still its own."""

    def confirm(self, pending: Pending) -> None:
        pending.ack.offset()
        self.cursor.take(pending.entry)


class Trusted(Worker):
    """A worker with the broken fence."""

    def _open(self, host) -> None:
        super()._open(host)
        self._writer = Trusting(self._backends.journal, self.branch, self._writer.cursor)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_whatever_writers_do_only_what_counts_is_let_out(shard):
    """Over seeded schedules of up to five writers nothing dead leaves, every record is read once, every mark is true."""
    seen = Counter()
    for seed in range(shard, SCHEDULES, SHARDS):
        schedule = Schedule(seed, Worker)
        schedule.run()
        assert schedule.broken_promises() == [], f"schedule {seed}"
        seen += schedule.seen
    assert min(seen[name] for name in ("crash", "fenced off", "dead entries", "released", "lost the race to open")) > 10


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_whatever_writers_do_deleting_what_versions_hold_changes_nothing(shard):
    """Journal entries are deleted at any moment, by writers that were replaced meanwhile too; segments have every one of them,
    nothing dead leaves, and the offsets of appends stay what they were."""
    seen = Counter()
    for seed in range(shard, PRUNING_SCHEDULES, SHARDS):
        schedule = Schedule(seed, Worker, config=PRUNING)
        schedule.run()
        assert schedule.broken_promises() == [], f"schedule {seed}"
        seen += schedule.seen
    assert min(seen[name] for name in ("crash", "fenced off", "dead entries", "released", "deleted entries")) > 10


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_whatever_writers_do_late_labels_are_joined_once(shard):
    """The same with labels early, late, twice and in conflict; dead letters of conflicts are those that the journal finds."""
    seen = Counter()
    for seed in range(shard, LATE_SCHEDULES, SHARDS):
        schedule = Schedule(seed, Worker, LATE, LATE_EVENTS)
        schedule.run()
        assert schedule.broken_promises() == [], f"schedule {seed}"
        seen += schedule.seen
    assert min(seen[name] for name in ("crash", "fenced off", "dead entries", "released")) > 10


def test_a_fence_that_trusts_acknowledgements_breaks_the_promise():
    """The same schedules catch a writer for which an acknowledgement alone is enough."""
    caught = 0
    for seed in range(60):
        schedule = Schedule(seed, Trusted)
        try:
            schedule.run()
            caught += bool(schedule.broken_promises())
        except ReplacedError:
            continue
        except DamageError:  # entries that no honest writer could have appended
            caught += 1
    assert caught > 5
