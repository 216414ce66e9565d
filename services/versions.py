"""`millrace versions`: every version of a pipeline, what it weighs, who vouches for it and who serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from millrace.learners.errors import DamageError
from millrace.services.follower import Archive
from millrace.services.instance import Instance
from millrace.streams.branch import load_part
from millrace.streams.entries import Mark
from millrace.streams.ledger import Ledger
from millrace.streams.store import read_manifest


def versions(instance: Instance) -> Iterator[dict[str, Any]]:
    """Branch by branch, oldest first. A version whose parts are damaged says so instead of its size.

    Raises: DamageError where a journal or the ledger is damaged.
    """
    archive, ledger = Archive(instance), instance.ledger()
    for branch in instance.branches():
        for mark in archive.marks(branch):
            if mark.version is not None:
                yield _described(instance, ledger, mark)


def _described(instance: Instance, ledger: Ledger, mark: Mark) -> dict[str, Any]:
    version = str(mark.version)
    certificate = ledger.certificates.get(version)
    facts: dict[str, Any] = {"version": version, "branch": mark.branch, "seq": mark.state_seq, "epoch": mark.epoch}
    try:
        store, name = instance.store(), str(mark.checkpoint)
        facts["learned"] = load_part(store, mark, "counts")["counts"]["learned"]
        facts["bytes"] = sum(part.bytes for part in read_manifest(store, mark.branch, name).parts.values())
        facts["parts"] = "whole"
    except DamageError as error:
        facts |= {"learned": None, "bytes": None, "parts": str(error)}
    facts["verified"] = "no" if certificate is None else f"{certificate.verdict}, from {certificate.base}"
    facts["served_by"] = ", ".join(name for name, target in ledger.serving.items() if target.version == version)
    return facts
