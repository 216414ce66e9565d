"""The feature stage against one row at a time in plain Python."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import MIXED, encoded, events, mixed_rows

from millrace.learners.protocol import Floats
from millrace.streams.features.columns import Features
from millrace.streams.formats.json_rows import Codec, Rows
from millrace.streams.parts import pack, unpack
from millrace.streams.schema import Field, Label, Schema

CODEC = Codec(MIXED, max_bytes=4096)
NAMES = ["north", "east", "south", "", "ü", None]
NUMBER = st.none() | st.floats(-1e6, 1e6)
CELLS = st.fixed_dictionaries(
    {
        "size": st.floats(-1e6, 1e6),
        "at": st.integers(-(10**6), 10**6),
        "heat": NUMBER,
        "wind": NUMBER,
        "pixels": st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
        "kind": st.sampled_from(["ant", "bee", "cow"]),
        "site": st.sampled_from(NAMES),
        "who": st.sampled_from(NAMES),
    }
)


class RowByRow:
    """What ``Features`` says it does to ``MIXED``, one row and one cell at a time."""

    def __init__(self) -> None:
        self.total, self.count, self.first, self.slots = 0.0, 0, 0.0, list[str]()

    def row(self, cells: dict[str, object]) -> list[float]:
        """x of one row; the tables take it in."""
        heat = cells["heat"]
        if heat is None:
            heat = self.first + self.total / self.count if self.count else 0.0
        else:
            self.first = self.first if self.count else heat
            self.total, self.count = self.total + (heat - self.first), self.count + 1
        wind = [0.0, 1.0] if cells["wind"] is None else [(cells["wind"] - 1.0) / 2.0, 0.0]
        site = cells["site"]
        if site is not None and site not in self.slots and len(self.slots) < 2:
            self.slots.append(site)
        at = 3 if site is None else self.slots.index(site) if site in self.slots else 2
        who = 4 if cells["who"] is None else zlib.crc32(cells["who"].encode()) % 4
        one_hots = [one_hot(("ant", "bee", "cow").index(cells["kind"]), 3), one_hot(at, 4), one_hot(who, 5)]
        return [cells["size"], (cells["at"] - 100.0) / 4.0, heat, *wind, *cells["pixels"], *sum(one_hots, [])]


def one_hot(at: int, width: int) -> list[float]:
    """A one-hot row."""
    return [float(column == at) for column in range(width)]


def decoded(cells: list[dict[str, object]]) -> Rows:
    """The rows as the codec gives them."""
    rows, refused = CODEC.decode(events([encoded(row) for row in cells]))
    assert not refused
    return rows


def piece(rows: Rows, start: int, stop: int) -> Rows:
    """Rows ``start`` to ``stop``."""
    cut = slice(start, stop)
    return Rows(tuple(c[cut] for c in rows.columns), rows.y[cut], rows.weight[cut], rows.key[cut], rows.t[cut])


def learned(stage: Features, rows: Rows) -> Floats:
    """x of rows that are learned."""
    return stage.learn(stage.encode(rows)).x


def answered(stage: Features, rows: Rows) -> Floats:
    """x of rows that are asked about."""
    return stage.answer(stage.encode(rows)).x


def packed(stage: Features) -> bytes:
    """The tables as a checkpoint has them."""
    return pack(stage.state())


def bits(x: Floats, stage: Features) -> tuple[bytes, bytes]:
    """x and the tables, to be compared bit for bit."""
    return x.tobytes(), packed(stage)


@given(st.lists(CELLS, min_size=1, max_size=12))
def test_every_policy_gives_what_one_row_at_a_time_gives(cells: list[dict[str, object]]) -> None:
    """Means of what came before, indicators, fixed, growing and hashed slots, scales: bit for bit."""
    stage, plain = Features(MIXED), RowByRow()
    x = learned(stage, decoded(cells))
    assert x.shape == (len(cells), MIXED.width) and x.tolist() == [plain.row(row) for row in cells]
    state = stage.state()
    assert (state["fills"], state["slots"]) == ({"heat": [plain.total, plain.count, plain.first]}, {"site": plain.slots})


@given(st.lists(CELLS, min_size=2, max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_any_split_of_the_rows_gives_the_same_bits(cells: list[dict[str, object]], cuts: list[int]) -> None:
    """Reads are cut by arrival, and nothing that is learned may know."""
    rows, whole, split = decoded(cells), Features(MIXED), Features(MIXED)
    ends = [0, *sorted(min(cut, len(cells)) for cut in cuts), len(cells)]
    pieces = [learned(split, piece(rows, start, stop)) for start, stop in zip(ends, ends[1:], strict=False)]
    assert bits(learned(whole, rows), whole) == bits(np.concatenate(pieces), split)


@pytest.mark.parametrize("cut", [0, 1, 37, 150, 299])
def test_a_stage_goes_on_from_its_state_as_if_it_had_never_stopped(cut: int) -> None:
    """The state passes through JSON, as it does in a checkpoint."""
    rows = decoded(mixed_rows(300, seed=9))
    whole, before, after = Features(MIXED), Features(MIXED), Features(MIXED)
    x = learned(whole, rows)
    learned(before, piece(rows, 0, cut))
    after.load(unpack(pack(before.state()), "here"))
    assert bits(x[cut:], whole) == bits(learned(after, piece(rows, cut, 300)), after)


@given(st.lists(CELLS, min_size=1, max_size=8), st.lists(CELLS, min_size=1, max_size=6))
def test_an_answer_is_what_the_worker_would_compute_next_and_changes_nothing(
    before: list[dict[str, object]], asked: list[dict[str, object]]
) -> None:
    """Each row as if it came next, whatever stands beside it; a category without a slot is "other" and gets none."""
    stage = Features(MIXED)
    learned(stage, decoded(before))
    state, known = packed(stage), stage.state()["slots"]["site"]
    x = answered(stage, decoded(asked))
    assert packed(stage) == state
    for row, cells in zip(x, asked, strict=True):
        after = Features(MIXED)
        after.load(unpack(state, "here"))
        if cells["site"] is not None and cells["site"] not in known:
            after.slots["site"] += ["taken"] * (2 - len(known))
        assert row.tobytes() == learned(after, decoded([cells])).tobytes()


def test_a_state_is_a_copy() -> None:
    """What happens later does not reach a state taken before, nor the other way round."""
    stage = Features(MIXED)
    learned(stage, decoded(mixed_rows(50)))
    state = stage.state()
    kept = pack(state)
    learned(stage, decoded([dict(row, site="new", heat=1.0) for row in mixed_rows(50, seed=4)]))
    assert pack(state) == kept
    state["slots"]["site"].append("stray")
    assert "stray" not in stage.state()["slots"]["site"]


def test_categories_past_the_last_slot_are_other_for_ever() -> None:
    """The table stops at max; a name that came late never gets a slot, a name that came early keeps its own."""
    schema = Schema((Field("k", type="categorical", categories="grow", max=3),), Label("y"))
    stage, codec = Features(schema), Codec(schema, 100)
    names = ["d", "a", "b", "c", "a", "e", "d", "c", "b"]
    rows, _ = codec.decode(events([encoded({"k": name}) for name in names]))
    assert learned(stage, rows).argmax(axis=1).tolist() == [0, 1, 2, 3, 1, 3, 0, 3, 2]
    assert stage.state()["slots"] == {"k": ["d", "a", "b"]}


def test_the_slots_of_hashed_categories_are_pinned() -> None:
    """Another hash would silently shuffle the columns of every version already made."""
    schema = Schema((Field("k", type="categorical", categories="hash", max=1000),), Label("y"))
    rows, _ = Codec(schema, 100).decode(events([encoded({"k": name}) for name in ("", "carol", "Zürich", "日本")]))
    assert learned(Features(schema), rows).argmax(axis=1).tolist() == PINNED


PINNED = [0, 163, 798, 756]  # crc32 of the UTF-8 bytes, modulo 1000

FIELDS = [
    Field("x"),
    Field("x", size=5),
    Field("x", missing="mean"),
    Field("x", missing="indicator"),
    Field("x", type="categorical", categories=("a",)),
    Field("x", type="categorical", categories=("a", "b"), missing="category"),
    Field("x", type="categorical", categories="grow", max=3),
    Field("x", type="categorical", categories="grow", max=3, missing="category"),
    Field("x", type="categorical", categories="hash", max=3),
    Field("x", type="categorical", categories="hash", max=3, missing="category"),
]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.type}-{field.missing}-{field.width}")
def test_d_is_the_width_that_the_schema_declares(field: Field) -> None:
    """For every kind of field, and for no rows at all."""
    schema = Schema((field,), Label("y"))
    value = "a" if field.type == "categorical" else 1.0 if field.size == 1 else [1.0] * field.size
    for values in ([], [encoded({"x": value})]):
        rows, refused = Codec(schema, 100).decode(events(values))
        assert not refused and learned(Features(schema), rows).shape == (len(values), schema.width)


def test_a_missing_category_has_a_column_that_no_name_can_take() -> None:
    """Not that of "other", not that of a hash, not that of an empty name."""
    for categories, most in ((("",), 0), ("grow", 1), ("hash", 1)):
        field = Field("x", type="categorical", categories=categories, max=most, missing="category")
        schema = Schema((field,), Label("y"))
        names = [None, "", "" if most == 0 else "later"]
        rows, _ = Codec(schema, 100).decode(events([encoded({"x": name}) for name in names]))
        columns = learned(Features(schema), rows).argmax(axis=1).tolist()
        assert columns[0] == schema.width - 1 and columns[0] not in columns[1:]


def test_a_number_outside_its_range_that_is_to_be_missing_is_as_if_there_were_none() -> None:
    """Its column that says so included, in learning and in answering."""
    field = Field("x", missing="indicator", low=0.0, high=9.0, outside="missing", center=1.0, scale=2.0)
    schema = Schema((field, Field("z")), Label("y"))
    rows, refused = Codec(schema, 100).decode(events([encoded({"x": x, "z": 0.5}) for x in (3.0, 99.0, None, -1.0)]))
    stage, expected = Features(schema), [[1.0, 0.0, 0.5]] + [[0.0, 1.0, 0.5]] * 3
    assert not refused and answered(stage, rows).tolist() == learned(stage, rows).tolist() == expected
    assert stage.counts()["outside"] == {"x": 2}
