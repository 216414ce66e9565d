"""What operators and gates decided for a pipeline: one small stream with many writers.

An entry counts only if what it says it changes *from* is what is true there, so of two hands that reach for the same
endpoint one is told. Source: journal.md, rule 10.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


Decision = Serve | Certificate
_DECODER: msgspec.json.Decoder[Decision] = msgspec.json.Decoder(Serve | Certificate)


@dataclass(slots=True)
class Ledger:
    """The decisions that count, in order, and what is true after them."""

    path: str
    serving: dict[str, Target] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    counted: list[Decision] = field(default_factory=list)
    offset: int = 0

    def follow(self, stream: Stream) -> None:
        """Take in what the stream has from where this ledger has read to.

        Raises: DamageError naming a damaged entry.
        """
        for offset, raw in stream.read(self.offset):
            self._take(unseal(raw, _DECODER, f"{self.path}: the ledger entry at offset {offset}"))
            self.offset = offset + 1

    def _take(self, decision: Decision) -> None:
        if isinstance(decision, Certificate):
            self.certificates[decision.version] = decision
        elif self.serving.get(decision.endpoint) == decision.before:
            self.serving[decision.endpoint] = decision.to
        else:
            return
        self.counted.append(decision)


def append_decision(stream: Stream, decision: Decision) -> None:
    """Append; whether it counts is seen by following the ledger."""
    stream.send(seal(decision)).offset()
