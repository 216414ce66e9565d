"""Cards and what is paid with them: a pipeline with an entity, its rows, what was learned of each, and what should have been.

What was learned is seen by a learner that keeps every row it is given, in a fold of the journal's entries; `millrace verify`
says elsewhere that the journal's own learner got the same. What should have been a slow writing-down reads from the log.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from slow_past import SlowEvent, SlowWindows, slow_fields, slow_identity

from millrace.learners.analytic.ridge import Ridge
from millrace.learners.protocol import Batch
from millrace.services.config.config import load_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.branch.branch import refold, start
from millrace.streams.hashing import hash64
from millrace.streams.journal.entries import Step
from millrace.streams.journal.journal import entries_after, summarise
from millrace.streams.schema import PAST

START_MS = 1_760_000_000_000
WINDOW, IDLE_MS, MOST = 6, 400_000, 12
FIELDS = [(how, over) for how in PAST for over in (1, 4)]
CARDS = """name = "digits"
seed = 7
label = {{ name = "fraud" }}
learner = {{ kind = "ridge", gamma = 0.5, solve_rows = 25 }}

[entity]
key = "card"
time = "at"
window = {window}
idle_ms = {idle_ms}
max = {most}
ahead_ms = 5000
{events}

[[fields]]
name = "row"
scale = 1000.0

[[fields]]
name = "amount"
missing = "mean"
{past}
[batch]
rows = 20
wait_ms = 2000

