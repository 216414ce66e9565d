"""What operators and gates decided for a pipeline: one small stream with many writers.

An entry counts only if what it says it changes *from* is true there. So of two operators that change the same endpoint one is
told. Source: docs/design/journal.md, rule 10.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from millrace.streams.checksummed import seal, unseal
from millrace.streams.journal.entries import Host
from millrace.streams.stream import Stream

DIFFERS = "differs"  # begins the verdict on a version that is not what its log says


class Target(msgspec.Struct, frozen=True):
    """What an endpoint answers from: one version, or the newest state of a branch."""

    version: str | None = None
    follow: str | None = None


def describe_target(target: Target | None) -> str:
    """A target in words.

    >>> describe_target(Target(version="main.7")), describe_target(Target(follow="main")), describe_target(None)
    ('version main.7', 'the newest of main', 'nothing')
    """
    if target is None:
        return "nothing"
    return f"the newest of {target.follow}" if target.version is None else f"version {target.version}"


class _Decision(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower, forbid_unknown_fields=True, kw_only=True):
    who: str
    why: str
    when_ms: int  # since 1970


class Serve(_Decision, frozen=True, kw_only=True):
    """An endpoint goes from one target to another."""

    endpoint: str
    before: Target | None = msgspec.field(name="from")
    to: Target


class Alias(_Decision, frozen=True, kw_only=True):
    """A name, such as champion, goes from one version to another; None: it names nothing."""

    name: str
    before: str | None = msgspec.field(name="from")
    to: str | None


class Release(_Decision, frozen=True, kw_only=True):
    """Versions that no policy keeps any longer: their parts may be deleted once this counts.

    Of those listed, what is named here stays. What was released is never served or named again. A writer may have deleted it
    while an operator names it, and the endpoint would have nothing to answer from.
    """

    versions: list[str]


class Certificate(_Decision, frozen=True, kw_only=True):
    """A version was folded again from ``base`` in another process."""

    version: str
    base: str  # a version or checkpoint the folding began at, or "fork"
    state_sha256: str
    verdict: str  # "equal", how far apart on another kind of host, or "differs" and where
    host: Host

    @property
    def holds(self) -> bool:
        """Whether the version is what its log says."""
        return not self.verdict.startswith(DIFFERS)


OperationState = Literal["planned", "running", "done", "taken-over", "aborted"]
NEXT: dict[OperationState | None, tuple[OperationState, ...]] = {
    None: ("planned",),
    "planned": ("running", "aborted"),
    "running": ("running", "done", "aborted"),  # running again: somebody resumed it
    "done": ("taken-over", "aborted"),
}


class Operation(_Decision, frozen=True, kw_only=True):
    """A replay goes from one stage to the next. Of all of a pipeline's one at a time is under way, from running to its end."""

    id: str
    before: OperationState | None = msgspec.field(name="from")
    state: OperationState
    plan_sha256: str
    branch: str  # that it makes
    version: str | None = None  # that it begins at, kept until then: of a plan alone, as what has begun has parts of its own


class Redrive(_Decision, frozen=True, kw_only=True):
    """Dead letters, by their offsets, are sent once more. Of two hands that reach for one the second does not count."""

    offsets: list[int]
    again: bool = False  # those that were sent before, too


class Include(_Decision, frozen=True, kw_only=True):
    """Records that a branch leaves out are read again from its next step on: its writer journals an ``act``."""

    branch: str
    exclusion: int  # its place in the list of the branch's fork


class PastRejects(_Decision, frozen=True, kw_only=True):
    """Records that a branch refuses do not stop it below these offsets, however many they are."""

    branch: str  # of several shards: that they are merged into
    until: dict[str, int]  # by partition, an offset


class Closing(_Decision, frozen=True, kw_only=True):
    """An alarm no longer stands. Of two hands that close one for the same branches the second does not count."""

    alarm: str  # its id: BRANCH.SEQ.NUMBER
    # operator: somebody has looked; the others: a branch that has learned none of its rows since its onset is live in its place
    cause: Literal["operator", "take-over", "rollback"]
    branch: str | None = None  # for what comes from this branch, which went on without its rows; None: wherever it stands


Decision = Serve | Alias | Release | Certificate | Operation | Redrive | Include | PastRejects | Closing
_DECODER: msgspec.json.Decoder[Decision] = msgspec.json.Decoder(Decision)


