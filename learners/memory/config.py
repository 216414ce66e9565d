"""The keys of an error memory, each with its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

MOST_BYTES = 8 << 20  # of a memory as it is published to replicas, twenty times a second at most


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """A memory of recent rows, of what was answered for them and of what came, which corrects a learner's answers.

    Every key changes what is answered. Raises: ValueError naming key, value and what is allowed.
    """

    form: Literal["exact", "sketch"] = "exact"  # the newest rows themselves, or sums of rows in cells; the latter for wide rows
    rows: int = 2000  # >= 1, of "exact": newest rows that are remembered; more knows rarer rows and forgets slower
    near: int = 70  # >= 1, of "exact": remembered rows that say how wrong an answer is; more is steadier and less local
    tau: float = 0.1  # > 0, of "exact": temperature of their cosines; less trusts the nearest more
    arrays: int = 70  # in [1, 1000], of "sketch": independent arrays of cells; more is steadier and costs as much more
    bits: int = 8  # in [8, 16], of "sketch": an array has 2^bits cells; more is more local
    half_life_rows: int = 500  # >= 1, of "sketch": rows after which a row counts half; less forgets faster
    gamma: float = 0.0  # in [0, 1], share of the error that is the labels near by less the answer, not less the answers near by
    strength: float | None = None  # in [0, 1], lambda, share of the error that is corrected; left out: found by itself
    freeze_base_rows: int = 0  # >= 0, learned rows after which the learner itself learns no more; 0: it always learns
    # in [2, 100000], first rows, whose mean and deviation scale the keys from then on; nothing is near before
    warm_up_rows: int = 256
    # in [1, 10000], rows that are answered, learned and remembered at once; fewer wait; less is newer and dearer
    step_rows: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        for key, allowed, fits in (
            ("rows", "a whole number from 1", self.rows >= 1),
            ("near", "a whole number from 1", self.near >= 1),
            ("tau", "a finite number above 0", 0.0 < self.tau < float("inf")),
            ("arrays", "a whole number from 1 to 1000", 1 <= self.arrays <= 1000),
            ("bits", "a whole number from 8 to 16", 8 <= self.bits <= 16),
            ("half_life_rows", "a whole number from 1", self.half_life_rows >= 1),
            ("gamma", "a number from 0 to 1", 0.0 <= self.gamma <= 1.0),
            ("strength", "a number from 0 to 1", self.strength is None or 0.0 <= self.strength <= 1.0),
            ("freeze_base_rows", "a whole number from 0", self.freeze_base_rows >= 0),
            ("warm_up_rows", "a whole number from 2 to 100000", 2 <= self.warm_up_rows <= 100_000),
            ("step_rows", "a whole number from 1 to 10000", 1 <= self.step_rows <= 10_000),
        ):
            if not fits:
                raise ValueError(f"{key} = {getattr(self, key)!r}: must be {allowed}")

    def most_outputs(self, d: int) -> int:
        """Classes, or numbers, of which a memory over d features may hold labels and answers, so that it can be published."""
        if self.form == "sketch":
            return (MOST_BYTES // (8 * self.arrays << self.bits) - 1) // 2
        return (MOST_BYTES // (8 * self.rows) - (d + 2)) // 2

    def refuse_unservable(self, d: int, outputs: int, shards: int) -> None:
        """Raises: ValueError for several shards, and, naming what to lower, where it would be too large to publish."""
        if shards > 1:
            raise ValueError(f"shards = {shards}: memories of several cannot be merged; take [memory] away, or use one shard")
        if self.most_outputs(d) < outputs:
            keys = ("arrays", "bits") if self.form == "sketch" else ("rows",)
            stated = ", ".join(f"memory.{key} = {getattr(self, key)}" for key in keys)
            way = "lower it" if self.form == "sketch" else 'lower it, or use form = "sketch", which grows with no feature'
            raise ValueError(
                f"{stated}: with {d} features and {outputs} classes or numbers more than {MOST_BYTES >> 20} MiB would be "
                f"published several times a second; {way}"
            )


@dataclass(frozen=True, slots=True)
class Remembering:
    """The config of a learner with a memory around it."""

    base: Any  # of the learner's kind
    memory: MemoryConfig
    unbounded: bool = False  # whether the learner's scores are no shares, such as distances
