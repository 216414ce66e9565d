"""What a served record says of the past: what a window can have given is taken, anything else is a dead letter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from millrace.streams.entity.declared import schema_of
from millrace.streams.entity.events import Seen
from millrace.streams.entity.past import past_of
from millrace.streams.labels.served import Prediction, ServedCodec, encode, encode_row
from millrace.streams.parts import sha256
from millrace.streams.records import Event
from millrace.streams.schema import ALWAYS, PAST, Entity, Field, Label, Schema

NAMES = [f"{how}_{over}" for how in PAST for over in (1, 4)]


def schema(low: float = -10.0, high: float = 30.0, fields: list[str] = NAMES) -> Schema:
    """Fields of every kind, made of one number between ``low`` and ``high``."""
    past = [
        Field(name, of="amount", as_=how, over=over, missing="reject" if how in ALWAYS else "indicator")
        for name in fields
        for how, over in [name.split("_")]
    ]
    return schema_of([Field("amount", low=low, high=high), *past], Label("fraud"), None, None, Entity("card", window=5))


def refused(declared: Schema, past: list[Any], features: str = "") -> list[tuple[str, str]]:
    """Reasons and details for one record with this past."""
    row = encode_row({"amount": declared.fields[0].low, "card": "c"})
    record = json.loads(encode(Prediction("r", row, "main", 1, 2, ("no", "yes"), (0.2, 0.8), features)))
    event = Event(0, 1000, b"r", b"", json.dumps(record | {"past": past}, separators=(",", ":")).encode())
    taken, letters = ServedCodec(declared, 1 << 20, "p.served").decode([event], "p.served:0")
    assert len(taken) + len(letters) == 1
    return [(letter.reason, letter.detail) for letter in letters]


@pytest.mark.parametrize(
    ("field", "number", "reason"),
    [
        ("count_4", None, "missing-field"),
        ("sum_4", None, "missing-field"),
        ("count_4", 5, "out-of-range"),
        ("count_4", -1, "out-of-range"),
        ("count_4", 1.5, "out-of-range"),
        ("sum_4", 1e308, "out-of-range"),
        ("sum_4", 121, "out-of-range"),
        ("sum_4", -41, "out-of-range"),
        ("lag_1", 31, "out-of-range"),
        ("mean_4", -11, "out-of-range"),
        ("min_4", 1e308, "out-of-range"),
        ("max_4", -1e308, "out-of-range"),
        ("deviation_4", -1, "out-of-range"),
        ("deviation_4", 41, "out-of-range"),
        ("change_1", 41, "out-of-range"),
        ("since_1", -1, "out-of-range"),
        ("since_1", 1e14, "out-of-range"),
    ],
)
def test_what_no_window_can_give_is_refused(field: str, number: float | None, reason: str) -> None:
    """With its reason and the field's name, in a record that says whose fields they are and in one that does not."""
    declared = schema(fields=[field])
    for features in ("", sha256(declared.declared)):
        ((why, detail),) = refused(declared, [number], features)
        assert why == reason and field in detail


@pytest.mark.parametrize("past", [[], [1.0, 2.0]])
def test_a_past_of_another_length_is_refused(past: list[float]) -> None:
    """One number a field."""
    assert [why for why, _ in refused(schema(fields=["count_4"]), past)] == ["wrong-shape"]


def test_what_another_schema_answered_from_is_not_judged_by_this_one() -> None:
    """A fork with other fields reads it, and learns its own."""
    assert refused(schema(fields=["count_4"]), [None, 1e9], sha256(schema().declared)) == []


@pytest.mark.parametrize(("low", "high"), [(-10.0, 30.0), (0.1, 0.7), (5.0, 5.0), (-1e100, 1e100)])
def test_whatever_a_window_gives_is_taken(low: float, high: float) -> None:
    """Of values in the whole of their range, its ends and missing ones among them."""
    chance, rows, declared = np.random.default_rng(5), 400, schema(low, high)
    share = chance.choice([0.0, 1.0, 0.5, 0.3], (rows, 5, 1))
    values = np.where(chance.random((rows, 5, 1)) < 0.2, np.nan, np.clip(low * (1.0 - share) + high * share, low, high))
    length = chance.integers(0, 6, rows)
    values[np.arange(5)[None, :] >= length[:, None]] = np.nan
    at = np.where(np.arange(5)[None, :] < length[:, None], -(1 << 53), 0)
    given = past_of(declared.past, ["amount"], Seen(values, at, length), np.full(rows, 1 << 53))
    assert np.isnan(given).any() and (np.nanmax(given, axis=0) > np.nanmin(given, axis=0)).any()
    for row in given.tolist():
        assert refused(declared, [None if number != number else number for number in row]) == []
