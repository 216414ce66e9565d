"""A branch that goes on with an older learner: the newest state of a branch, with what an earlier version of it had learned.

Of the version: the learner, what is derived from it, and the feature tables that its weights belong to. Categories have their
slots there, and means stand in for missing numbers. So it answers every row as the version did, bit for bit. Of the newest
state: the label join, positions, the clock, detectors, scores, and the count of where every record went. The rows between the
two are not learned again. Those that waited for their batch are passed: a batch never has rows from before and after. A
prediction that waits for its label waits on. Its row is put as the version's tables put it, and its answer becomes the
version's: the answer of the learner that was taken back says nothing about this one. Rows that are held out are put as the
version puts them, too.

Source: docs/design/journal.md, rule 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from millrace.learners.protocol import Batch, Floats, Learner, State, Value
from millrace.streams.schema import Field, Schema

LEARNED = ("learner", "derived", "features", "window")  # parts of the version; "serve" follows from them

Parts = Mapping[str, Mapping[str, Value]]


def is_learned(part: str) -> bool:
    """Whether a part belongs to the learner: its tables, and the window of rows that an act may let it learn again, too."""
    return part.partition(".")[0] in LEARNED


def rewound(schema: Schema, make_learner: Callable[[], Learner], version: Parts, newest: Parts) -> dict[str, dict[str, Value]]:
    """The parts of a fold that goes on from ``newest`` with the learner of ``version``."""
    parts = {name: dict(part) for name, part in newest.items() if not is_learned(name)}
    parts |= {name: dict(part) for name, part in version.items() if is_learned(name)}
    counts = dict(newest["counts"]["counts"])
    counts["passed"] += len(newest["batches"].get("x", ()))
    parts["counts"]["counts"] = counts
    parts["batches"] = {"deadline_ms": 0}
    for name in [column for column in ("x", "pending") if "held_out" in parts and len(parts["held_out"][column])]:
        rows, slots = parts["held_out"][name], (newest["features"]["slots"], version["features"]["slots"])
        parts["held_out"][name] = moved(schema, rows, *slots)
    if "join" in parts:
        parts["join"]["given"] = []
        if "x" in parts["join"]:
            x = moved(schema, parts["join"]["x"], newest["features"]["slots"], version["features"]["slots"])
            parts["join"] |= {"x": x} | _answers(make_learner, version, x)
    return parts


def _answers(make_learner: Callable[[], Learner], version: Parts, x: Floats) -> dict[str, Value]:
    """What the version answers to the rows that wait (n, d), one by one: BLAS rounds by their number."""
    learner = make_learner()
    learner.load_state_dict(State(dict(version["learner"]), dict(version["derived"])))
    servable = learner.servable()
    scores = np.concatenate([servable.predict_many(Batch(row[None])) for row in x])
    return {
        "classes": [list(servable.classes)],
        "table": np.zeros(len(x), dtype=np.int64),
        "outputs": np.full(len(x), scores.shape[1], dtype=np.int64),
        "scores": scores.ravel(),
    }


def moved(schema: Schema, x: Floats, before: dict[str, list[str]], after: dict[str, list[str]]) -> Floats:
    """Rows (n, d) that were made with some slots of categories, as other slots make them; without a slot it is ``other``."""
    remapped, at = x.copy(), 0
    for field in schema.fields:
        if field.categories == "grow":
            remapped[:, at : at + field.width] = _regrown(
                field, x[:, at : at + field.width], before[field.name], after[field.name]
            )
        at += field.width
    return remapped


def _regrown(field: Field, block: Floats, before: list[str], after: list[str]) -> Floats:
    slots = {name: slot for slot, name in enumerate(after)}
    targets = [slots.get(name, field.max) for name in before] + list(range(len(before), field.width))
    remapped = np.zeros_like(block)
    for column, target in enumerate(targets):
        remapped[:, target] += block[:, column]  # of ones and zeros, so nothing is rounded
    return remapped
