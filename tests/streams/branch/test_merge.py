"""The branch that merges shards: what it journals, what it refuses, and who may write it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from branches import HOST

from millrace.learners.analytic.exact import merge_disjoint
from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.errors import LearnerError
from millrace.learners.protocol import Batch
from millrace.streams.branch.branch import Backends, FoldSpec, state_hash
from millrace.streams.branch.merge import MergeInput, Merging, merge_of, merge_pieces, open_piece, piece_bytes
from millrace.streams.errors import DamageError, ReplacedError
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Codec
from millrace.streams.journal.journal import summarise
from millrace.streams.journal.store import ListStore
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.source import ListProducer, ListSource
from millrace.streams.stream import ListStream

SCHEMA = Schema((Field("x", size=3),), Label("kind"))
RECIPE = FoldSpec("small", SCHEMA, Codec(SCHEMA, 1 << 20), "ridge", lambda: Ridge(RidgeConfig(), 3, 0), 10, 1000, 0, b"{}")


def piece(name: str, seed: int, rows: int = 40, seq: int = 5) -> MergeInput:
    """A shard that has learned some rows."""
    rng = np.random.default_rng(seed)
    learner = Ridge(RidgeConfig(), 3, 0)
    learner.learn_many(Batch(rng.normal(size=(rows, 3)), np.array(["a", "b"], dtype=object)[rng.integers(2, size=rows)]))
    counts = {"position": {f"small:{seed}": rows}, "clock_ms": seed, "counts": {"learned": rows, "passed": 0, "rejected": 0}}
    return MergeInput(name, seq, learner.state_dict(), Features(SCHEMA).state(), counts)


def backends() -> Backends:
    """A branch in memory."""
    return Backends(ListSource([]), ListProducer(), ListStream(), ListStore())


def merging(where: Backends) -> Merging:
    """Its writer."""
    return Merging(RECIPE, where, "main", merge_disjoint, HOST)


def test_a_version_is_what_merging_its_pieces_again_gives() -> None:
    """The mark's hash is that of the merge of the pieces that its entry names, in any process."""
    where, pieces = backends(), [piece("main-1of2", 1), piece("main-2of2", 2)]
    writer = merging(where)
    version = writer.mark(writer.merge(pieces))
    entry = merge_of(where.journal, "main", version)
    again = merge_pieces(RECIPE, merge_disjoint, entry, [open_piece(piece_bytes(shard)) for shard in pieces])
    assert state_hash(again.parts()) == summarise(where.journal, "main").marks[-1].state_sha256
    assert again.counts == {
        "position": {"small:1": 40, "small:2": 40},
        "clock_ms": 2,
        "counts": {"learned": 80, "passed": 0, "rejected": 0},
    }


def test_other_pieces_are_not_what_was_merged() -> None:
    """A piece with other statistics, or in another order, is damage."""
    where, pieces = backends(), [piece("main-1of2", 1), piece("main-2of2", 2)]
    entry = merging(where).merge(pieces).entry
    for wrong in ([pieces[0], piece("main-2of2", 3)], pieces[::-1], pieces[:1], [pieces[0], replace(pieces[1], seq=6)]):
        with pytest.raises(DamageError, match="of other states"):
            merge_pieces(RECIPE, merge_disjoint, entry, wrong)


def test_a_replaced_merger_lets_nothing_out() -> None:
    """The fence is that of every branch: once another has opened it, a merge of the first does not count."""
    where, pieces = backends(), [piece("main-1of2", 1), piece("main-2of2", 2)]
    zombie = merging(where)
    heir = merging(where)
    with pytest.raises(ReplacedError):
        zombie.merge(pieces)
    assert heir.mark(heir.merge(pieces)) == f"main.{heir.seq - 1}"
    assert len(summarise(where.journal, "main").marks) == 1


def test_a_crash_between_merge_and_mark_leaves_a_merge_without_a_version() -> None:
    """What was merged and not marked stays without a version; the next writer marks one of its own."""
    where, pieces = backends(), [piece("main-1of2", 1), piece("main-2of2", 2)]
    merging(where).merge(pieces)
    assert summarise(where.journal, "main").marks == []
    writer = merging(where)
    version = writer.mark(writer.merge(pieces))
    assert [mark.version for mark in summarise(where.journal, "main").marks] == [version]


def test_equal_shards_are_all_counted() -> None:
    """Partitions may hold equal rows: both count, since no record is in two of them."""
    where = backends()
    merged = merging(where).merge([piece("main-1of2", 1), piece("main-2of2", 1)])
    assert merged.counts["counts"]["learned"] == 80
    assert merged.learner.state_dict().truth["rows"] == 80


def test_shards_with_other_feature_tables_are_refused() -> None:
    """Features that mean different things in two shards cannot be added up."""
    pieces = [piece("main-1of2", 1), replace(piece("main-2of2", 2), features={"table": np.ones(2)})]
    with pytest.raises(DamageError, match="feature tables differ"):
        merging(backends()).merge(pieces)


def test_learners_of_another_make_are_refused() -> None:
    """A shard's state of another shape is said to be one."""
    other = Ridge(RidgeConfig(), 4, 0)
    pieces = [piece("main-1of2", 1), replace(piece("main-2of2", 2), learner=other.state_dict())]
    with pytest.raises(LearnerError):
        merging(backends()).merge(pieces)
