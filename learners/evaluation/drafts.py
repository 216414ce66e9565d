"""Test-then-train scores of a draft, by domain: what it would have got accepted, beside what the served draft did.

Each completion is replayed with the draft before it is learned. alpha = accepted / tested positions. Its complement is the
loss that drift detectors watch. The same completions give the same totals, bit for bit, however they are cut.

Source: Dawid, prequential analysis, JRSS A 1984; docs/design/learners.md#draft.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from millrace.learners.draft.completion import header_of
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


@dataclass(frozen=True, slots=True)
class DraftScores:
    """What a stream of completions scored: sums over completions."""

    rows: int = 0
    accepted: float = 0.0
    tested: float = 0.0
    served_accepted: float = 0.0
    served_tested: float = 0.0
    domains: dict[str, DomainScores] = field(default_factory=dict)  # in order of first appearance


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
            domain = domains.setdefault(name, DomainScores())
            domain.rows += 1
            domain.accepted += accepted
            domain.tested += tested
            if not np.isnan(served[1]):
                domain.served_accepted += served[0]
                domain.served_tested += served[1]
        self.totals = DraftScores(
            sum(domain.rows for domain in domains.values()),
            sum(domain.accepted for domain in domains.values()),
            sum(domain.tested for domain in domains.values()),
            sum(domain.served_accepted for domain in domains.values()),
            sum(domain.served_tested for domain in domains.values()),
            domains,
        )
        return self.totals

    def losses(self, scores: Floats, classes: tuple[str, ...], seen: Array) -> Floats:
        """1 - alpha of each completion (n,) in [0, 1]; without a tested position that of all so far. Nothing is counted."""
        usual = 1.0 - self.totals.accepted / self.totals.tested if self.totals.tested else 0.0
        alpha = np.divide(scores[:, 0], scores[:, 1], out=np.full(len(seen), 1.0 - usual), where=scores[:, 1] > 0)
        return np.asarray(np.clip(1.0 - alpha, 0.0, 1.0))

    def state(self) -> dict[str, Value]:
        """Everything, as plain values."""
        return {"domains": {name: asdict(domain) for name, domain in self.totals.domains.items()}}

    def load(self, state: dict[str, Value]) -> None:
        """Go on where ``state`` was taken."""
        self.totals = DraftScores(domains={name: DomainScores(**values) for name, values in state["domains"].items()})
        self.update(np.zeros((0, 2)), (), np.empty(0, dtype=object))
