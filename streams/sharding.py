"""Shards: a pipeline's partitions dealt out to branches of their own, with one learner each.

A shard is a branch like any other, named ``BRANCH-1of4``; ``BRANCH`` itself then has no steps, only merges (merging.py).

Source: journal.md, rule 15.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from millrace.streams.records import split_tp
from millrace.streams.schema import Schema

NAME = re.compile(r"(.+)-(\d+)of(\d+)")


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
    found = NAME.fullmatch(branch)
    return WHOLE if found is None else Shard(int(found[2]) - 1, int(found[3]))


def merging_branch(branch: str) -> str:
    """The branch that a shard is merged into; itself where it is no shard.

    >>> merging_branch("main-2of3"), merging_branch("main")
    ('main', 'main')
    """
    found = NAME.fullmatch(branch)
    return branch if found is None else found[1]


def refuse_unmergeable(schema: Schema, partitions: int, shards: int) -> None:
    """Raises: ValueError where the shards would not add up to one pipeline."""
    if not 1 <= shards <= partitions:
        raise ValueError(f"shards = {shards}: must be from 1 to log.partitions, {partitions}: each has a partition at least")
    own = [field.name for field in schema.fields if field.categories == "grow" or field.missing == "mean"]
    if own:
        raise ValueError(
            f"shards = {shards}: field {own[0]} has a table that grows with the rows, and each shard would have its own; "
            'declare its categories, use categories = "hash", or another missing than "mean"'
        )
