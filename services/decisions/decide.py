"""`millrace serve`, `rollback` and `promote`: one entry in the ledger, which every replica follows by itself.

Ray, the trainer and MLflow may all be down. A decision counts only if what it changes *from* is still true.
"""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import dataclass

from millrace.learners.errors import BadInputError, MillraceError
from millrace.services.config.names import NAME_CHARACTERS
from millrace.services.decisions.versions import NEWEST, meant
from millrace.services.errors import NotCountedError, NotProvedError
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.services.user import user_name
from millrace.streams.journal.ledger import Alias, Ledger, Serve, Target, append_decision, describe_target
from millrace.streams.sharding import WHOLE, merging_branch, shard_of

NOTHING = "none"  # in place of a version: the alias is taken away
TAKEN = f"{NEWEST}|{NOTHING}|latest|v[0-9]+"  # names that mean something else, the last two in MLflow


@dataclass(frozen=True, slots=True)
class Change:
    """What the endpoint is to go from and to."""

    before: Target | None
    to: Target


@dataclass(frozen=True, slots=True)
class Naming:
    """Which version an alias is to go from and to; None: it names none."""

    name: str
    before: str | None
    to: str | None


def target(version: str | None, follow: str | None) -> Target:
    """Of a version or of a branch. Raises: BadInputError where it is both or neither."""
    if (version is None) == (follow is None):
        raise BadInputError("Name a VERSION, or a branch with --follow; `millrace versions` and `millrace log` list them.")
    return Target(version, follow)


def plan(instance: Instance, target: Target) -> Change:
    """The change, once what is to be served has been read from the store and, but for networks, opened.

    Raises: MillraceError where it is not there, DamageError where its parts are not whole.
    """
    archive, ledger = Archive(instance), instance.ledger()
    if target.version is not None:
        target = Target(version=servable(archive, ledger, target.version))
    else:
        refuse_part(str(target.follow))
        if instance.loaded.pipeline.llm is not None:
            raise BadInputError(f"Drafts are served by version. Name one, such as `millrace serve ... {NEWEST}`, not --follow.")
        _refuse_given_up(archive, str(target.follow))
    return Change(ledger.serving.get(ENDPOINT), target)


def servable(archive: Archive, ledger: Ledger, name: str) -> str:
    """The version that a caller means, once it has been read. Raises: as ``plan``."""
    version = meant(archive, ledger, name)
    refuse_part(version.rpartition(".")[0])
    refuse_released(ledger, version)
    archive.check(version)
    return version


def plan_promotion(instance: Instance, name: str, version: str) -> Naming:
    """To let an alias name ``version``, once that has been read from the store as for ``plan``; ``none`` takes the alias away.

    Raises: as ``plan``; BadInputError for a name that cannot be one, NotProvedError for a version that differs from its log.
    """
    if not name or not set(name) <= NAME_CHARACTERS or re.fullmatch(TAKEN, name.lower()):
        raise BadInputError(f"--alias {name!r}: must be letters, digits, - and _, and not latest, newest, none or v1, v2 ...")
    ledger = instance.ledger()
    if version == NOTHING:
        return Naming(name, ledger.aliases.get(name), None)
    version = servable(Archive(instance), ledger, version)
    certificate = ledger.certificates.get(version)
    if certificate is not None and not certificate.holds:
        raise NotProvedError(f"Version {version} {certificate.verdict}, says its certificate. It is not promoted.")
    return Naming(name, ledger.aliases.get(name), version)


def refuse_part(branch: str) -> None:
    """Raises: BadInputError where a branch is one of several shards, which no endpoint and no alias is for."""
    if shard_of(branch) != WHOLE:
        raise BadInputError(
            f"Branch {branch} is a shard and has learned a part of the log. Name {merging_branch(branch)}, or a version of it."
        )


def refuse_released(ledger: Ledger, version: str) -> None:
    """Raises: MillraceError where a version is no longer kept."""
    if version in ledger.released:
        raise MillraceError(
            f"Version {version} is no longer kept: it was older than the newest that versions.keep says, and nothing named it. "
            "`millrace versions` lists those that are."
        )


def _refuse_given_up(archive: Archive, branch: str) -> None:
    end = archive.summary(branch).end.ended
    if end is not None and end.successor is None:
        raise MillraceError(
            f"Branch {branch} has ended ({end.cause}), and nothing goes on from it. Follow another, or serve a version of it."
        )


def decide(instance: Instance, change: Change | Naming, reason: str) -> None:
    """Write the decision, and see that it counts; where that is so already, nothing is written.

    Raises: NotCountedError where another decision came first.
    """
    if change.before == change.to:
        return
    decision = _decision(change, user_name(), reason)
    append_decision(instance.ledger_stream(), decision)
    ledger = instance.ledger()
    if decision not in ledger.counted:
        raise NotCountedError(
            f"This decision was written and does not count: it starts from {describe(change.before)}, and another has "
            f"meanwhile {_instead(ledger, decision)}. Look at `millrace log PIPELINE --ledger`, then decide again."
        )


def _decision(change: Change | Naming, user: str, reason: str) -> Serve | Alias:
    when_ms = time.time_ns() // 1_000_000
    if isinstance(change, Naming):
        return Alias(who=user, why=reason, when_ms=when_ms, name=change.name, before=change.before, to=change.to)
    return Serve(who=user, why=reason, when_ms=when_ms, endpoint=ENDPOINT, before=change.before, to=change.to)


def _instead(ledger: Ledger, decision: Serve | Alias) -> str:
    target = decision.to.version if isinstance(decision.to, Target) else decision.to
    if target in ledger.released:
        return f"let go of version {target}"
    if isinstance(decision, Alias):
        return f"made {decision.name} name {describe(ledger.aliases.get(decision.name))}"
    return f"made the endpoint serve {describe_target(ledger.serving.get(decision.endpoint))}"


def describe(target: Target | str | None) -> str:
    """A target or a version in words."""
    return describe_target(Target(version=target) if isinstance(target, str) else target)


def undo(change: Change | Naming, pipeline: str, home_folder: str | None) -> str | None:
    """The command that goes back; None for a first decision, and for one that changed nothing."""
    if change.before == change.to:
        return None
    if isinstance(change, Naming):
        back = ["promote", pipeline, change.before or NOTHING, "--alias", change.name]
    elif change.before is None:
        return None
    else:
        at = ["--follow", change.before.follow] if change.before.version is None else [change.before.version]
        back = ["serve", pipeline, *map(str, at)]
    home_option = [] if home_folder is None else ["--home", home_folder]
    return shlex.join(["millrace", *back, *home_option, "--reason", "undo", "--yes"])
