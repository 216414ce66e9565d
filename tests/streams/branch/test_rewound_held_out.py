"""Rows that are held out go with a learner that is taken back: they are put as its own tables put them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from branches import SCHEMA, Rooms, fold_spec, make_events, run_to_end

from millrace.streams.branch.learner_rollback import rewound
from millrace.streams.state.held_out import HeldOutConfig

TOWN = slice(4, 8)  # the columns of the field that grows: three slots, and the others


def towns(x: np.ndarray, slots: list[str]) -> list[str]:
    """Each row's town, as the table has it; what has no slot is ``other``."""
    names = [*slots, *["other"] * (TOWN.stop - TOWN.start - len(slots))]
    return [names[at] if row.any() else "none" for row, at in zip(x[:, TOWN], x[:, TOWN].argmax(axis=1), strict=True)]


def test_held_out_rows_are_moved_to_the_versions_tables() -> None:
    """A town that the version's table has no slot for is another; where its slot is another, so is the row's column."""
    how = replace(fold_spec(), held_out=HeldOutConfig(share=0.5, rows=100, every_rows=5))
    first = Rooms(make_events(6, seed=5)).worker(how=how)
    run_to_end(first, 6)
    last = Rooms(make_events(80, seed=6)).worker(how=how)
    run_to_end(last, 80)
    version, newest = first.fold.parts(), last.fold.parts()
    before, after = newest["features"]["slots"]["town"], version["features"]["slots"]["town"]
    assert before[: len(after)] != after
    found = rewound(SCHEMA, how.make_learner, version, newest)["held_out"]
    for name in ("x", "pending"):
        rows = newest["held_out"][name]
        assert len(rows)
        said = [town if town in (*after, "none") else "other" for town in towns(rows, before)]
        assert towns(found[name], after) == said
    assert len(set(towns(found["x"], after))) > 1
