"""The last good version: the newest verified one that has learned no row since the onset of any open alarm.

`rollback` goes there. It follows from journal, store and ledger, so it is known with everything else down. The ledger's alias
of that name says the same to whoever reads aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from millrace.services.decisions.alarms import Standing, standing_in
from millrace.services.decisions.descent import Stretch, descent, learned_of, older
from millrace.services.decisions.status import shares
from millrace.services.decisions.versions import verified
from millrace.services.moments import moment
from millrace.services.pipeline.archive import Archive
from millrace.streams.branch.branch import load_part
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark, Merge
from millrace.streams.journal.journal import Cursor, counted
from millrace.streams.journal.ledger import Ledger

LAST_GOOD = "last-good"  # the alias
NOT_VERIFIED = "not verified"  # the only thing against a version: nobody has proved it yet
BASELINES = ("last", "majority", "mean")  # begin the names of what every score is compared with


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version to which a rollback could go."""

    mark: Mark
    against: str  # why not; empty: it is verified, and older than the onset of every open alarm

    @property
    def version(self) -> str:
        """Its id."""
        return str(self.mark.version)


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a rollback from a branch is chosen by."""

    archive: Archive
    ledger: Ledger
    branch: str
    alarms: list[Standing]  # that are open, oldest first
    versions: list[Mark]  # of the branch and of those that it comes from, oldest first
    _has_rows_of: Callable[[Mark], str | None]  # the open alarm since whose onset a marked state has learned rows

    def candidates(self, before: str | None) -> Iterator[Candidate]:
        """Newest first, those that are older than the version ``before``; what was let go is not among them."""
        names = [mark.version for mark in self.versions]
        until = names.index(before) if before in names else len(names)
        for mark in reversed(self.versions[:until]):
            if mark.version not in self.ledger.released:
                yield Candidate(mark, self._against(mark))

    def candidate(self, version: str | None) -> Candidate | None:
        """A version of this descent, such as the one that is served; None where it is none."""
        mark = next((mark for mark in self.versions if mark.version == version), None) if version is not None else None
        return None if mark is None else Candidate(mark, self._against(mark))

    def _against(self, mark: Mark) -> str:
        certificate = self.ledger.certificates.get(str(mark.version))
        if certificate is not None and not certificate.holds:
            return "differs from its log"
        if (alarm := self._has_rows_of(mark)) is not None:
            return f"has rows since the onset of {alarm}"
        return NOT_VERIFIED if certificate is None else ""

    def row(self, candidate: Candidate, taken: str | None) -> dict[str, Any]:
        """A candidate to show: as of when, after how many rows, how good its answers were, and what its certificate says."""
        mark, scored = candidate.mark, "unknown"
        try:
            counts = load_part(self.archive.instance.store(), mark, "counts")
            as_of, learned = moment(counts["clock_ms"]), counts["counts"]["learned"]
            totals = load_part(self.archive.instance.store(), mark, "scores")
            named = {name: value for name, value in totals.get("totals", totals).items() if name not in ("last", "sum")}
            means = {name: value for name, value in shares(named).items() if value is not None}
            own = [(name, value) for name, value in means.items() if not name.startswith(BASELINES)]
            scored = f"{own[0][0]} {own[0][1]:.4g}" if own else "none yet"
        except (DamageError, KeyError):  # KeyError: a merge, whose shards have the scores
            as_of, learned = "unknown", learned_of(self.archive.instance.store(), mark)
        against = "taken" if candidate.version == taken else candidate.against or "could be taken"
        certificate = verified(self.ledger, candidate.version)
        facts = {"candidate": candidate.version, "as_of": as_of, "rows": learned, "scored": scored}
        return facts | {"certificate": certificate, "verdict": against}


def prospect(archive: Archive, ledger: Ledger, branch: str) -> Prospect:
    """Raises: NotReadyError where an alarm is being written down just now; DamageError where a journal is damaged."""
    stretches = list(descent(archive, branch))
    standing = [entry for entry in standing_in(archive, ledger, stretches) if entry.closing is None]
    versions = [mark for stretch in reversed(stretches) for mark in stretch.versions]
    merged = archive.instance.shards(branch) != [branch]
    has_rows_of = _in_merge(archive, branch, standing) if merged else _in_state(archive, stretches, standing)
    return Prospect(archive, ledger, branch, standing, versions, has_rows_of)


def _in_state(archive: Archive, stretches: Sequence[Stretch], standing: Sequence[Standing]) -> Callable[[Mark], str | None]:
    earliest: dict[str, Standing] = {}  # by branch: what is older than this one is older than all of the branch
    for entry in sorted(standing, key=lambda entry: entry.raised.alarm.onset_rows):
        earliest.setdefault(entry.raised.branch, entry)

    def has_rows_of(mark: Mark) -> str | None:
        if all(older(archive, stretches, mark, entry.raised) for entry in earliest.values()):
            return None
        return next((entry.raised.id for entry in standing if not older(archive, stretches, mark, entry.raised)), None)

    return has_rows_of


def _in_merge(archive: Archive, branch: str, standing: Sequence[Standing]) -> Callable[[Mark], str | None]:
    """Of a branch that merges shards: a merge has rows of an alarm where what it merges of that shard has."""
    store = archive.instance.store()
    merges = {
        f"{branch}.{entry.seq}": {shard: seq for shard, seq, _ in entry.of}
        for entry in (counted(archive.instance.journal(branch), branch, Cursor()) if standing else ())
        if isinstance(entry, Merge)
    }
    good_seqs = {
        entry.raised.id: max(
            (
                mark.state_seq
                for mark in archive.marks(entry.raised.branch)
                if learned_of(store, mark) <= entry.raised.alarm.onset_rows
            ),
            default=0,
        )
        for entry in standing
    }

    def has_rows_of(mark: Mark) -> str | None:
        merged = merges.get(str(mark.version), {})
        for entry in standing:
            if merged.get(entry.raised.branch, 1 << 62) > good_seqs[entry.raised.id]:
                return entry.raised.id
        return None

    return has_rows_of


def last_good_of(archive: Archive, branch: str, ledger: Ledger) -> str | None:
    """Of a branch; None where no alarm is open, or no verified version is older than every onset.

    Raises: as ``prospect``.
    """
    known = prospect(archive, ledger, branch)
    if not known.alarms:
        return None
    return next((candidate.version for candidate in known.candidates(None) if not candidate.against), None)
