"""Test-then-train scores of a draft, by domain: what it would have got accepted, beside what the served draft did.

Each completion is replayed with the draft before it is learned. alpha = accepted / tested positions. Its complement is the
loss that drift detectors watch. Of given answers the totals are the same, bit for bit, however they are cut; the answers of a
replay may differ in the last digit by what else was replayed in one block.

As served, only those count that are replayed too, so that both shares are of the same traffic. What is not a number is counted
as unscored and goes into no sum. There are at most 64 domains; what comes of more is one further domain, "other".

Source: Dawid, prequential analysis, JRSS A 1984; docs/design/learners.md#draft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from millrace.learners.draft.completion import domain_among, header_of
from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Array, Batch, Floats, Value


@dataclass(slots=True)
class DomainScores:
    """Of one domain."""

    rows: int = 0  # completions
    accepted: float = 0.0  # positions, of its own replay
    tested: float = 0.0
    served_accepted: float = 0.0  # positions, as served; of completions whose counts say something
    served_tested: float = 0.0
    unscored: int = 0  # completions whose replay was no number


SUMS = ("accepted", "tested", "served_accepted", "served_tested")


@dataclass(frozen=True, slots=True)
class DraftScores:
    """What a stream of completions scored: sums over completions."""

    rows: int = 0
    accepted: float = 0.0
    tested: float = 0.0
    served_accepted: float = 0.0
    served_tested: float = 0.0
    unscored: int = 0
    domains: dict[str, DomainScores] = field(default_factory=dict)  # in the order of their names


def seen_of(batch: Batch) -> Array:
    """What a completion is scored by: (n,) objects, each (domain, accepted as served, tested as served).

    Raises: BadInputError where the batch has no completions.
    """
    if batch.sequences is None or batch.y is None:
        raise BadInputError("column sequences: a draft is scored by completions, and the batch has none")
    seen = np.empty(len(batch), dtype=object)
    seen[:] = [
        (header_of(value).domain, *served) for value, served in zip(batch.sequences.tolist(), batch.y.tolist(), strict=True)
    ]
    return seen


class PrequentialDrafts:
    """Running scores of a draft.

    >>> scored, seen = PrequentialDrafts(), np.empty(1, dtype=object)
    >>> seen[0] = ("sql", 1.0, 4.0)
    >>> totals = scored.update(np.array([[3.0, 4.0]]), (), seen)
    >>> scored.totals.accepted, scored.totals.domains["sql"].served_accepted
    (3.0, 1.0)
    """

    def __init__(self) -> None:
        """No completions yet."""
        self.totals = DraftScores()

    def update(self, scores: Floats, classes: tuple[str, ...], seen: Array) -> DraftScores:
        """Count completions with their replay (n, 2) and what ``seen_of`` says of them; the totals. ``classes`` is empty.

        Raises: BadInputError where the shapes do not fit.
        """
        if scores.shape != (len(seen), 2) or classes:
            raise BadInputError(f"column scores: expected {(len(seen), 2)} and no classes, got {scores.shape}")
        domains = {name: DomainScores(**asdict(domain)) for name, domain in self.totals.domains.items()}
        for (accepted, tested), (name, *served) in zip(scores.tolist(), seen.tolist(), strict=True):
            _count(domains.setdefault(domain_among(domains, name), DomainScores()), (accepted, tested), served)
        self.totals = _totals(domains)
        return self.totals

    def losses(self, scores: Floats, classes: tuple[str, ...], seen: Array) -> Floats:
        """1 - alpha of each completion (n,) in [0, 1]; without a tested position that of all so far. Nothing is counted."""
        usual = 1.0 - self.totals.accepted / self.totals.tested if self.totals.tested else 0.0
        countable = np.isfinite(scores).all(axis=1) & (scores[:, 1] > 0)
        alpha = np.divide(scores[:, 0], scores[:, 1], out=np.full(len(seen), 1.0 - usual), where=countable)
        return np.asarray(np.clip(1.0 - alpha, 0.0, 1.0))

    def state(self) -> dict[str, Value]:
        """Everything, as plain values."""
        return {"domains": {name: asdict(domain) for name, domain in self.totals.domains.items()}}

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken."""
        self.totals = _totals({name: DomainScores(**values) for name, values in state["domains"].items()})


def _count(domain: DomainScores, own: tuple[float, float], served: Sequence[float]) -> None:
    """Add a completion of the domain: accepted and tested positions of its own replay, and as served."""
    domain.rows += 1
    if not np.isfinite(own).all():
        domain.unscored += 1
        return
    domain.accepted += own[0]
    domain.tested += own[1]
    if own[1] and not np.isnan(served[1]):
        domain.served_accepted += served[0]
        domain.served_tested += served[1]


def _totals(domains: Mapping[str, DomainScores]) -> DraftScores:
    """The sums, whose bits do not depend on the order of domains."""
    sums = {name: math.fsum(getattr(domain, name) for domain in domains.values()) for name in SUMS}
    rows, unscored = (sum(getattr(domain, name) for domain in domains.values()) for name in ("rows", "unscored"))
    return DraftScores(rows, **sums, unscored=unscored, domains=dict(sorted(domains.items())))
