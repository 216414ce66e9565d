"""`millrace versions`: every version of a pipeline, what it weighs, who vouches for it, what names it and who serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from millrace.learners.errors import MillraceError
from millrace.services.config.names import BRANCH
from millrace.services.pipeline.archive import Archive
from millrace.services.pipeline.instance import ENDPOINT, Instance
from millrace.streams.branch.branch import fates_of
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Mark
from millrace.streams.journal.ledger import Ledger, Target
from millrace.streams.journal.store import read_checkpoint

NEWEST = "newest"  # in place of a version: the newest of the branch that is served


def versions(instance: Instance) -> Iterator[dict[str, Any]]:
    """Branch by branch, oldest first. A version whose parts are damaged says so instead of its size.

    Raises: DamageError where a journal or the ledger is damaged.
    """
    archive, ledger = Archive(instance), instance.ledger()
    for branch in instance.branches():
        for mark in archive.marks(branch):
            if mark.version is not None:
                yield _described(instance, ledger, mark)


def resolved(instance: Instance, name: str) -> str:
    """The version that a caller means: by its id, by an alias, or as the newest of the branch that is served.

    Raises: MillraceError where there is none yet.
    """
    return meant(Archive(instance), instance.ledger(), name)


def meant(archive: Archive, ledger: Ledger, name: str) -> str:
    """As ``resolved``, by what has been read already."""
    if name != NEWEST:
        return ledger.aliases.get(name, name)
    served = ledger.serving.get(ENDPOINT, Target(follow=BRANCH))
    branch = served.follow or str(served.version).rpartition(".")[0]
    versions = [mark.version for mark in archive.marks(branch) if mark.version is not None]
    if not versions:
        raise MillraceError(f"Branch {branch} has no version yet; `millrace run` marks one at its end.")
    return versions[-1]


def weight(instance: Instance) -> str:
    """What all that is kept weighs, in words."""
    ledger, archive, store = instance.ledger(), Archive(instance), instance.store()
    marked = [mark.version for branch in instance.branches() for mark in archive.marks(branch) if mark.version is not None]
    kept_versions = [version for version in marked if version not in ledger.released]
    total = sum(store.bytes_of(branch) for branch in instance.branches())
    return f"{len(kept_versions)} versions kept, {len(marked) - len(kept_versions)} let go; {total:,} bytes in {store.root}"


def _described(instance: Instance, ledger: Ledger, mark: Mark) -> dict[str, Any]:
    version = str(mark.version)
    facts: dict[str, Any] = {"version": version, "branch": mark.branch, "seq": mark.state_seq, "epoch": mark.epoch}
    facts |= {"learned": None, "bytes": None, "parts": "let go"} if version in ledger.released else _contents(instance, mark)
    facts["verified"] = verified(ledger, version)
    facts["aliases"] = ", ".join(name for name, named in sorted(ledger.aliases.items()) if named == version)
    facts["served_by"] = ", ".join(name for name, target in ledger.serving.items() if target.version == version)
    return facts


def _contents(instance: Instance, mark: Mark) -> dict[str, Any]:
    try:
        store, name = instance.store(), str(mark.checkpoint)
        learned = fates_of(store, mark)["learned"]
        size = sum(part.bytes for part in read_checkpoint(store, mark.branch, name).parts.values())
    except DamageError as error:
        return {"learned": None, "bytes": None, "parts": str(error)}
    return {"learned": learned, "bytes": size, "parts": "whole"}


def verified(ledger: Ledger, version: str) -> str:
    """What the ledger's certificate says of a version."""
    certificate = ledger.certificates.get(version)
    return "pending" if certificate is None else f"{certificate.verdict}, from {certificate.base}"
