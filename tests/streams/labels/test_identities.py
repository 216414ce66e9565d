"""Remembered identities: as a dictionary remembers them, in few parts that never change, and few of them in memory."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from millrace.streams.labels.identities import BUCKETS, NO_LABEL, Identities
from millrace.streams.parts import pack, unpack

KEEP_MS = 1600


class Plain:
    """The same in a dictionary: an identity is forgotten when ``KEEP_MS`` have gone by since the end of its bucket."""

    def __init__(self) -> None:
        self.known: dict[int, dict[int, tuple[int, int]]] = {}

    def add(self, identity: int, revision: int, label: int, now_ms: int) -> None:
        width_ms = KEEP_MS // BUCKETS
        self.known.setdefault(identity, {})[revision] = (label, (now_ms // width_ms + 1) * width_ms + KEEP_MS)

    def get(self, identity: int, now_ms: int) -> dict[int, int]:
        revisions = self.known.get(identity, {})
        return {revision: label for revision, (label, until_ms) in revisions.items() if now_ms < until_ms}


def again(known: Identities, segment_rows: int) -> Identities:
    """The same after a restart."""
    other = Identities(KEEP_MS, segment_rows)
    state = unpack(pack(known.state()), "here")
    other.load(state, {number: unpack(pack(part), "here") for number, part in known.parts()})
    return other


def whole(known: Identities) -> list[bytes]:
    """All of it as bytes."""
    return [pack(known.state()), *(pack(part) for _, part in known.parts())]


@settings(max_examples=60, deadline=None)
@given(seed=some.integers(0, 10_000), segment_rows=some.integers(1, 9), restarts=some.booleans())
def test_what_is_known_is_what_a_dictionary_would_know(seed, segment_rows, restarts):
    """Whenever segments close, merge and go, and through restarts; the state is the same with and without them."""
    chance, plain, now_ms = random.Random(seed), Plain(), 0
    known, steady = Identities(KEEP_MS, segment_rows), Identities(KEEP_MS, segment_rows)
    ids = [chance.randrange(-(2**63), 2**63) for _ in range(40)] + [2**63 - 1, -(2**63), 0]
    for _ in range(40):
        coming = [chance.choice(ids) for _ in range(6)]
        for each in (known, steady):
            each.approach(np.array(coming, dtype=np.int64))
        for identity in coming:
            now_ms += chance.choice([0, 1, 20, 200]) + (2000 if chance.random() < 0.02 else 0)
            for each in (known, steady):
                each.advance(now_ms)
            assert known.get(identity) == steady.get(identity) == plain.get(identity, now_ms)
            assert known.maybe(identity) or not known.get(identity)
            revision = max(known.get(identity), default=NO_LABEL) + 1
            plain.add(identity, revision, revision * 7, now_ms)
            for each in (known, steady):
                each.add(identity, revision, revision * 7, now_ms)
        if restarts and chance.random() < 0.3:
            known = again(known, segment_rows)
        assert whole(known) == whole(steady)


def test_memory_is_bounded_and_a_closed_part_never_changes():
    """Of 300,000 identities few are objects; they lie in few parts, each the same bytes until it is merged or forgotten."""
    known = Identities(keep_ms=300_000, segment_rows=500)
    seen: dict[int, int] = {}
    for at in range(320_000):
        if at >= known.turn_ms:
            known.advance(at)
        known.add(at * 7919 * 2**40 % 2**63, 0, at, at)
        assert known.held_rows < 500
        if at % 20_000 == 0:
            for number, part in known.parts():
                assert seen.setdefault(number, hash(part["rows"].tobytes())) == hash(part["rows"].tobytes())
    assert known.rows >= 300_000 and known.segments < 100
    assert sum(part["rows"].nbytes for _, part in known.parts() if not isinstance(part["rows"], np.memmap)) < 1 << 20


def test_an_id_that_the_filter_lets_pass_by_mistake_is_not_known():
    """A Bloom filter only spares searches."""
    known = Identities(KEEP_MS, 4)
    for identity in range(4):
        known.add(identity << 40, 0, identity, 0)
    known.approach(np.array([0, 5 << 40, 3 << 40]))
    assert (known.get(0), known.get(5 << 40), known.get(3 << 40)) == ({0: 0}, {}, {0: 3})


@pytest.mark.parametrize("count", [1, 1000, 12_500])
def test_the_filter_lets_few_foreign_ids_pass(count):
    """About one in twenty at worst, and never stops one of its own."""
    chance = np.random.default_rng(3)
    known = Identities(KEEP_MS, count)
    own, foreign = (chance.integers(-(2**63), 2**63, size, dtype=np.int64) for size in (count, 20_000))
    for identity in own.tolist():
        known.add(identity, 0, 0, 0)
    (segment,) = known._closed.values()
    assert segment.of(np.sort(own)).shape[1] == count and segment.of(foreign).shape[1] == 0
    assert len(segment.passing(own)) == count and len(segment.passing(foreign)) < 0.1 * len(foreign)
