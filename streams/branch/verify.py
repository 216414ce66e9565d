"""Proof that what a branch knows is what the log says: its journal is folded again and every mark is compared.

Source: docs/design/journal.md, rules 12 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from millrace.learners.errors import MillraceError
from millrace.learners.protocol import Value
from millrace.streams.branch.branch import (
    Backends,
    FoldSpec,
    carried,
    check_start,
    load_checkpoint,
    manifest_of,
    refold,
    start,
    state_hash,
)
from millrace.streams.branch.difference import difference
from millrace.streams.branch.host import folds_alike, use_threads
from millrace.streams.branch.outputs import check_end, last_output
from millrace.streams.errors import DamageError, FoldTimeoutError, MissingPartError, OffsetsGoneError
from millrace.streams.journal.entries import Act, Entry, Fork, Host, Mark, Open, Step, decode_entry
from millrace.streams.journal.journal import Cursor, Summary, counted, empty_summary, extend, place_before, summarise
from millrace.streams.journal.segments import Journal, entries_of
from millrace.streams.journal.store import Run, kept_marks
from millrace.streams.parts import pack
from millrace.streams.state.fold import Fold, is_truth

DERIVED_TOLERANCE = 1e-6  # relative; what follows from the record of truth is compared by value, not by bits


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold, and the first mark that it makes worthless."""

    what: str
    mark: Mark | None  # None: no mark stands on it yet

    def __str__(self) -> str:
        if self.mark is None:
            return f"{self.what} No mark stands on it yet."
        name = f"version {self.mark.version}" if self.mark.version else "a checkpoint"
        return f"{self.what} First bad mark: seq {self.mark.state_seq} ({name})."


@dataclass(slots=True)
class Report:
    """What was folded again, and what was found."""

    branch: str
    base: str = "fork"  # where folding began
    entries: int = 0
    records: int = 0
    state_seq: int = 0  # the last entry that was folded
    state_sha256: str = ""
    proved: list[Mark] = field(default_factory=list)  # by folding
    unproved: list[Mark] = field(default_factory=list)  # nothing is left to compare them with
    lost: int = 0  # seq up to which entries cannot be read: they were deleted from the journal, and their segment is not whole
    difference: float = 0.0  # the largest relative one; 0 where every state was compared bit for bit
    findings: list[Finding] = field(default_factory=list)


def verify(fold_spec: FoldSpec, backends: Backends, branch: str, keep: int) -> Report:
    """Fold the branch again from the earliest state the log still allows, and compare every mark on the way.

    The report's findings are empty if everything holds. Threads are set as each ``open`` recorded them.
    """
    return verify_with_marks(fold_spec, backends, branch, keep)[0]


def verify_with_marks(fold_spec: FoldSpec, backends: Backends, branch: str, keep: int) -> tuple[Report, list[Mark] | None]:
    """As ``verify``, with all marks of the branch as they were read; None where its journal is damaged, which is a finding."""
    report, sound = Report(branch), set[str]()  # runs of the journal that were read whole, by their sha256
    output = last_output(backends.producer, fold_spec.name, branch)
    summary = _readable(backends, branch, report, sound)
    marks = None if report.findings else summary.marks
    released = set[str]() if backends.retention is None else backends.retention.released()
    report.findings += _damaged_checkpoints(backends, summary, keep, released)
    report.findings += _damaged_segments(backends, summary, released, {finding.what for finding in report.findings}, sound)
    try:
        check_end(output, branch, summary.end.seq)
        if summary.fork is None:
            raise DamageError(f"The journal of branch {branch} has no entries. Restore it from a copy.")
        fold_spec.check(summary.fork, backends)
        run = _Run(fold_spec, backends, summary, report)
        _fold_and_compare(run, *_earliest(run))
    except MillraceError as error:
        report.findings.append(Finding(str(error), _first_at(summary, report.state_seq + 1)))
    return report, marks


