"""What a journal says: the entries of one branch, as JSON that carries the checksum of its own bytes.

The rules are docs/design/journal.md, rules 2 to 4. Two fields are ours. ``Mark.state_seq``: a snapshot is written off the
learning thread and steps go on meanwhile, so a mark stands later in the stream than the state it names. ``Open.writer``: two
processes that start in the same instant would otherwise write the same bytes, and each take the other's for its own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from millrace.streams.checksummed import unseal
from millrace.streams.journal.exclusions import Exclusion
from millrace.streams.source import Position, Topic

Rejected = tuple[str, int, int | None, str]  # partition, offset, row within a columnar message or None, reason
Range = tuple[str, int, int, int, int]  # partition, from, to, records, crc32c of them


class StateName(msgspec.Struct, frozen=True):
    """A state by its place and its hash."""

    seq: int
    state_sha256: str


class Host(msgspec.Struct, frozen=True, omit_defaults=True):
    """What numerics depend on. States are compared bit for bit only between equal hosts."""

    cpu: str
    blas: str
    threads: int
    torch: str | None
    millrace: str
    python: str | None = None  # such as "3.12", of a learner whose numbers pass through Python's floats; else left out


class _Entry(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower, forbid_unknown_fields=True, kw_only=True):
    branch: str
    seq: int
    epoch: int


class Parent(msgspec.Struct, frozen=True):
    """The state of another branch that a fork begins from."""

    branch: str
    seq: int
    state_sha256: str


class Fork(_Entry, frozen=True, kw_only=True):
    """The first entry of a branch: where it comes from and what it is."""

    parent: Parent | None = None
    learner_from: str | None = None
    join_from: str | None = None
    detector_from: str | None = None
    positions: Position
    topics: dict[str, Topic]
    exclude: list[Exclusion] = []
    learner: str
    learner_revision: int
    fold_revision: int = 1
    config_sha256: str
    features_sha256: str
    seed: int


class Open(_Entry, frozen=True, kw_only=True):
    """A writer takes the branch after entry ``after_seq``."""

    after_seq: int
    restored: StateName | None  # the checkpoint it starts from; None: the fork's own start
    host: Host
    writer: str  # unique


class Step(_Entry, frozen=True, kw_only=True):
    """Records were read; this is all that folding them needs besides the log."""

    reads: list[Range]
    clock_ms: int
    rejected: list[Rejected] = []
    # Rows of messages that were refused as a whole, without the one that ``rejected`` has of each. Not written where there are
    # none, so that an earlier release reads what it could have written.
    refused_with: int | msgspec.UnsetType = msgspec.UNSET
    use: Literal["learn", "pass"] = "learn"


class Act(_Entry, frozen=True, kw_only=True):
    """The live writer decided something that changes what follows. Folding applies it and decides nothing."""

    # version: nothing but a mark; include: ends an exclusion, by its place in the fork's list; the others change the learner,
    # then a mark
    op: Literal["version", "discount", "reset", "relearn", "raise-rate", "include"]
    args: dict[str, int | float] = {}
    cause: Literal["detector", "operator"]
    evidence: str  # BRANCH.SEQ of the step whose output has the alarms, or what the operator gave as a reason

    @property
    def description(self) -> str:
        """What was done, such as ``relearn (rows = 300)``."""
        return self.op + (f" ({', '.join(f'{name} = {value}' for name, value in self.args.items())})" if self.args else "")


class Mark(_Entry, frozen=True, kw_only=True):
    """The state after entry ``state_seq`` has this hash, and lies in this checkpoint."""

    state_seq: int
    state_sha256: str
    checkpoint: str | None
    version: str | None = None


class Merge(_Entry, frozen=True, kw_only=True):
    """The state after this entry is the exact merge of these states of the shards (docs/design/journal.md, rule 15)."""

    of: list[tuple[str, int, str]]  # in shard order: branch, seq, sha256 of its learner part, which is what is merged


class End(_Entry, frozen=True, kw_only=True):
    """The branch goes no further; where another takes its place, that one does."""

    cause: str
    successor: str | None = None


Entry = Fork | Open | Step | Act | Mark | Merge | End

_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Fork | Open | Step | Act | Mark | Merge | End)


def decode_entry(raw: bytes, where: str) -> Entry:
    """The entry that ``seal`` wrote. Raises: DamageError naming ``where`` if a byte differs."""
    return unseal(raw, _DECODER, where)
