"""Versions verified in another process than the one that learned them: by id, or beside `millrace up` as they are made."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from millrace.learners.errors import MillraceError
from millrace.services.decisions.rollback import name_last_good
from millrace.services.decisions.sweep import sweep_ended
from millrace.services.decisions.versions import verified
from millrace.services.errors import NotProvedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.expiry import expire
from millrace.services.pipeline.instance import Instance, require_branch
from millrace.services.printable import printable
from millrace.services.proof.merges import is_merged, merge_again, merged_from
from millrace.services.proof.verify import certify, prove, proven
from millrace.streams.branch.verify import Report, verify_version
from millrace.streams.errors import FoldTimeoutError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import DIFFERS

log = logging.getLogger("millrace")

POLL_S = 1.0  # between two polls for new versions
LOWEST = 19  # priority
SWEEP_S = 600.0  # between two looks for branches that have ended


def prove_version(instance: Instance, version: str, nearest: bool = True, budget_s: float = float("inf")) -> Report:
    """Fold a version again from its parent, or ``nearest``: from the nearest kept checkpoint; and write its certificate.

    Raises: NotProvedError where it comes out another, which its certificate then says; MillraceError where it cannot be folded,
    FoldTimeoutError past ``budget_s``; neither writes one.
    """
    with _renaming(instance):
        return _prove_version(instance, version, nearest, budget_s)


def _prove_version(instance: Instance, version: str, nearest: bool, budget_s: float) -> Report:
    mark = Archive(instance).mark(version)
    branch = mark.branch
    if is_merged(instance, branch):
        return _prove_merge(instance, mark, budget_s)
    until_s = time.monotonic() + budget_s
    report = verify_version(instance.fold_spec, instance.backends(branch), version, nearest, lambda: time.monotonic() > until_s)
    certificate = instance.ledger().certificates.get(version)
    if report.findings:
        if certificate is None or certificate.holds:
            certify(instance, mark, report, f"{DIFFERS}: {report.findings[0].what}")
        raise NotProvedError("\n".join(printable(str(finding)) for finding in report.findings))
    if not report.proved:
        raise NotProvedError(
            f"Version {version} was learned on another kind of host; there is nothing to compare it with here."
        )
    if certificate is None or not certificate.holds:
        certify(instance, mark, report, proven(report))
    return report


def prove_branch(instance: Instance, branch: str) -> list[Report]:
    """Fold a branch again from the log, or those of its shards and then every merge of them that is a version.

    Raises: NotProvedError naming each thing that does not hold and the first bad mark.
    """
    with _renaming(instance):
        return _prove_branch(instance, branch)


@contextmanager
def _renaming(instance: Instance) -> Iterator[None]:
    """Name last-good anew: a version that was pending may be what an open alarm asks for, and one that differs never is."""
    try:
        yield
    except NotProvedError:
        name_last_good(instance)
        raise
    name_last_good(instance)


def _prove_branch(instance: Instance, branch: str) -> list[Report]:
    if not is_merged(instance, branch):
        return [prove(instance, branch)]
    require_branch(instance, branch)
    reports = [prove(instance, shard) for shard in instance.shards(branch)]
    released = instance.ledger().released
    marks = [mark for mark in Archive(instance).marks(branch) if mark.version is not None and mark.version not in released]
    unprovable = [mark for mark in marks if _gone(instance, str(mark.version))]
    merges = [_prove_merge(instance, mark, float("inf")) for mark in marks if mark not in unprovable]
    return [*reports, *merges, *([Report(branch, base="certificates alone", unproved=unprovable)] if unprovable else [])]


def _gone(instance: Instance, version: str) -> list[str]:
    """What a version merges and is no longer kept, so that it cannot be merged again."""
    return [part for part in merged_from(instance, version) if part in instance.ledger().released]


def _prove_merge(instance: Instance, mark: Mark, budget_s: float) -> Report:
    """Prove what a version merges, unless that is certified, and merge it again."""
    version, certificates = str(mark.version), instance.ledger().certificates
    parts = merged_from(instance, version)
    if released_shards := _gone(instance, version):
        raise NotProvedError(
            f"Version {version} merges {', '.join(released_shards)}, which is no longer kept, so it cannot be merged again. It "
            f"is {verified(instance.ledger(), version)}."
        )
    for part in parts:
        if part not in certificates or not certificates[part].holds:
            prove_version(instance, part, budget_s=budget_s)
    report = Report(mark.branch, base=f"the merge of {', '.join(parts)}", entries=1, state_seq=mark.state_seq)
    report.state_sha256 = merge_again(instance, mark)
    equal = report.state_sha256 == mark.state_sha256
    certificate = certificates.get(version)
    if certificate is None or certificate.holds != equal:
        certify(instance, mark, report, "equal" if equal else f"{DIFFERS}: merging its shards again gives another state")
    if not equal:
        raise NotProvedError(f"Version {version}: merging {', '.join(parts)} again gives another state.")
    report.proved.append(mark)
    return report


def watch(instance: Instance, parent: int) -> None:
    """Verify versions as they are made, the newest first and one at a time, until SIGINT or SIGTERM; at the lowest priority.

    From its parent, or past the budget from the nearest kept checkpoint. With ``parent``, for as long as that process lives.
    """
    stop, tried, archive = threading.Event(), set[str](), Archive(instance)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    os.nice(LOWEST)
    swept_s = float("-inf")
    while not stop.is_set() and parent in (0, os.getppid()):
        version = newest(pending(instance, archive), tried)
        began_s = time.monotonic()
        if began_s - swept_s > SWEEP_S:
            swept_s = began_s
            sweep_ended(instance)
            expire(instance)
        if version is not None:
            tried.add(version)
            _try(instance, version)
        stop.wait(max(POLL_S, time.monotonic() - began_s))  # half of one core at most


def pending(instance: Instance, archive: Archive) -> list[Mark]:
    """The marks of versions that are kept and have no certificate yet."""
    ledger = instance.ledger()
    settled = ledger.released | set(ledger.certificates)
    marks = [mark for branch in instance.branches() for mark in archive.marks(branch)]
    return [mark for mark in marks if mark.version is not None and mark.version not in settled]


def newest(marks: Iterable[Mark], tried: set[str]) -> str | None:
    """The version of the newest mark that was not tried yet."""
    untried = [mark for mark in marks if mark.version not in tried]
    return max(untried, key=lambda mark: (mark.epoch, mark.seq)).version if untried else None


def _try(instance: Instance, version: str) -> None:
    budget_s = instance.loaded.pipeline.versions.verify_budget_s
    try:
        try:
            report = prove_version(instance, version, False, budget_s)
        except FoldTimeoutError:
            report = prove_version(instance, version, True, budget_s)
        log.info("version %s was folded again from %s and came out the same", version, report.base)
    except MillraceError as error:
        log.warning("Version %s: %s", version, error)