def verify_version(fold_spec: FoldSpec, backends: Backends, version: str, nearest: bool, is_over: Callable[[], bool]) -> Report:
    """Fold one version again from its parent, or with ``nearest`` from the nearest kept checkpoint, and compare it alone.

    Raises: MillraceError where it cannot be folded: no such version, damage, a log that has lost the records;
    FoldTimeoutError once ``is_over`` says so.
    """
    branch = version.rpartition(".")[0]
    report, summary = Report(branch), summarise(backends.journal, branch)
    mark = next((mark for mark in summary.marks if mark.version == version), None)
    if summary.fork is None or mark is None:
        raise MillraceError(f"The journal of branch {branch} has no version {version}; `millrace versions` lists them.")
    fold_spec.check(summary.fork, backends)
    load_checkpoint(backends.store, mark)
    run = _Run(fold_spec, backends, summary, report)
    fold, after = _before(run, mark, nearest)
    hosts: set[Host] = set()
    for entry in refold(fold, _span(run, after, mark.state_seq, hosts), backends.source, fold_spec.reader_of(run.fork)):
        report.entries += 1
        report.state_seq = entry.seq
        if is_over():
            raise FoldTimeoutError(f"Version {version} was not folded again in time; {report.entries} entries were.")
    report.records, report.state_sha256 = fold.records, state_hash(fold.parts())
    _compare(run, fold, mark, exact=all(map(folds_alike, hosts)))
    return report


def _before(run: _Run, mark: Mark, nearest: bool) -> tuple[Fold, int]:
    """The newest whole state before a mark that the log can be folded on from, and its seq."""
    low = {tp: oldest for tp, (oldest, _) in run.backends.source.bounds().items()}
    for base in reversed(
        [
            mark_before
            for mark_before in run.summary.marks
            if 1 < mark_before.state_seq < mark.state_seq and (nearest or mark_before.version)
        ]
    ):
        fold = run.fold_spec.fold(run.fork)
        try:
            fold.load(load_checkpoint(run.backends.store, base))
        except DamageError:
            continue  # swept, or verifying the branch says so
        if all(low[tp] <= at for tp, at in fold.position.items()):
            run.report.base = f"version {base.version}" if base.version else f"checkpoint of seq {base.state_seq}"
            return fold, base.state_seq
    fold = _fork_start(run)
    if all(low[tp] <= at for tp, at in fold.position.items()):
        return fold, 0
    raise OffsetsGoneError(
        f"The log no longer has what a state before version {mark.version} goes on with, so it cannot be folded again. Verify "
        "versions while it has: `millrace run --verify`, or beside `millrace up`."
    )


def _span(run: _Run, after: int, stop: int, hosts: set[Host]) -> Iterator[Entry]:
    """The counted entries after seq ``after`` up to ``stop``, with this process's threads as the live ones were.

    ``hosts`` gets those that folded what was given so far: after one alone that folds otherwise, bits are others.
    """
    place = place_before(run.backends.journal, after)
    host = None if place is None else place.host
    if host is not None:
        use_threads(host.threads)
    for entry in _up_to(run, after):
        if entry.seq > stop:
            return
        if isinstance(entry, Open):
            host = entry.host
            use_threads(host.threads)
        if entry.seq > after:
            hosts |= {host} if host is not None and isinstance(entry, Step | Act) else set()
            yield entry


def _readable(backends: Backends, branch: str, report: Report, sound: set[str]) -> Summary:
    """The branch as far as its entries are sound; a damaged one is a finding, and so is a segment that cannot be read."""
    summary = Summary()
    try:
        summary = _after_lost(backends, branch, report, sound)
        extend(summary, backends.journal, branch)
    except DamageError as error:
        report.findings.append(Finding(str(error), _next_mark(backends, branch, summary.end.offset + 1)))
    return summary


def _after_lost(backends: Backends, branch: str, report: Report, sound: set[str]) -> Summary:
    """A summary to go on with from the last segment that cannot be read, or from the fork where all can.

    Those that can join the ``sound``.

    Raises: DamageError where the journal was deleted from and no version says what was there.
    """
    base = empty_summary(backends.journal)
    summary, seq = Summary(), 0
    for run in backends.journal.runs() if isinstance(backends.journal, Journal) else []:
        try:
            entries_of(backends.store, branch, run)
            sound.add(run.sha256)
        except DamageError as error:
            inside = [mark for mark in base.marks if seq < mark.state_seq <= run.seq]
            report.findings.append(Finding(str(error), inside[0] if inside else None))
            report.lost = run.seq
            summary = Summary(base.fork, [mark for mark in base.marks if mark.seq <= run.seq], Cursor.after(run))
        seq = run.seq
    return summary


