"""docs/design/journal.md, test 3, for the end of a branch: whatever its writers do, nothing counts or leaves after it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from branches import HOST
from schedules import TURNS, Schedule

from millrace.streams.branch.forks import end_branch
from millrace.streams.errors import EndedError, ReplacedError
from millrace.streams.journal.entries import End, Step, decode_entry
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.worker.worker import Worker

SCHEDULES = 400


class Ended(Schedule):
    """A schedule in which an operator ends the branch in the middle of what its writers do."""

    def run(self) -> None:
        """Turns, the end, turns; then whatever is still on its way lands."""
        for _ in range(self.chance.randrange(TURNS)):
            self._turn()
        while not list(counted(self.rooms.journal, "main", Cursor())):
            self._turn()
        self._end()
        for _ in range(TURNS):
            try:
                self._turn()
            except EndedError:
                self.seen["ended"] += 1
        self.rooms.journal.land_some(1.0)

    def _end(self) -> None:
        for _ in range(TURNS):
            try:
                return end_branch(self.rooms.journal, "main", HOST, "replay", "mended")
            except ReplacedError:
                self.seen["tried again"] += 1
        raise AssertionError("the branch cannot be ended")

    def _start(self) -> None:
        before = self.seen["lost the race to open"]
        super()._start()
        self.seen["not opened"] += self.seen["lost the race to open"] - before

    def broken_promises(self) -> list[str]:
        """What counts after the end, and what was let out and does not count."""
        entries = list(counted(self.rooms.journal, "main", Cursor()))
        ends = [at for at, entry in enumerate(entries) if isinstance(entry, End)]
        wrong = [] if ends == [len(entries) - 1] else [f"ends at {ends} of {len(entries)} entries"]
        steps = {entry.seq: entry.epoch for entry in entries if isinstance(entry, Step)}
        for record in self.rooms.producer.records.get("small.scores", []):
            output = json.loads(record.value)
            self.seen["released"] += 1
            if steps.get(output["seq"]) != output["epoch"]:
                wrong.append(f"seq {output['seq']} of epoch {output['epoch']} was let out and does not count")
        every = [decode_entry(raw, "here") for raw in self.rooms.journal.values]
        last = next((at for at, entry in enumerate(every) if entry == entries[-1]), len(every))
        self.seen["dead after the end"] += len(every) - 1 - last
        return wrong


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(4))
def test_nothing_counts_after_the_end_of_a_branch(shard: int) -> None:
    """Over seeded schedules of writers with delays, lost acknowledgements, crashes and zombies."""
    seen: Counter[str] = Counter()
    for seed in range(shard, SCHEDULES, 4):
        schedule = Ended(seed, Worker)
        schedule.run()
        assert schedule.broken_promises() == [], f"schedule {seed}"
        seen += schedule.seen
    assert min(seen[name] for name in ("released", "fenced off", "not opened", "dead after the end")) > 10, seen
