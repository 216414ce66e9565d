"""What rows are to the windows: which are the same event, and how much memory many of them take."""

from __future__ import annotations

import base64
import json
import tracemalloc

import numpy as np
import pytest
from pictures import drawn
from slow_past import slow_identity

from millrace.streams.entity.declared import schema_of
from millrace.streams.entity.entities import Entities
from millrace.streams.formats.json_rows import Codec, Rows
from millrace.streams.records import Event
from millrace.streams.schema import Entity, Field, Label, Schema

MIB = 1 << 20


def schema(window: int = 8, over: int = 3, **more: int) -> Schema:
    """Cards with an amount and the name of a shop."""
    past = Field("lag", of="amount", as_="lag", over=str(over), missing="mean")
    brought = [Field("amount", missing="mean"), Field("shop", type="categorical", categories="hash", max=4, missing="category")]
    return schema_of([*brought, past], Label("fraud"), None, entity=Entity("card", "at", window, **more))


def rows_of(cells: list[dict], declared: Schema) -> Rows:
    """Rows of the stream."""
    events = [Event(at, 1000 + at, None, b"", json.dumps(row).encode()) for at, row in enumerate(cells)]
    rows, refused = Codec(declared, 1 << 20).decode(events)
    assert not refused
    return rows


def test_events_whose_names_have_the_same_crc_are_two() -> None:
    """And one that comes again is one."""
    declared = schema()
    entities = Entities(declared)
    base = {"card": "a", "at": 5, "amount": 1.0}
    names = ["plumless", "buckeroo", "plumless", None, "", None]
    rows = rows_of([base | {"shop": name} for name in names], declared)
    entities.of_stream(rows, rows.t)
    assert (entities.figures["events"], entities.figures["repeated"]) == (4, 2)
    identities = entities.parts()["entities.0"]["identity"][0, :4].tolist()
    assert identities == [slow_identity([1.0, name, "a"]) for name in ("plumless", "buckeroo", None, "")]


def test_events_with_different_images_are_two() -> None:
    """Whose other cells and times are the same."""
    photo = Field("photo", type="image", backbone="m", shape=(5, 7), features=2, sha256="0" * 64)
    past = Field("lag", of="amount", as_="lag", over="1", missing="mean")
    declared = schema_of([Field("amount"), photo, past], Label("fraud"), None, entity=Entity("card", "at"))
    pictures = [base64.b64encode(drawn((7, 5), mode)).decode() for mode in ("RGB", "L", "RGB")]
    rows = rows_of([{"card": "a", "at": 5, "amount": 1.0, "photo": picture} for picture in pictures], declared)
    entities = Entities(declared)
    entities.of_stream(rows, rows.t)
    assert (entities.figures["events"], entities.figures["repeated"]) == (2, 1)


@pytest.mark.parametrize(("window", "over"), [(256, 1), (256, 256), (4, 4)])
def test_many_rows_take_little_memory_at_a_time(window: int, over: int) -> None:
    """At answering and at learning: what windows hold is not laid out for all rows at once."""
    declared = schema(window, over)
    entities, count = Entities(declared), 20_000
    filled = rows_of([{"card": "a", "at": at, "amount": float(at), "shop": "s"} for at in range(window)], declared)
    entities.of_stream(filled, filled.t)
    cards = np.full(count, "a", dtype=object)
    at = np.full((count, 1), 2.0**41)
    columns = {"amount": np.ones((count, 1)), "shop": cards, "card": cards, "at": at}
    ordered = [columns[field.name] for field in declared.fields]
    rows = rows_of([{"card": f"c{at % 50}", "at": at, "amount": float(at), "shop": "s"} for at in range(count)], declared)
    tracemalloc.start()
    try:
        looked = entities.look(ordered, 2000)
        at_answering = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        entities.of_stream(rows, rows.t)
        at_learning = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert looked.tolist() == [[float(window - over)]] * count
    assert at_answering < 40 * MIB and at_learning < 40 * MIB, (at_answering / MIB, at_learning / MIB)


def test_a_replica_answers_for_an_idle_entity_as_for_a_new_one() -> None:
    """One millisecond earlier it still knows it; the time that a row says for itself is not the clock."""
    declared = schema(idle_ms=100)
    entities, replica = Entities(declared), Entities(declared)
    entities.of_stream(
        rows := rows_of([{"card": "a", "at": at, "amount": 1.0 + at, "shop": "s"} for at in range(4)], declared), rows.t
    )
    replica.load_answering(entities.answering())
    columns = rows_of([{"card": "a", "at": 1, "amount": 1.0, "shop": "s"}], declared).columns
    last_ms = int(rows.t[-1])
    looked = [replica.look(columns, last_ms + after).item() for after in (100, 101)]
    assert looked[0] == 2.0 and np.isnan(looked[1])
