"""`millrace serve` and `millrace rollback`: one entry in the ledger, which every replica follows by itself.

Neither Ray, nor the trainer, nor MLflow is needed to decide. A decision counts only if what it changes *from* is still true.
"""

from __future__ import annotations

import getpass
import shlex
import time
from dataclasses import dataclass

from millrace.learners.errors import BadInputError, MillraceError, NotCountedError
from millrace.services.follower import Archive
from millrace.services.instance import Instance, require_branch
from millrace.services.running import ENDPOINT
from millrace.streams.ledger import Serve, Target, append_decision, words


@dataclass(frozen=True, slots=True)
class Change:
    """What the endpoint is to go from and to."""

    before: Target | None
    to: Target


def target(version: str | None, follow: str | None) -> Target:
    """Of a version or of a branch. Raises: BadInputError where it is both or neither."""
    if (version is None) == (follow is None):
        raise BadInputError("Name a VERSION, or a branch with --follow; `millrace versions` and `millrace log` list them.")
    return Target(version, follow)


def plan(instance: Instance, to: Target) -> Change:
    """The change, once what is to be served has been read from the store and opened.

    Raises: MillraceError where it is not there, DamageError where its parts are not whole.
    """
    if to.version is not None:
        Archive(instance).version(to.version)
    else:
        require_branch(instance, str(to.follow))
    return Change(instance.ledger().serving.get(ENDPOINT), to)


def plan_rollback(instance: Instance, version: str | None) -> Change:
    """To ``version``, else to the version before what is served: of a followed branch, its newest one.

    Raises: as ``plan``; MillraceError where there is none before.
    """
    return plan(instance, Target(version or _version_before(instance)))


def _version_before(instance: Instance) -> str:
    now = instance.ledger().serving.get(ENDPOINT)
    if now is None:
        raise MillraceError(f"Endpoint {ENDPOINT} has never served anything, so there is nothing to go back from.")
    archive = Archive(instance)
    branch = now.follow or str(now.version).rpartition(".")[0]
    versions = [mark.version for mark in archive.marks(branch) if mark.version is not None]
    earlier = versions[: versions.index(now.version)] if now.version in versions else versions
    if not earlier:
        raise MillraceError(
            f"Branch {branch} has no version before {words(now)}. Name one with `millrace rollback ... VERSION`."
        )
    return earlier[-1]


def decide(instance: Instance, change: Change, why: str) -> None:
    """Write the decision, and see that it counts; where that is served already, nothing is written.

    Raises: NotCountedError where another decision came first.
    """
    if change.before == change.to:
        return
    now_ms = time.time_ns() // 1_000_000
    decision = Serve(who=getpass.getuser(), why=why, when_ms=now_ms, endpoint=ENDPOINT, before=change.before, to=change.to)
    append_decision(instance.ledger_stream(), decision)
    ledger = instance.ledger()
    if decision not in ledger.counted:
        now = words(ledger.serving.get(ENDPOINT))
        raise NotCountedError(
            f"This decision was written and does not count: it starts from {words(change.before)}, and another has meanwhile "
            f"made the endpoint serve {now}. Look at `millrace log PIPELINE --ledger`, then decide again."
        )


def undo(change: Change, pipeline: str, home: str | None) -> str | None:
    """The command that goes back, or None where nothing was served before or nothing changed."""
    if change.before is None or change.before == change.to:
        return None
    at = ["--follow", change.before.follow] if change.before.version is None else [change.before.version]
    where = [] if home is None else ["--home", home]
    return shlex.join(["millrace", "serve", pipeline, *map(str, at), *where, "--reason", "undo", "--yes"])