def _next_mark(backends: Backends, branch: str, start: int) -> Mark | None:
    """The first sound mark in the stream from ``start``."""
    for offset, raw in backends.journal.read(max(start, backends.journal.first())):
        try:
            entry = decode_entry(raw, f"Branch {branch}: the journal entry at offset {offset}")
        except DamageError:
            continue
        if isinstance(entry, Mark):
            return entry
    return None


def _damaged_checkpoints(backends: Backends, summary: Summary, keep: int, released: set[str]) -> list[Finding]:
    """Altered parts of kept checkpoints; missing ones only of versions and of the newest mark, which nothing sweeps."""
    findings = []
    for mark in kept_marks(summary.marks, keep, released):
        try:
            load_checkpoint(backends.store, mark)
        except MissingPartError as error:
            if (mark.version is not None and mark.version not in released) or mark == summary.marks[-1]:
                findings.append(Finding(str(error), mark))
        except MillraceError as error:
            findings.append(Finding(str(error), mark))
    return findings


def _damaged_segments(
    backends: Backends, summary: Summary, released: set[str], reported: set[str], sound: set[str]
) -> list[Finding]:
    """Journal entries that kept versions say they have and have not, beyond what is ``reported`` or was found ``sound``."""
    findings = []
    for mark in summary.marks:
        for run in _runs_of(backends, mark) if mark.version is not None and mark.version not in released else []:
            try:
                sound |= {run.sha256} if run.sha256 in sound or entries_of(backends.store, mark.branch, run) else set()
            except DamageError as error:
                findings += [] if str(error) in reported else [Finding(str(error), mark)]
                reported.add(str(error))
    return findings


def _runs_of(backends: Backends, mark: Mark) -> list[Run]:
    try:
        segment = manifest_of(backends.store, mark).segment
    except DamageError:
        return []  # a finding of its own
    return [] if segment is None else segment.runs


def _earliest(run: _Run) -> tuple[Fold, Mark | None]:
    """The fork's start, or the oldest checkpoint whose next records the log still has."""
    report, bounds = run.report, run.backends.source.bounds()
    if not report.lost and all(bounds[tp][0] <= at for tp, at in run.fork.positions.items()):
        return _fork_start(run), None
    fold = run.fold_spec.fold(run.fork)
    for mark in run.summary.marks:
        if mark.state_seq < report.lost:
            report.unproved.append(mark)
            continue
        try:
            fold.load(load_checkpoint(run.backends.store, mark))
        except DamageError:
            continue
        if all(bounds[tp][0] <= at for tp, at in fold.position.items()):
            report.base = f"checkpoint of seq {mark.state_seq}"
            return fold, mark
        report.unproved.append(mark)
    raise OffsetsGoneError("The log no longer has what any kept checkpoint goes on with, so nothing can be folded again.")


def _fork_start(run: _Run) -> Fold:
    """The fork's start. Raises: DamageError where it is not the state of the version that the fork names."""
    fold_spec, store, fork = run.fold_spec, run.backends.store, run.fork
    if fork.parent is None:
        return fold_spec.fold(fork)
    run.report.base = f"version {fork.parent.branch}.{fork.parent.seq}"
    if fork.learner_from != fork.join_from:  # two states became one, which is done again
        try:
            return start(fold_spec, store, fork)
        except DamageError:
            run.report.base = "its own copy of the start"
    for mark in [mark for mark in run.summary.marks if mark.state_seq == 1]:
        try:
            fold = fold_spec.fold(fork)
            fold.load(load_checkpoint(store, mark))
        except DamageError:
            continue
        check_start(fork, fold, state_hash(fold.parts()))
        return fold
    return start(fold_spec, store, fork)


