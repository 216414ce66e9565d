"""What a draft keeps of completions: the newest in a ring, and a random choice of each domain in a reservoir.

Both are bounded in tokens, prompts counted. The reservoir gives each completion a random number and keeps, of each domain,
those with the lowest. Where it has too many tokens, the domain that has most loses its highest. So each domain's are a uniform
sample of all that it ever brought, and a domain that is gone from the traffic keeps its share.

Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 2006, with equal
weights.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from millrace.learners.protocol import Value


@dataclass(frozen=True, slots=True, order=True)
class Kept:
    """A completion that is kept."""

    order: float  # the random number of the reservoir; 0 elsewhere
    value: bytes = field(compare=False)  # as it was packed
    weight: float = field(compare=False)  # > 0
    tokens: int = field(compare=False)
    domain: str = field(compare=False)


class Ring:
    """The newest, of so many tokens together at most; the newest one is kept whatever it has."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._held = 0
        self.items: deque[Kept] = deque()

    def add(self, item: Kept) -> None:
        """Keep a completion, and let the oldest go."""
        self.items.append(item)
        self._held += item.tokens
        while self._held > self._most and len(self.items) > 1:
            self._held -= self.items.popleft().tokens

    def draw(self, count: int, draws: np.random.Generator) -> list[Kept]:
        """So many, each at most once; fewer where fewer are held."""
        if not self.items:
            return []
        return [self.items[int(at)] for at in draws.choice(len(self.items), min(count, len(self.items)), replace=False)]


class Reservoir:
    """A random choice of each domain, of so many tokens together at most."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._held: dict[str, int] = {}  # tokens by domain, in order of first appearance
        self._items: dict[str, list[Kept]] = {}  # by domain, lowest number first

    @property
    def items(self) -> list[Kept]:
        """All that are held."""
        return [item for domain in self._items.values() for item in domain]

    def add(self, item: Kept) -> None:
        """Offer a completion that has its number."""
        insort(self._items.setdefault(item.domain, []), item)
        self._held[item.domain] = self._held.get(item.domain, 0) + item.tokens
        while sum(self._held.values()) > self._most and sum(map(len, self._items.values())) > 1:
            fullest = max(self._held, key=lambda domain: self._held[domain])
            self._held[fullest] -= self._items[fullest].pop().tokens
            if not self._items[fullest]:
                del self._items[fullest], self._held[fullest]

    def draw(self, count: int, draws: np.random.Generator) -> list[Kept]:
        """So many, each of a domain chosen evenly; one may come twice."""
        domains = list(self._items.values())
        if not domains:
            return []
        chosen = [domains[int(at)] for at in draws.integers(len(domains), size=count)]
        return [domain[int(draws.integers(len(domain)))] for domain in chosen]


def packed(prefix: str, items: Sequence[Kept]) -> dict[str, Value]:
    """Completions as arrays of a state."""
    return {
        f"{prefix}.bytes": np.frombuffer(b"".join(item.value for item in items), np.uint8).copy(),
        f"{prefix}.lengths": np.array([len(item.value) for item in items], dtype=np.int64),
        f"{prefix}.order": np.array([item.order for item in items], dtype=np.float64),
        f"{prefix}.weight": np.array([item.weight for item in items], dtype=np.float64),
        f"{prefix}.tokens": np.array([item.tokens for item in items], dtype=np.int64),
        f"{prefix}.domain": [item.domain for item in items],
    }


def unpacked(prefix: str, state: dict[str, Value]) -> Iterable[Kept]:
    """What ``packed`` was given."""
    blob, at = np.asarray(state[f"{prefix}.bytes"]).tobytes(), 0
    names = ("lengths", "order", "weight", "tokens")
    numbers = [np.asarray(state[f"{prefix}.{name}"]).tolist() for name in names]
    for length, order, weight, tokens, domain in zip(*numbers, state[f"{prefix}.domain"], strict=True):
        yield Kept(order, blob[at : at + length], weight, tokens, domain)
        at += length
