"""The last good version of a branch: the newest that was learned before its newest alarm began, where `rollback` goes.

A verified one where there is one. It follows from the journal and the store alone, so it is known with everything else down;
the ledger's alias of that name says the same to whoever reads aliases.
"""

from __future__ import annotations

from collections.abc import Sequence

from millrace.learners.errors import DamageError
from millrace.streams.branch import load_part
from millrace.streams.entries import Mark
from millrace.streams.ledger import Ledger
from millrace.streams.store import Store

LAST_GOOD = "last-good"  # the alias


def last_good(marks: Sequence[Mark], store: Store, ledger: Ledger) -> str | None:
    """Among a branch's marks, oldest first; None where nothing raised an alarm, or no version is older than its onset."""
    onset = onset_rows(marks, store)
    if onset is None:
        return None
    versions = [mark for mark in marks if mark.version is not None and mark.version not in ledger.released]
    belied = {version for version, certificate in ledger.certificates.items() if not certificate.holds}
    before = [mark for mark in versions if mark.version not in belied and _learned(store, mark) <= onset]
    proved = [mark for mark in before if mark.version in ledger.certificates]
    return next((mark.version for mark in reversed(proved or before)), None)


def onset_rows(marks: Sequence[Mark], store: Store) -> int | None:
    """Learned rows at which what the newest alarm noticed seems to have begun; the newest checkpoint that can be read says."""
    for mark in reversed(marks):
        try:
            newest = load_part(store, mark, "detectors")["newest"]
        except (DamageError, KeyError):  # KeyError: nothing was watched then
            continue
        return None if newest is None else int(newest["onset_rows"])
    return None


def _learned(store: Store, mark: Mark) -> int:
    try:
        return int(load_part(store, mark, "counts")["counts"]["learned"])
    except DamageError:
        return 1 << 62  # it could not be served either
