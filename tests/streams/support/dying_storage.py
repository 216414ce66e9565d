"""Stores and journals whose process dies while it writes to them, once, at a call that the test names."""

from __future__ import annotations

from millrace.streams.journal.store import ListStore
from millrace.streams.source import CrashError
from millrace.streams.stream import ListStream


class DyingStore(ListStore):
    """A store whose process dies at the ``at``-th blob, once."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def put(self, branch, blob, more_follow=False):
        self.left -= 1
        if self.left == 0:
            raise CrashError
        return super().put(branch, blob, more_follow)


class DyingStream(ListStream):
    """A journal whose process dies at its ``at``-th append, before it or just after."""

    def __init__(self, at: int, after: bool) -> None:
        super().__init__()
        self.left, self.after = at, after

    def send(self, value):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise CrashError
        sent = super().send(value)
        if self.left == 0:
            raise CrashError
        return sent
