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


def test_long_completions_are_kept_as_often_as_short_ones() -> None:
    """Of 60 in any order, half have 10 tokens and half 40: over 300 seeds each kind has about half of the places."""
    kept_of = {10: 0, 40: 0}
    for seed in range(300):
        reservoir, draws = Reservoir(800), np.random.default_rng(seed)
        for number, tokens in enumerate(draws.permutation([10, 40] * 30).tolist()):
            reservoir.add(kept(number, tokens, order=draws.random()))
        for item in reservoir.items:
            kept_of[item.tokens] += 1
    assert 0.92 < kept_of[40] / kept_of[10] < 1.0  # the last that has no room is longer than average; by numbers alone 0.96


def test_what_had_to_go_sets_the_number_that_is_taken_from_then_on() -> None:
    """Also in a reservoir that was made from another's state, and where room has come since."""
    reservoir = Reservoir(50)
    for number, (tokens, order) in enumerate([(20, 0.1), (20, 0.5), (30, 0.7), (40, 0.3)]):
        reservoir.add(kept(number, tokens, order=order))
    assert [item.value for item in reservoir.items] == [b"0"] and reservoir.below == {"": 0.3}
    again = Reservoir(50)
    again.know(reservoir.below)
    for item in reservoir.items:
        again.add(item)
    for one in (reservoir, again):
        one.add(kept(4, 5, order=0.4))
        one.add(kept(5, 5, order=0.2))
        assert [item.value for item in one.items] == [b"0", b"5"]


def test_domains_beyond_64_are_one_further() -> None:
    """Callers name domains: what they say takes bounded room, and every completion has its place."""
    reservoir = Reservoir(10_000)
    for number in range(200):
        reservoir.add(kept(number, domain=f"domain {number % 100}", order=number / 200))
    domains = [item.domain for item in reservoir.items]
    assert len(domains) == 200 and len(set(domains)) == len(reservoir.below) == 65 and domains.count("other") == 72


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
