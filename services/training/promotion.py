"""Drafts that are served as soon as they are made: ``[llm] promote_rows = n``, for who wants no operator and no gate.

An operator's decision stands. After one, nothing is promoted until an operator serves the newest version again.
"""

from __future__ import annotations

import logging

from millrace.services.decisions.in_force import last_decision
from millrace.services.pipeline.instance import Instance
from millrace.services.training.run import FIRST, serve_version
from millrace.streams.journal.ledger import Serve
from millrace.streams.worker.worker import Worker

log = logging.getLogger("millrace")

WHO = "llm.promote_rows"  # who decides, as the ledger says it


class Promotion:
    """Looks at a worker's newest version; without ``promote_rows`` it promotes none."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._rows = 0 if instance.loaded.pipeline.llm is None else instance.loaded.pipeline.llm.promote_rows
        self._seen: str | None = None  # the newest version at the last look

    def look(self, worker: Worker) -> None:
        """Serve the newest version, where it is a new one and no operator has decided otherwise."""
        newest, before = worker.newest_version, self._seen
        if not self._rows or newest == before or newest is None:
            return
        self._seen = newest
        last, tried = self._last(), None
        while last is not None and last != tried and last.to.version != newest:
            if last.who not in (WHO, FIRST) and not _as_new(last.to.version, before):
                log.info("%s is not promoted: %s decided for %s. Serve the newest to go on.", newest, last.who, last.to.version)
                return
            self._promote(newest, last)
            last, tried = self._last(), last

    def _promote(self, newest: str, last: Serve) -> None:
        """In place of what the last decision serves; it does not count where another decision has come meanwhile."""
        serve_version(self._instance, last.to, newest, WHO, f"llm.promote_rows = {self._rows}")

    def _last(self) -> Serve | None:
        """The newest decision for the endpoint that counts."""
        return last_decision(self._instance.ledger())


def _as_new(version: str | None, known: str | None) -> bool:
    """Whether a version is the newest that was known at some time, or was made since: who serves it serves the newest.

    >>> _as_new("main.8", "main.6"), _as_new("main.6", "main.6"), _as_new("main.2", "main.6"), _as_new("main.2", None)
    (True, True, False, False)
    """
    if version is None or known is None:
        return False
    (branch, _, seq), (known_branch, _, known_seq) = version.rpartition("."), known.rpartition(".")
    return branch == known_branch and int(seq) >= int(known_seq)
