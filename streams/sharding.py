"""Shards: a pipeline's partitions dealt out to branches of their own, with one learner each.

A shard is a branch like any other, named ``BRANCH-1of4``; ``BRANCH`` itself then has no steps, only merges (branch/merge.py).

Source: docs/design/journal.md, rule 15.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.learners.errors import BadInputError
from millrace.streams.records import split_tp
from millrace.streams.schema import Schema

NAME = re.compile(r"(.+)-(\d+)of(\d+)")

Placing = Callable[[Sequence[bytes]], NDArray[np.int64]]  # keys (n,) -> the partition (n,) in which each belongs
Partitioner = Callable[[int], Placing]  # of a topic with so many partitions


@dataclass(frozen=True, slots=True)
class Shard:
    """Every ``of``-th partition of each topic, from number ``at`` on."""

    at: int = 0
    of: int = 1

    def has(self, tp: str) -> bool:
        """Whether a partition is dealt to this shard.

        >>> [Shard(1, 2).has(f"clicks:{number}") for number in range(4)]
        [False, True, False, True]
        """
        return split_tp(tp)[1] % self.of == self.at


WHOLE = Shard()


def shard_branches(branch: str, count: int) -> list[str]:
    """The branches that learn for ``branch``: itself where there is one shard.

    >>> shard_branches("main", 2), shard_branches("main", 1)
    (['main-1of2', 'main-2of2'], ['main'])
    """
    return [branch] if count == 1 else [f"{branch}-{number}of{count}" for number in range(1, count + 1)]


def shard_of(branch: str) -> Shard:
    """Which partitions a branch of that name reads.

    >>> shard_of("main-2of3"), shard_of("main")
    (Shard(at=1, of=3), Shard(at=0, of=1))
    """
    match = NAME.fullmatch(branch)
    return WHOLE if match is None else Shard(int(match[2]) - 1, int(match[3]))


def merging_branch(branch: str) -> str:
    """The branch that a shard is merged into; itself where it is no shard.

    >>> merging_branch("main-2of3"), merging_branch("main")
    ('main', 'main')
    """
    match = NAME.fullmatch(branch)
    return branch if match is None else match[1]


def refuse_name(branch: str, shards: int) -> None:
    """Raises: BadInputError where a branch is named as a shard that a pipeline of so many shards has not.

    >>> refuse_name("main-2of3", 3), refuse_name("main", 1)
    (None, None)
    """
    shard = shard_of(branch)
    if shard != WHOLE and (shard.of != shards or not 0 <= shard.at < shards):
        branches = ", ".join(shard_branches(merging_branch(branch), shards))
        raise BadInputError(f"--branch {branch} names a shard, and the pipeline has shards = {shards}: {branches}.")


def refuse_unmergeable(schema: Schema, partitions: int, shards: int) -> None:
    """Raises: ValueError where the shards would not add up to one pipeline."""
    if not 1 <= shards <= partitions:
        raise ValueError(f"shards = {shards}: must be from 1 to log.partitions, {partitions}: each has a partition at least")
    stateful = [field.name for field in schema.fields if field.categories == "grow" or field.missing == "mean"]
    if stateful:
        raise ValueError(
            f"shards = {shards}: field {stateful[0]} has a table that grows with the rows, and each shard would have its own; "
            'declare its categories, use categories = "hash", or another missing than "mean"'
        )


def by_murmur2(partitions: int) -> Placing:
    """As Kafka's own clients place records, whatever language they are in.

    >>> by_murmur2(4)([b"customer 7", b"customer 8"])
    array([2, 1])
    """
    return lambda keys: (murmur2(keys) & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def murmur2(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """The hash (n,) of each key; kafka-python's takes fifty times as long, one by one.

    Source: murmur2 of org.apache.kafka.common.utils.Utils.
    """
    lengths, hashes = np.array(list(map(len, keys)), dtype=np.int64), np.zeros(len(keys), dtype=np.uint32)
    for length in np.unique(lengths).tolist():
        alike = np.flatnonzero(lengths == length)
        octets = np.frombuffer(b"".join([keys[at] for at in alike.tolist()]), dtype=np.uint8).reshape(len(alike), length)
        hashes[alike] = _of_one_length(octets)
    return hashes


def _of_one_length(octets: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The hashes of keys (n, length); products wrap round, as they are meant to."""
    factor, whole_bytes = np.uint32(0x5BD1E995), octets.shape[1] // 4 * 4
    hashes = np.full(len(octets), 0x9747B28C ^ octets.shape[1], dtype=np.uint32)
    for word in np.ascontiguousarray(octets[:, :whole_bytes]).view("<u4").T:
        mixed = word * factor
        hashes = hashes * factor ^ (mixed ^ mixed >> np.uint32(24)) * factor
    if octets.shape[1] > whole_bytes:
        for place, column in enumerate(octets[:, whole_bytes:].T):
            hashes ^= column.astype(np.uint32) << np.uint32(8 * place)
        hashes *= factor
    hashes = (hashes ^ hashes >> np.uint32(13)) * factor
    return hashes ^ hashes >> np.uint32(15)
