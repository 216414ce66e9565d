"""Rows that are held out go with a learner that is taken back: they are put as its own tables put them."""

from __future__ import annotations

from dataclasses import replace

from branches import Rooms, fold_spec, make_events, run_to_end

from millrace.learners.protocol import Batch
from millrace.streams.branch.learner_rollback import rewound
from millrace.streams.parts import pack
from millrace.streams.state.held_out import HeldOutConfig

TOWN = slice(4, 8)  # the columns of the field that grows: three slots, and the others


def test_held_out_rows_stay_as_their_records_have_them() -> None:
    """They are completed by the version's own tables when they are asked about, as any row is."""
    how = replace(fold_spec(), held_out=HeldOutConfig(share=0.5, rows=100, every_rows=5))
    first = Rooms(make_events(40, seed=5)).worker(how=how)
    run_to_end(first, 40)
    last = Rooms(make_events(80, seed=6)).worker(how=how)
    run_to_end(last, 80)
    version, newest = first.fold.parts(), last.fold.parts()
    before, after = newest["features"]["slots"]["town"], version["features"]["slots"]["town"]
    assert before[: len(after)] != after
    held_out = rewound(how.features(), how.make_learner, version, newest)["held_out"]
    assert pack(held_out) == pack(newest["held_out"])
    towns, stage = held_out["names"][:, 0].tolist(), how.features()
    stage.load(version["features"])
    x = stage.answer(Batch(held_out["x"], names=held_out["names"])).x[:, TOWN]
    slots = [after.index(town) if town in after else len(x[0]) - 1 for town in towns if town is not None]
    assert x[[town is not None for town in towns]].argmax(axis=1).tolist() == slots and len(set(slots)) > 1
