"""What an ended branch still holds: an hour after it ended, what nobody will ask for goes.

Nobody writes an ended branch, so whoever comes by may sweep it: `millrace run` at its end, and the companion of `millrace up`.
Kept are its start and its newest checkpoint; what the ledger names; versions that other branches began at, or are planned to;
and of the rest the newest, as many as make up ``versions.keep`` with those of the branches that went on in its place. A branch
that was given up has none of these, and one that never began has nothing. A version goes as ever: a release in the ledger
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
    if ledger.operation is not None or not any(_over(one, now_s) for one in ledger.operations.values()):
        return 0
    branches = {name: summarise(instance.journal(name), name) for name in instance.branches()}
    given_up = [one.branch for one in ledger.operations.values() if one.state == "aborted" and _over(one, now_s)]
    freed = sum(instance.store().sweep(name, set(), now_s - GRACE_S) for name in given_up if name not in branches)
    for name, found in branches.items():
        if _settled(ledger, name, found, now_s):
            _release(instance, _left(instance, ledger, branches, name))
            also = (
                []
                if found.fork is None
                else [found.fork.config_sha256, found.fork.features_sha256, str(found.fork.learner_from)]
            )
            kept = kept_marks(found.marks, 1, instance.ledger().released)
            freed += sweep(instance.store(), name, kept, now_s, also)
    return freed


def _settled(ledger: Ledger, name: str, found: Summary, now_s: float) -> bool:
    """Whether a branch ended an hour ago: the operation that ended it says when."""
    if found.end.ended is None:
        return False
    operation = ledger.operations.get(found.end.ended.successor or name)
    return operation is not None and _over(operation, now_s)


def _over(operation: Operation, now_s: float) -> bool:
    return operation.state in ("taken-over", "aborted") and now_s - operation.when_ms / 1000 > GRACE_S


def _left(instance: Instance, ledger: Ledger, branches: dict[str, Summary], name: str) -> list[str]:
    """Versions of an ended branch that nothing keeps."""
    keep = instance.loaded.pipeline.versions.keep
    ended = branches[name].end.ended
    if ended is not None and ended.successor is None:
        room = 0
    elif not keep:
        return []
    else:
        room = max(0, keep - sum(len(_versions(branches[heir])) for heir in _heirs(branches, name)))
    versions = _versions(branches[name])
    asked = ledger.named | ledger.released | set(_begun_at(branches)) | set(versions[-1:])
    return [version for version in versions[: len(versions) - room] if version not in asked]


def _versions(found: Summary) -> list[str]:
    return [mark.version for mark in found.marks if mark.version is not None]


def _heirs(branches: dict[str, Summary], name: str) -> Iterator[str]:
    while (ended := branches[name].end.ended) is not None and ended.successor in branches:
        name = str(ended.successor)
        yield name


def _begun_at(branches: dict[str, Summary]) -> Iterator[str]:
    """Versions whose state another branch began with."""
    used = {fork.learner_from for found in branches.values() if (fork := found.fork) is not None}
    for found in branches.values():
        if found.fork is not None and found.fork.parent is not None:
            yield f"{found.fork.parent.branch}.{found.fork.parent.seq}"
        yield from (mark.version for mark in found.marks if mark.version is not None and mark.checkpoint in used)


def _release(instance: Instance, versions: list[str]) -> None:
    if versions:
        when_ms = time.time_ns() // 1_000_000
        release = Release(who="retention", why="the branch has ended", when_ms=when_ms, versions=versions)
        append_decision(instance.ledger_stream(), release)
