"""What a draft keeps is bounded in tokens, and what is drawn comes from every domain."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.learners.draft.buffer import Kept, Reservoir, Ring, packed, unpacked


def kept(number: int, tokens: int = 10, domain: str = "", order: float = 0.0) -> Kept:
    """A completion that is told from others by its number."""
    return Kept(order, str(number).encode(), 1.0, tokens, domain)


def test_a_ring_holds_the_newest_and_never_more_tokens() -> None:
    """But the newest itself, however long it is."""
    ring = Ring(35)
    for number in range(10):
        ring.add(kept(number))
        assert sum(item.tokens for item in ring.items) <= 35
    assert [item.value for item in ring.items] == [b"7", b"8", b"9"]
    ring.add(kept(10, tokens=99))
    assert [item.value for item in ring.items] == [b"10"]


def test_a_domain_that_is_gone_keeps_its_share() -> None:
    """After 50 of chat and then 2,000 of sql each has half of the tokens; a ring would hold sql alone."""
    reservoir, draws = Reservoir(400), np.random.default_rng(1)
    for number in range(2_050):
        reservoir.add(kept(number, domain="chat" if number < 50 else "sql", order=draws.random()))
        assert sum(item.tokens for item in reservoir.items) <= 400
    domains = [item.domain for item in reservoir.items]
    assert (domains.count("chat"), domains.count("sql")) == (20, 20)
    drawn = [item.domain for item in reservoir.draw(1_000, draws)]
    assert 400 < drawn.count("chat") < 600  # 500 expected, deviation 16


def test_a_reservoir_is_a_uniform_sample_of_each_domain() -> None:
    """Over 400 seeds each of 20 completions is kept about as often as any other: chi-square below its 0.999 quantile."""
    counts = np.zeros(20)
    for seed in range(400):
        reservoir, draws = Reservoir(50), np.random.default_rng(seed)
        for number in range(20):
            reservoir.add(kept(number, order=draws.random()))
        counts[[int(item.value) for item in reservoir.items]] += 1
    assert counts.sum() == 400 * 5
    assert ((counts - 100) ** 2 / (100 * 0.75)).sum() < 43.8  # 19 degrees of freedom


@pytest.mark.parametrize("count", [0, 3])
def test_what_is_kept_comes_back_from_its_arrays(count: int) -> None:
    """Bytes, weights and order."""
    items = [Kept(0.25 * number, bytes(range(number)), 0.5, number, "a b") for number in range(count)]
    again = list(unpacked("ring", packed("ring", items)))
    assert again == items and [each.value for each in again] == [each.value for each in items]


def test_nothing_is_drawn_from_nothing() -> None:
    """Before anything is kept."""
    draws = np.random.default_rng(0)
    assert Ring(10).draw(3, draws) == [] and Reservoir(10).draw(3, draws) == []
