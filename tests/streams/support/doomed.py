"""A worker in a process of its own that is killed from outside, each time at a phase that it has reached; never at a time."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from pipelines import TIMEOUT_S, clean_environment

from millrace.services.pipeline.instance import Instance
from millrace.streams.journal.journal import extend, summarise
from millrace.streams.records import Record

PIECE = 50  # records appended at once, whenever those before have been read
POLL_S = 0.002
LATEST_S = 0.05  # from the phase to the kill: long enough to hit any point of the step that follows
PHASES = (
    "read",  # it has taken the branch, and has read so many records more
    "holds",  # it has the branch's lock, and has not opened the branch yet
    "took",  # its epoch is the branch's
    "marked",  # a checkpoint, which comes after as many rows as the pipeline says: fewer than come for each death
)


class Doomed:
    """`millrace run --follow` on the branch main of an instance, again and again, while records keep coming."""

    def __init__(self, instance: Instance, command: Sequence[str], topic: str, records: Sequence[Record]) -> None:
        self._instance = instance
        self._command = [*command]
        self._topic = topic
        self._records = records
        self._log = instance.log()
        self._sent = 0
        self._journal = instance.journal("main")
        self._found = summarise(self._journal, "main")
        self._append(PIECE)

    @property
    def epoch(self) -> int:
        """The branch's."""
        extend(self._found, self._journal, "main")
        return self._found.end.epoch

    @property
    def read(self) -> int:
        """Records that the journal says were read."""
        extend(self._found, self._journal, "main")
        return sum(self._found.position.values())

    def die(self, phase: str, most: int, chance: random.Random) -> None:
        """Start one, let records come until there are ``most``, and kill it at the phase; then it has reached it."""
        reached = self._reached(phase, most, chance)
        child = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment())
        until_s = time.monotonic() + TIMEOUT_S
        try:
            while not reached(child.pid):
                assert child.poll() is None, f"it ended with {child.returncode} before it {phase}"
                assert time.monotonic() < until_s, f"it never {phase}"
                if self.read > self._sent - PIECE:
                    self._append(min(most, self._sent + PIECE))
                time.sleep(POLL_S)
            time.sleep(chance.uniform(0.0, LATEST_S))
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=TIMEOUT_S) == -signal.SIGKILL

    def rest(self) -> None:
        """Every record that has not come yet."""
        self._append(len(self._records))

    def _reached(self, phase: str, most: int, chance: random.Random) -> Callable[[int], bool]:
        epoch, marks, lock = self.epoch, len(self._found.marks), self._instance.folder / "main.lock"
        goal = chance.randint(self.read, most)
        if phase == "holds":
            return lambda pid: lock.exists() and f"process {pid} " in lock.read_text(encoding="utf-8") + " "
        if phase == "took":
            return lambda _: self.epoch > epoch
        if phase == "read":
            return lambda _: self.epoch > epoch and self.read >= goal
        return lambda _: self.epoch > epoch and len(self._found.marks) > marks

    def _append(self, until: int) -> None:
        if until > self._sent:
            self._log.append(self._topic, self._records[self._sent : until])
            self._sent = until


def phases(times: int, chance: random.Random) -> list[str]:
    """As many of each, in an order by chance."""
    drawn = [PHASES[at % len(PHASES)] for at in range(times)]
    chance.shuffle(drawn)
    return drawn


def die_often(doomed: Doomed, times: int, total: int, chance: random.Random) -> int:
    """So many deaths, spread over all records; then the rest comes. Returns how many of them had taken the branch, at least."""
    drawn = phases(times, chance)
    for at, phase in enumerate(drawn, start=1):
        doomed.die(phase, at * total // times, chance)
    doomed.rest()
    return times - drawn.count("holds")