[worker]
step_rows = {step_rows}
step_ms = 0
checkpoint_rows = 100
{more}
"""
LATE = "\n[labels]\nhorizon_ms = 60000000\ngrace_ms = 60000\n"
RECORDED = '\n[serving]\nrecord = "before-reply"\n'  # which events = "requests" needs


def text(step_rows: int = 64, events: str = "", more: str = "", most: int = MOST) -> str:
    """The pipeline file."""
    past = "".join(f'\n[[fields]]\nof = "amount"\nas = "{how}"\nover = {over}\n' for how, over in FIELDS)
    words = {"window": WINDOW, "idle_ms": IDLE_MS, "most": most, "past": past}
    return CARDS.format(step_rows=step_rows, events=events, more=more, **words)


def payments(rows: int, seed: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """Rows in the log's order, with ``t``: the time of their record. Some come twice, late, early, or without an amount."""
    chance, told, clock = random.Random(seed), list[dict[str, Any]](), START_MS + 150_000 * first
    for number in range(first, first + rows):
        if told and chance.random() < 0.06:
            told.append(chance.choice(told[-4:]) | {"t": clock})
            continue
        clock += chance.choice([0, 1, 700, 4000, IDLE_MS // 2 if chance.random() < 0.04 else 900])
        at = chance.choice([clock, clock, clock, clock - 3000, clock + 4000, clock + 9000, None])
        row = {"card": f"card {chance.randrange(25)}", "row": number, "fraud": chance.choice(["yes", "no", None]), "t": clock}
        row["amount"] = chance.choice([chance.gauss(50, 20), 0.1 * chance.randrange(100), None])
        told.append(row | ({} if at is None else {"at": at}))
    return told


def value_of(row: dict[str, Any]) -> bytes:
    """As it lies in the log."""
    return json.dumps({name: cell for name, cell in row.items() if name != "t"}).encode()


def instance(folder: Path) -> Instance:
    """The pipeline in a folder, with its state beside it."""
    return Instance(load_pipeline(folder / "digits.toml"), folder / ".millrace" / "digits")


Told = list[tuple[int, list[float]]]  # numbers of rows, and the fields of their past


def slow_of(rows: Iterable[dict[str, Any]], most: int = MOST) -> tuple[Told, SlowWindows]:
    """Of each labelled row the fields of its past; and the windows after all rows, in the order in which they are read."""
    windows, told, clock = SlowWindows(WINDOW, IDLE_MS, most), Told(), 0
    for row in rows:
        clock = max(clock, row["t"])
        at = row.get("at", row["t"])
        amount = math.nan if row["amount"] is None else float(row["amount"])
        ahead = at > row["t"] + 5000
        windows.counts["ahead"] += ahead
        seen = windows.row(row["card"], SlowEvent(at, (amount,), (row["row"], amount)), clock, not ahead)
        if row.get("fraud") is not None:
            told.append((row["row"], slow_fields(declared(), ["amount"], seen, at)))
    windows.let_go(clock)
    return told, windows


@dataclass(frozen=True)
class _Field:
    """What the slow writing-down is told of a field."""

    as_: str
    over: str
    of: str = "amount"
    center: float = 0.0
    scale: float = 1.0


def declared() -> list[_Field]:
    """Every field of the past, as the pipeline file has them."""
    return [_Field(how, str(over)) for how, over in FIELDS]


KEPT: list[np.ndarray] = []


class Keeper(Ridge):
    """A ridge that keeps every row that it is given."""

    def learn_many(self, batch: Batch) -> None:
        """Keep them, and learn them."""
        KEPT.append(batch.x.copy())
        super().learn_many(batch)


def learned(pipeline: Instance, branch: str = "main") -> Told:
    """Of each row that a branch has learned, in that order, the fields of its past; NaN where the learner was told so."""
    KEPT.clear()
    config, width = pipeline.loaded.learner_config, pipeline.loaded.pipeline.schema.width
    spec = replace(pipeline.fold_spec, make_learner=lambda: Keeper(config, width, 7), scaling="none")
    backends = pipeline.backends(branch)
    fork = summarise(backends.journal, branch).fork
    assert fork is not None
    fold = start(spec, backends.store, fork)
    for _ in refold(fold, entries_after(backends.journal, branch, 1), backends.source, spec.reader_of(fork)):
        pass
    return [(round(1000 * float(row[0])), _past(row[2:])) for batch in KEPT for row in batch]


def _past(numbers: np.ndarray) -> list[float]:
    told, at = [], 0
    for how, _ in FIELDS:
        if how in ("count", "sum"):
            told.append(float(numbers[at]))
            at += 1
            continue
        told.append(math.nan if numbers[at + 1] else float(numbers[at]))
        at += 2
    assert at == len(numbers)
    return told


def same(one: Told, other: Told) -> bool:
    """Bit for bit, where NaN is NaN."""
    numbers = [number for number, _ in one], [number for number, _ in other]
    fields = [np.array([fields for _, fields in told]) for told in (one, other)]
    return numbers[0] == numbers[1] and np.array_equal(*fields, equal_nan=True)


Windows = dict[int, tuple[int, int, list[int], list[int], bytes]]  # by entity: clock, place, times, identities, amounts


def windows_of(parts: dict[str, dict[str, Any]]) -> Windows:
    """All that a checkpoint's parts hold of each entity, oldest first; nothing is left over past what is filled."""
    held = parts["entities.0"]
    told = Windows()
    for at, entity in enumerate(held["ids"].tolist()):
        filled = int(held["filled"][at])
        times, identities, values = (held[name][at] for name in ("at", "identity", "values"))
        assert not times[filled:].any() and not identities[filled:].any() and not values[filled:].any()
        lasts = int(held["clock_ms"][at]), int(held["place"][at])
        told[entity] = (*lasts, times[:filled].tolist(), identities[:filled].tolist(), values[:filled, 0].tobytes())
    assert list(told) == sorted(told)
    return told


def unclocked(windows: Windows) -> dict[int, tuple[Any, ...]]:
    """All but the clock, which goes on while a worker waits, and by records that are left out."""
    return {card: window[1:] for card, window in windows.items()}


def slow_windows(windows: SlowWindows) -> Windows:
    """The same of the slow ones."""
    return {
        hash64(str(card)): (
            window.clock_ms,
            window.place,
            [event.at for event in window.events],
            [identity_of(str(card), event.identity) for event in window.events],
            np.array([event.values[0] for event in window.events]).tobytes(),
        )
        for card, window in windows.held.items()
    }


def identity_of(card: str, identity: object) -> int:
    """Of an event: of a served row's id, or of all cells of a row of the stream, in the order of their fields."""
    if isinstance(identity, str):
        return hash64(identity)
    row, amount = cast(tuple[int, float], identity)
    return slow_identity([float(row), amount, card])


def read_order(pipeline: Instance, branch: str = "main") -> list[dict[str, Any]]:
    """The rows of the stream in the order in which a branch read them, as the log has them."""
    backends = pipeline.backends(branch)
    rows = []
    for entry in entries_after(backends.journal, branch, 0):
        for tp, first, stop, _, _ in entry.reads if isinstance(entry, Step) else ():
            events = backends.source.read(tp, first, stop).events
            rows += [json.loads(event.value or b"") | {"t": event.timestamp_ms} for event in events]
    return rows
