"""What operators and gates decided for a pipeline: one small stream with many writers.

An entry counts only if what it says it changes *from* is what is true there, so of two hands that reach for the same
endpoint one is told. Source: journal.md, rule 10.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from millrace.streams.entries import Host
from millrace.streams.sealed import seal, unseal
from millrace.streams.stream import Stream


class Target(msgspec.Struct, frozen=True):
    """What an endpoint answers from: one version, or the newest state of a branch."""

    version: str | None = None
    follow: str | None = None


def words(what: Target | None) -> str:
    """A target in words.

    >>> words(Target(version="main.7")), words(Target(follow="main")), words(None)
    ('version main.7', 'the newest of main', 'nothing')
    """
    if what is None:
        return "nothing"
    return f"the newest of {what.follow}" if what.version is None else f"version {what.version}"


class _Decision(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower, forbid_unknown_fields=True, kw_only=True):
    who: str
    why: str
    when_ms: int  # since 1970


class Serve(_Decision, frozen=True, kw_only=True):
    """An endpoint goes from one target to another."""

    endpoint: str
    before: Target | None = msgspec.field(name="from")
    to: Target


class Certificate(_Decision, frozen=True, kw_only=True):
    """A version was folded again from ``base`` in another process."""

    version: str
    base: str  # a version or checkpoint the folding began at, or "fork"
    state_sha256: str
    verdict: str  # "equal", or how far apart on another kind of host
    host: Host


Stage = Literal["planned", "running", "done", "taken-over", "aborted"]
NEXT: dict[Stage | None, tuple[Stage, ...]] = {
    None: ("planned",),
    "planned": ("running", "aborted"),
    "running": ("running", "done", "aborted"),  # running again: somebody resumed it
    "done": ("taken-over", "aborted"),
}


class Operation(_Decision, frozen=True, kw_only=True):
    """A replay goes from one stage to the next. Of all of a pipeline's one at a time is under way, from running to its end."""

    id: str
    before: Stage | None = msgspec.field(name="from")
    state: Stage
    plan_sha256: str
    branch: str  # that it makes


Decision = Serve | Certificate | Operation
_DECODER: msgspec.json.Decoder[Decision] = msgspec.json.Decoder(Serve | Certificate | Operation)


@dataclass(slots=True)
class Ledger:
    """The decisions that count, in order, and what is true after them."""

    path: str
    serving: dict[str, Target] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)  # by id, as they stand
    counted: list[Decision] = field(default_factory=list)
    offset: int = 0

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
        return next((one for one in self.operations.values() if one.state in ("running", "done")), None)

    def _take(self, decision: Decision) -> None:
        if isinstance(decision, Certificate):
            self.certificates[decision.version] = decision
        elif isinstance(decision, Operation):
            if not self._steps(decision):
                return
            self.operations[decision.id] = decision
        elif self.serving.get(decision.endpoint) == decision.before:
            self.serving[decision.endpoint] = decision.to
        else:
            return
        self.counted.append(decision)

    def _steps(self, one: Operation) -> bool:
        """Whether an operation may take this step: from where it stands, with its own plan, while no other is under way."""
        known, under_way = self.operations.get(one.id), self.operation
        before = None if known is None else known.state
        same = known is None or (known.plan_sha256, known.branch) == (one.plan_sha256, one.branch)
        free = one.state != "running" or under_way is None or under_way.id == one.id
        return same and free and one.before == before and one.state in NEXT.get(before, ())


def append_decision(stream: Stream, decision: Decision) -> None:
    """Append; whether it counts is seen by following the ledger."""
    stream.send(seal(decision)).offset()