@dataclass(frozen=True, slots=True)
class _Run:
    fold_spec: FoldSpec
    backends: Backends
    summary: Summary
    report: Report

    @property
    def fork(self) -> Fork:
        """The first entry."""
        assert self.summary.fork is not None
        return self.summary.fork


def _fold_and_compare(run: _Run, fold: Fold, base: Mark | None) -> None:
    report = run.report
    begin = base.state_seq if base else 0
    marks: dict[int, list[Mark]] = {}
    for mark in run.summary.marks:
        marks.setdefault(mark.state_seq, []).append(mark)
    hosts: set[Host] = set()
    entries = _span(run, begin, run.summary.end.seq, hosts)
    report.state_seq = begin
    for entry in refold(fold, entries, run.backends.source, run.fold_spec.reader_of(run.fork)):
        report.entries += 1
        report.records = fold.records
        report.state_seq = entry.seq
        for mark in marks.get(entry.seq, []):
            _compare(run, fold, mark, exact=all(map(folds_alike, hosts)))
    report.state_sha256 = state_hash(fold.parts())


def _up_to(run: _Run, after: int) -> Iterator[Entry]:
    """The counted entries that could be read: from the fork, or from a place before seq ``after`` that is known."""
    place = place_before(run.backends.journal, after)
    cursor = Cursor.after(place) if place else Cursor()
    for entry in counted(run.backends.journal, run.report.branch, cursor):
        yield entry
        if cursor.offset >= run.summary.end.offset:
            return


def _compare(run: _Run, fold: Fold, mark: Mark, exact: bool) -> None:
    """``exact``: whether all that was folded again was folded live on hosts like this one."""
    parts = fold.parts()
    stored = None
    if mark.checkpoint is not None and not any(finding.mark == mark for finding in run.report.findings):
        try:
            stored = load_checkpoint(run.backends.store, mark)
        except DamageError:
            stored = None  # swept, as checkpoints that are not kept are; its hash is in the mark all the same
    if exact and state_hash(parts) != mark.state_sha256:
        run.report.findings.append(Finding(f"Folding the log again gives another state ({_where(parts, stored)}).", mark))
        return
    if not exact and stored is None:
        run.report.unproved.append(mark)  # another kind of host, and nothing to compare with within a tolerance
        return
    parts = _known_then(parts, stored)
    compared = carried(run.fork, parts) if mark.state_seq == 1 else parts
    of_ties = set() if exact else {"detectors", "held_out"}  # which another kind of host may break otherwise
    names = {name for name in compared if not (exact and is_truth(name))} - of_ties
    tolerance = DERIVED_TOLERANCE if exact else max(fold.learner.tolerance, DERIVED_TOLERANCE)
    differences = {name: difference(parts[name], stored.get(name, {})) for name in sorted(names)} if stored is not None else {}
    if beyond := [name for name, distance in differences.items() if distance > tolerance]:
        run.report.findings.append(Finding(f"Folding the log again gives another {', '.join(beyond)} part.", mark))
        return
    if not exact:
        run.report.difference = max(run.report.difference, *differences.values())
    run.report.proved.append(mark)


def _known_then(
    parts: dict[str, dict[str, Value]], stored: Mapping[str, Mapping[str, Value]] | None
) -> dict[str, dict[str, Value]]:
    """The parts without the alarms before those that are listed: an earlier release raised them and listed none."""
    folded = parts.get("detectors", {})
    if stored is None or "alarms" not in folded:
        return parts
    listed = len(stored.get("detectors", {}).get("alarms", []))
    without = {name: value for name, value in folded.items() if name != "alarms"}
    return parts | {"detectors": without | ({"alarms": folded["alarms"][-listed:]} if listed else {})}


def _where(parts: Mapping[str, Mapping[str, Value]], stored: Mapping[str, Mapping[str, Value]] | None) -> str:
    if stored is None:
        return "its checkpoint is not there to say in which part"
    return "in " + ", ".join(name for name in parts if is_truth(name) and pack(parts[name]) != pack(stored.get(name, {})))


def _first_at(summary: Summary, seq: int) -> Mark | None:
    """The first mark whose state has taken in entry ``seq``."""
    return next((mark for mark in summary.marks if mark.state_seq >= seq), None)
