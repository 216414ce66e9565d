"""What a version is, in words that travel with it: where it stands, what it read, what it descends from, how good it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from millrace.learners.protocol import Value
from millrace.services.decisions.status import shares
from millrace.services.decisions.versions import verified
from millrace.services.pipeline.instance import Instance
from millrace.services.proof.merges import is_merged, merged_from
from millrace.streams.branch.branch import fates_of, load_part, manifest_of
from millrace.streams.errors import DamageError
from millrace.streams.journal.entries import Fork, Mark
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.ledger import Ledger
from millrace.streams.journal.store import Segment

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


@dataclass(frozen=True, slots=True)
class Genealogy:
    """Where versions come from: as each one's segment says."""

    instance: Instance
    _forks: dict[str, Fork] = field(default_factory=dict)

    def tags(self, mark: Mark) -> dict[str, str]:
        """Of a version; they never change. Raises: DamageError where its parts or its journal are not whole."""
        store = self.instance.store()
        fork, segment = self._fork(mark.branch), manifest_of(store, mark).segment
        counts = load_part(store, mark, "counts")
        facts = {
            "version": mark.version,
            "branch": mark.branch,
            "epoch": mark.epoch,
            "seq": mark.state_seq,
            "learned": fates_of(store, mark)["learned"],
            "state_sha256": mark.state_sha256,
            "checkpoint_sha256": mark.checkpoint,
            "config_sha256": fork.config_sha256,
            "features_sha256": fork.features_sha256,
            "learner": f"{fork.learner} {fork.learner_revision}",
            "parent": parent(segment),
            "offsets": _offsets({} if segment is None else segment.began, counts["position"]),
        }
        facts |= {} if segment is None else _segment_facts(segment)
        if is_merged(self.instance, mark.branch):
            facts["merges"] = ", ".join(merged_from(self.instance, str(mark.version)))
        scored = {f"metric.{name}": f"{value:.6g}" for name, value in metrics(self.instance, mark).items()}
        return {PREFIX + name: str(value) for name, value in (facts | scored).items() if value is not None}

    def _fork(self, branch: str) -> Fork:
        if branch not in self._forks:
            fork = summarise(self.instance.journal(branch), branch).fork
            if fork is None:
                raise DamageError(f"The journal of branch {branch} has no fork entry. Restore it from a copy.")
            self._forks[branch] = fork
        return self._forks[branch]


def parent(segment: Segment | None) -> str | None:
    """The version before, or the one that the branch begins at; None where there is none, or an old version does not say."""
    if segment is None:
        return None
    if segment.parent is not None:
        return segment.parent.version
    return None if segment.fork.parent is None else f"{segment.fork.parent.branch}.{segment.fork.parent.seq}"


def parent_sha256(segment: Segment) -> str | None:
    """The state of that version."""
    if segment.parent is not None:
        return segment.parent.state_sha256
    return None if segment.fork.parent is None else segment.fork.parent.state_sha256


def _segment_facts(segment: Segment) -> dict[str, Any]:
    """What a segment alone says."""
    entries = segment.entries
    return {
        "cause": segment.cause,
        "entries": f"{entries.count} at journal offsets {entries.first} to {entries.stop - 1}",
        "segment_sha256": entries.sha256,
        "parent_sha256": parent_sha256(segment),
        "topics": json.dumps({name: topic.id for name, topic in sorted(segment.fork.topics.items())}),
        "host": json.dumps(msgspec.to_builtins(entries.host)),
    }


def _offsets(start: Mapping[str, int], position: Mapping[str, int]) -> str:
    return json.dumps({tp: [start.get(tp), stop] for tp, stop in sorted(position.items())})


def verified_tags(ledger: Ledger, version: str) -> dict[str, str]:
    """Tags of a version that change: what its certificate says."""
    return {PREFIX + "verified": verified(ledger, version)}


def metrics(instance: Instance, mark: Mark) -> dict[str, float]:
    """What a version scored since its branch began, each answer given before its row was learned."""
    values: dict[str, float] = {}
    for part, before in SCORES.items() if instance.loaded.pipeline.labels is not None else [("scores", "")]:
        means = shares({name: value for name, value in _totals(instance, mark, part).items() if name not in NOT_TOTALS})
        values |= {before + name: value for name, value in means.items() if value is not None}
    return values


def _totals(instance: Instance, mark: Mark, part: str) -> dict[str, Any]:
    """As the version's segment has them; of an old version, as its checkpoint has."""
    manifest = manifest_of(instance.store(), mark)
    segment = manifest.segment
    if segment is not None and part in segment.scores:
        return segment.scores[part]
    if part not in manifest.parts:  # a merge: its shards have the scores
        return {"rows": 0}
    scores = load_part(instance.store(), mark, part)
    return {name: _plain(value) for name, value in scores.get("totals", scores).items()}


def _plain(value: Value) -> Value:
    return value.tolist() if isinstance(value, np.ndarray) else value
