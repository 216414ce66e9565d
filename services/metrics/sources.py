"""A source of samples, asked in a thread of its own, so that one that hangs or fails keeps nothing from the others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from millrace.services.metrics.definitions import Answer

log = logging.getLogger("millrace")

NOTHING = Answer([], False)
FRESH_S = 1.0  # that what a source said is said again, so that many scrapes cost as one


class Source:
    """Asks when somebody wants to know, and only one question at a time."""

    def __init__(self, name: str, ask: Callable[[], Answer]) -> None:
        self.name = name
        self._ask = ask
        self._changed = threading.Condition()
        self._wanted = False  # whether the thread is to ask, or asks
        self._answer = NOTHING
        self._asked_s = float("-inf")  # when the last question was answered, or failed
        self._failure = ""
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """Begin to ask, unless that is under way or was done just now."""
        with self._changed:
            if self._wanted or time.monotonic() - self._asked_s < FRESH_S:
                return
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"metrics-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def answer(self, until_s: float) -> Answer:
        """What it says; nothing where it failed, or says nothing by then (of the monotonic clock)."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: not self._wanted, max(0.0, until_s - time.monotonic()))
            return self._answer if is_there else NOTHING

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted)
            answer, failure = self._asked()
            if failure not in ("", self._failure):
                log.warning("The metrics of %s cannot be had: %s", self.name, failure)
            with self._changed:
                self._answer, self._failure, self._asked_s, self._wanted = answer, failure, time.monotonic(), False
                self._changed.notify_all()

    def _asked(self) -> tuple[Answer, str]:
        try:
            return self._ask(), ""
        except Exception as error:
            return NOTHING, f"{type(error).__name__}: {error}"
