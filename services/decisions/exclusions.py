"""Exclusions in words: as `millrace status` and a plan show them, and as `millrace replay include` takes them."""

from __future__ import annotations

from millrace.services.moments import moment
from millrace.streams.journal.exclusions import Exclusion, Time, describe


def exclusion_words(exclusion: Exclusion) -> str:
    """As ``describe``; and of times what they are on this machine's clock."""
    if not isinstance(exclusion, Time):
        return describe(exclusion)
    return f"{describe(exclusion)} ({moment(exclusion.start_ms)} until {moment(exclusion.stop_ms)})"


def without_times(text: str) -> str:
    """An exclusion in the words of ``describe``, from those of ``exclusion_words``.

    >>> without_times("timestamps 0 to 9 ms (1970-01-01T01:00:00+01:00 until 1970-01-01T01:00:01+01:00)")
    'timestamps 0 to 9 ms'
    """
    return text.partition(" ms (")[0] + " ms" if text.startswith("timestamps ") and " ms (" in text else text