@dataclass(slots=True)
class Ledger:
    """The decisions that count, in order, and what is true after them."""

    path: str
    serving: dict[str, Target] = field(default_factory=dict)  # by endpoint
    aliases: dict[str, str] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)  # versions whose parts may be gone
    certificates: dict[str, Certificate] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)  # by id, as they stand
    included: set[tuple[str, int]] = field(default_factory=set)  # branches, and exclusions of theirs that have ended
    redriven: set[int] = field(default_factory=set)  # dead letters, by their offsets
    passed_by: dict[str, dict[str, int]] = field(default_factory=dict)  # by branch and partition, as ``PastRejects`` says
    closings: dict[str, list[Closing]] = field(default_factory=dict)  # by the id of their alarm, oldest first
    counted: list[Decision] = field(default_factory=list)
    offset: int = 0
    _left: dict[tuple[str, str], str | None] = field(default_factory=dict)  # what an endpoint or alias named before

    @property
    def named(self) -> set[str]:
        """Versions that an alias names or an endpoint serves, or did last, so that an undo finds them; and those of plans."""
        versions = [*self.aliases.values(), *(target.version for target in self.serving.values()), *self._left.values()]
        versions += [operation.version for operation in self.operations.values()]
        return {version for version in versions if version is not None}

    def follow(self, stream: Stream) -> None:
        """Take in what the stream has from where this ledger has read to.

        Raises: DamageError naming a damaged entry.
        """
        for offset, raw in stream.read(self.offset):
            self._take(unseal(raw, _DECODER, f"{self.path}: the ledger entry at offset {offset}"))
            self.offset = offset + 1

    @property
    def operation(self) -> Operation | None:
        """The one under way."""
        return next((operation for operation in self.operations.values() if operation.state in ("running", "done")), None)

    def closing_of(self, alarm: str, branches: Collection[str]) -> Closing | None:
        """What closed an alarm for a state that comes through ``branches``; None: it stands there."""
        closings = self.closings.get(alarm, [])
        return next((closing for closing in closings if closing.branch is None or closing.branch in branches), None)

    def _take(self, decision: Decision) -> None:
        if self._counts(decision):
            self._apply(decision)
            self.counted.append(decision)

    def _counts(self, decision: Decision) -> bool:
        if isinstance(decision, Serve):
            return self.serving.get(decision.endpoint) == decision.before and decision.to.version not in self.released
        if isinstance(decision, Alias):
            return self.aliases.get(decision.name) == decision.before and decision.to not in self.released
        if isinstance(decision, Operation):
            return self._steps(decision)
        if isinstance(decision, Redrive):
            return decision.again or self.redriven.isdisjoint(decision.offsets)
        if isinstance(decision, Include):
            return (decision.branch, decision.exclusion) not in self.included
        if isinstance(decision, Closing):
            return self.closing_of(decision.alarm, [] if decision.branch is None else [decision.branch]) is None
        return isinstance(decision, Certificate | PastRejects) or not self.named.issuperset(decision.versions)

    def _apply(self, decision: Decision) -> None:
        if isinstance(decision, Serve):
            self.serving[decision.endpoint] = decision.to
            self._left["endpoint", decision.endpoint] = None if decision.before is None else decision.before.version
        elif isinstance(decision, Alias):
            self.aliases.pop(decision.name, None)
            self.aliases |= {decision.name: decision.to} if decision.to is not None else {}
            self._left["alias", decision.name] = decision.before
        elif isinstance(decision, Release):
            self.released |= set(decision.versions) - self.named
        elif isinstance(decision, Operation):
            self.operations[decision.id] = decision
        elif isinstance(decision, Include):
            self.included.add((decision.branch, decision.exclusion))
        elif isinstance(decision, PastRejects):
            self.passed_by[decision.branch] = self.passed_by.get(decision.branch, {}) | decision.until
        elif isinstance(decision, Redrive):
            self.redriven |= set(decision.offsets)
        elif isinstance(decision, Closing):
            self.closings.setdefault(decision.alarm, []).append(decision)
        else:
            self.certificates[decision.version] = decision

    def _steps(self, operation: Operation) -> bool:
        """Whether an operation may take this step: from where it stands, with its own plan, while no other is under way."""
        earlier, under_way = self.operations.get(operation.id), self.operation
        before = None if earlier is None else earlier.state
        same = earlier is None or (earlier.plan_sha256, earlier.branch) == (operation.plan_sha256, operation.branch)
        free = operation.state != "running" or under_way is None or under_way.id == operation.id
        return same and free and operation.before == before and operation.state in NEXT.get(before, ())


def append_decision(stream: Stream, decision: Decision) -> None:
    """Append; whether it counts is seen by following the ledger."""
    stream.send(seal(decision)).offset()
