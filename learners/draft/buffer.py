"""What a draft keeps of completions: the newest in a ring, and a random choice of each domain in a reservoir.

Both are bounded in tokens, prompts counted. The reservoir gives each completion a random number and keeps, of each domain,
those with the lowest. Where it has too many tokens, the domain that has most loses its highest, and from then on takes none
from that number on. So each domain's are a uniform sample of all that it ever brought, long or short, and a domain that is
gone from the traffic keeps its share. There are at most 64 domains; what comes of more is one further domain, "other".

Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 2006, with equal
weights.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from millrace.learners.draft.completion import domain_among
from millrace.learners.protocol import Value, joined_bytes, unjoined


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
    """A random choice of each domain, of so many tokens together at most; one completion is kept whatever it has."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._held: dict[str, int] = {}  # tokens by domain, in order of first appearance; a domain that is known stays so
        self._items: dict[str, list[Kept]] = {}  # by domain, lowest number first
        self._below: dict[str, float] = {}  # by domain: numbers that are taken; the lowest that ever had to go

    @property
    def items(self) -> list[Kept]:
        """All that are held."""
        return [item for domain in self._items.values() for item in domain]

    @property
    def below(self) -> dict[str, float]:
        """Of each domain the lowest number that had to go, 1 where none had to."""
        return dict(self._below)

    def know(self, below: Mapping[str, float]) -> None:
        """Begin with these domains, before any completion is offered."""
        for domain, number in below.items():
            self._below[domain], self._items[domain], self._held[domain] = number, [], 0

    def add(self, item: Kept) -> None:
        """Offer a completion that has its number."""
        domain = domain_among(self._items, item.domain)
        if domain not in self._items:
            self.know({domain: 1.0})
        if item.order >= self._below[domain]:
            return
        insort(self._items[domain], replace(item, domain=domain))
        self._held[domain] += item.tokens
        while sum(self._held.values()) > self._most and sum(map(len, self._items.values())) > 1:
            self._drop(max(self._held, key=lambda name: self._held[name]))

    def _drop(self, domain: str) -> None:
        item = self._items[domain].pop()
        self._held[domain] -= item.tokens
        self._below[domain] = item.order

    def draw(self, count: int, draws: np.random.Generator) -> list[Kept]:
        """So many, each of a domain chosen evenly; one may come twice."""
        domains = [items for items in self._items.values() if items]
        if not domains:
            return []
        chosen = [domains[int(at)] for at in draws.integers(len(domains), size=count)]
        return [domain[int(draws.integers(len(domain)))] for domain in chosen]


def packed(prefix: str, items: Sequence[Kept]) -> dict[str, Value]:
    """Completions as arrays of a state, and the names of their domains once."""
    blob, lengths = joined_bytes([item.value for item in items])
    names = list(dict.fromkeys(item.domain for item in items))
    at = {name: place for place, name in enumerate(names)}
    return {
        f"{prefix}.bytes": blob.copy(),
        f"{prefix}.lengths": lengths,
        f"{prefix}.order": np.array([item.order for item in items], dtype=np.float64),
        f"{prefix}.weight": np.array([item.weight for item in items], dtype=np.float64),
        f"{prefix}.tokens": np.array([item.tokens for item in items], dtype=np.int64),
        f"{prefix}.domain": np.array([at[item.domain] for item in items], dtype=np.int64),
        f"{prefix}.domains": names,
    }


def unpacked(prefix: str, state: Mapping[str, Value]) -> Iterable[Kept]:
    """What ``packed`` was given."""
    values, names = unjoined(state[f"{prefix}.bytes"], state[f"{prefix}.lengths"]), state[f"{prefix}.domains"]
    numbers = [np.asarray(state[f"{prefix}.{name}"]).tolist() for name in ("order", "weight", "tokens", "domain")]
    for value, order, weight, tokens, domain in zip(values.tolist(), *numbers, strict=True):
        yield Kept(order, value, weight, tokens, names[domain])
