"""What an ended branch still holds: an hour after it ended, what nobody will ask for goes.

Nobody writes an ended branch, so whoever comes by may sweep it: `millrace run` at its end, and the companion of `millrace up`.
Kept are its start and its newest checkpoint, what the ledger names, and versions that other branches began at, or are planned
to. Of the rest the newest are kept, as many as make up ``versions.keep`` with those of the branches that went on in its place.
A branch that was given up has none of these; one that never began is empty. A version goes as ever: a release in the ledger
first, which counts only for what nothing names. While an operation is under way nothing is swept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from millrace.learners.errors import MillraceError
from millrace.services.pipeline.instance import Instance
from millrace.streams.journal.journal import Summary, summarise
from millrace.streams.journal.ledger import Ledger, Operation, Release, append_decision
from millrace.streams.journal.store import GRACE_S, kept_marks, sweep

log = logging.getLogger("millrace")


def sweep_ended(instance: Instance, now_s: float | None = None) -> int:
    """Bytes freed. Where something cannot be read, nothing goes and it is said."""
    try:
        return _sweep(instance, time.time() if now_s is None else now_s)
    except MillraceError as error:
        log.warning("No ended branch was swept: %s", error)
        return 0


def _sweep(instance: Instance, now_s: float) -> int:
    ledger = instance.ledger()
    if ledger.operation is not None or not any(_over(operation, now_s) for operation in ledger.operations.values()):
        return 0
    branches = {name: summarise(instance.journal(name), name) for name in instance.branches()}
    given_up = [
        operation.branch for operation in ledger.operations.values() if operation.state == "aborted" and _over(operation, now_s)
    ]
    freed = sum(instance.store().sweep(name, set(), now_s - GRACE_S) for name in given_up if name not in branches)
    for name, summary in branches.items():
        if _settled(ledger, name, summary, now_s):
            _release(instance, _left(instance, ledger, branches, name))
            referenced = (
                []
                if summary.fork is None
                else [summary.fork.config_sha256, summary.fork.features_sha256, str(summary.fork.learner_from)]
            )
            kept_checkpoints = kept_marks(summary.marks, 1, instance.ledger().released)
            freed += sweep(instance.store(), name, kept_checkpoints, now_s, referenced)
    return freed


def _settled(ledger: Ledger, name: str, summary: Summary, now_s: float) -> bool:
    """Whether a branch ended an hour ago: the operation that ended it says when."""
    if summary.end.ended is None:
        return False
    operation = ledger.operations.get(summary.end.ended.successor or name)
    return operation is not None and _over(operation, now_s)


def _over(operation: Operation, now_s: float) -> bool:
    return operation.state in ("taken-over", "aborted") and now_s - operation.when_ms / 1000 > GRACE_S


def _left(instance: Instance, ledger: Ledger, branches: dict[str, Summary], name: str) -> list[str]:
    """Versions of an ended branch that nothing keeps."""
    keep = instance.loaded.pipeline.versions.keep
    ended_by = branches[name].end.ended
    if ended_by is not None and ended_by.successor is None:
        spare = 0
    elif not keep:
        return []
    else:
        spare = max(0, keep - sum(len(_versions(branches[heir])) for heir in _heirs(branches, name)))
    versions = _versions(branches[name])
    in_use = ledger.named | ledger.released | set(_begun_at(branches)) | set(versions[-1:])
    return [version for version in versions[: len(versions) - spare] if version not in in_use]


def _versions(summary: Summary) -> list[str]:
    return [mark.version for mark in summary.marks if mark.version is not None]


def _heirs(branches: dict[str, Summary], name: str) -> Iterator[str]:
    while (ended_by := branches[name].end.ended) is not None and ended_by.successor in branches:
        name = str(ended_by.successor)
        yield name


def _begun_at(branches: dict[str, Summary]) -> Iterator[str]:
    """Versions whose state another branch began with."""
    used = {fork.learner_from for summary in branches.values() if (fork := summary.fork) is not None}
    for summary in branches.values():
        if summary.fork is not None and summary.fork.parent is not None:
            yield f"{summary.fork.parent.branch}.{summary.fork.parent.seq}"
        yield from (mark.version for mark in summary.marks if mark.version is not None and mark.checkpoint in used)


def _release(instance: Instance, versions: list[str]) -> None:
    if versions:
        when_ms = time.time_ns() // 1_000_000
        release = Release(who="retention", why="the branch has ended", when_ms=when_ms, versions=versions)
        append_decision(instance.ledger_stream(), release)
