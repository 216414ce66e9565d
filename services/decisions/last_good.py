"""The last good version of a branch: the newest that was learned before its newest alarm began, where `rollback` goes.

A verified one where there is one. It follows from the journal and the store alone, so it is known with everything else down;
the ledger's alias of that name says the same to whoever reads aliases.
"""

from __future__ import annotations

from collections.abc import Sequence

from millrace.services.pipeline.archive import Archive
from millrace.streams.branch.branch import load_part
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark, Merge
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.journal.ledger import Ledger
from millrace.streams.journal.store import Store

LAST_GOOD = "last-good"  # the alias
NO_ALARM = 1 << 62  # a seq that every other is before


def last_good(marks: Sequence[Mark], store: Store, ledger: Ledger) -> str | None:
    """Among a branch's marks, oldest first; None without an alarm, or where every version is younger than its onset."""
    onset = onset_rows(marks, store)
    if onset is None:
        return None
    versions = [mark for mark in marks if mark.version is not None and mark.version not in ledger.released]
    belied = {version for version, certificate in ledger.certificates.items() if not certificate.holds}
    before = [mark for mark in versions if mark.version not in belied and _learned(store, mark) <= onset]
    proved = [mark for mark in before if mark.version in ledger.certificates]
    return next((mark.version for mark in reversed(proved or before)), None)


def last_good_of(archive: Archive, branch: str, ledger: Ledger) -> str | None:
    """Of a branch. Of one that merges shards: the newest version of what each shard was before its own newest alarm began.

    Raises: DamageError where a journal is damaged.
    """
    instance, store = archive.instance, archive.instance.store()
    if instance.shards(branch) == [branch]:
        return last_good(archive.marks(branch), store, ledger)
    good_seqs = {shard: _good_seq(archive.marks(shard), store) for shard in instance.shards(branch)}
    if all(seq == NO_ALARM for seq in good_seqs.values()):
        return None
    entries = counted(instance.journal(branch), branch, Cursor())
    before = {
        f"{branch}.{entry.seq}"
        for entry in entries
        if isinstance(entry, Merge) and all(seq <= good_seqs[shard] for shard, seq, _ in entry.of)
    }
    candidates = [mark.version for mark in archive.marks(branch) if mark.version in before - ledger.released]
    sound = [version for version in candidates if version not in ledger.certificates or ledger.certificates[version].holds]
    proved = [version for version in sound if version in ledger.certificates]
    return next(reversed(proved or sound), None)


def _good_seq(marks: Sequence[Mark], store: Store) -> int:
    """Of the newest mark of a shard that had learned nothing since its newest alarm began."""
    onset = onset_rows(marks, store)
    return NO_ALARM if onset is None else max((mark.state_seq for mark in marks if _learned(store, mark) <= onset), default=0)


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
