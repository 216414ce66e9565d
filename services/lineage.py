"""What a version is, in words that travel with it: where it stands, what it read, what it descends from, how good it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from millrace.learners.errors import DamageError
from millrace.learners.protocol import Value
from millrace.services.follower import Archive
from millrace.services.instance import Instance
from millrace.services.looking import shares
from millrace.services.versions import verified
from millrace.streams.branch import load_part
from millrace.streams.entries import Act, Fork, Mark
from millrace.streams.journal import Cursor, counted
from millrace.streams.ledger import Ledger

PREFIX = "millrace."
VERSION = PREFIX + "version"
STATE = PREFIX + "state_sha256"
SCORES = {"scores": "", "served_scores": "served_"}  # part -> before the names of its metrics
NOT_TOTALS = ("last", "sum")  # of the scores of numbers


@dataclass(frozen=True, slots=True)
class Listed:
    """A model version in a registry."""

    number: str
    tags: Mapping[str, str]

    @property
    def names(self) -> tuple[str | None, str | None]:
        """Which version of ours it holds, and of which state: a new home may give an old id to another."""
        return self.tags.get(VERSION), self.tags.get(STATE)


@dataclass(slots=True)
class Told:
    """What a journal says beside its steps and marks, as far as it was read."""

    cursor: Cursor = field(default_factory=Cursor)
    fork: Fork | None = None
    acts: list[Act] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Genealogy:
    """Where versions come from, read on from journal and store whenever it is asked."""

    instance: Instance
    archive: Archive
    _told: dict[str, Told] = field(default_factory=dict)

    def tags(self, mark: Mark) -> dict[str, str]:
        """Of a version; they never change. Raises: DamageError where its parts or its journal are not whole."""
        fork, parent = self._fork(mark.branch), self._parent(mark)
        counts = load_part(self.instance.store(), mark, "counts")
        before = self._position(fork, parent)
        facts = {
            "version": mark.version,
            "branch": mark.branch,
            "epoch": mark.epoch,
            "seq": mark.state_seq,
            "parent": parent.version if parent else fork.parent and f"{fork.parent.branch}.{fork.parent.seq}",
            "cause": self._cause(mark, parent),
            "offsets": json.dumps({tp: [before.get(tp), to] for tp, to in sorted(counts["position"].items())}),
            "learned": counts["counts"]["learned"],
            "state_sha256": mark.state_sha256,
            "checkpoint_sha256": mark.checkpoint,
            "config_sha256": fork.config_sha256,
            "features_sha256": fork.features_sha256,
            "learner": f"{fork.learner} {fork.learner_revision}",
        }
        scored = {f"metric.{name}": f"{value:.6g}" for name, value in metrics(self.instance, mark).items()}
        return {PREFIX + name: str(value) for name, value in (facts | scored).items() if value is not None}

    def _read(self, branch: str) -> Told:
        told = self._told.setdefault(branch, Told())
        for entry in counted(self.instance.journal(branch), branch, told.cursor):
            told.fork = entry if isinstance(entry, Fork) else told.fork
            told.acts += [entry] if isinstance(entry, Act) else []
        return told

    def _fork(self, branch: str) -> Fork:
        fork = self._read(branch).fork
        if fork is None:
            raise DamageError(f"The journal of branch {branch} has no fork entry. Restore it from a copy.")
        return fork

    def _cause(self, mark: Mark, parent: Mark | None) -> str:
        """The newest act since the parent; else the end of a run, or so many records."""
        since = 0 if parent is None else parent.state_seq
        for act in reversed(self._told[mark.branch].acts):
            if since < act.seq <= mark.state_seq:
                return f"{act.cause}: {act.words}, {act.evidence}"
        return f"worker.version_rows = {self.instance.loaded.pipeline.worker.version_rows}, or the end of a run"

    def _parent(self, mark: Mark) -> Mark | None:
        """The version before, on the same branch."""
        earlier = [one for one in self.archive.marks(mark.branch) if one.version is not None and one.state_seq < mark.state_seq]
        return earlier[-1] if earlier else None

    def _position(self, fork: Fork, parent: Mark | None) -> dict[str, int]:
        """Where a version began to read: where its parent ended, nothing where that is no longer known."""
        if parent is None:
            return dict(fork.positions)
        try:
            return dict(load_part(self.instance.store(), parent, "counts")["position"])
        except DamageError:
            return {}


def standing(ledger: Ledger, version: str) -> dict[str, str]:
    """Tags of a version that change: what its certificate says."""
    return {PREFIX + "verified": verified(ledger, version)}


def metrics(instance: Instance, mark: Mark) -> dict[str, float]:
    """What a version scored since its branch began, each answer given before its row was learned."""
    found: dict[str, float] = {}
    for part, before in SCORES.items() if instance.loaded.pipeline.labels is not None else [("scores", "")]:
        scores = load_part(instance.store(), mark, part)
        totals: dict[str, Any] = {name: _plain(value) for name, value in scores.get("totals", scores).items()}
        means = shares({name: value for name, value in totals.items() if name not in NOT_TOTALS})
        found |= {before + name: value for name, value in means.items() if value is not None}
    return found


def _plain(value: Value) -> Value:
    return value.tolist() if isinstance(value, np.ndarray) else value
