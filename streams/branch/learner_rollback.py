"""A branch that goes on with an older learner: the newest state of a branch, with what an earlier version of it had learned.

Of the version: the learner, what is derived from it, and the feature tables that its weights belong to. Categories have their
slots there, and means stand in for missing numbers. So it answers every row as the version did, bit for bit. Of the newest
state: the label join, positions, the clock, detectors, scores, and the count of where every record went. The rows between the
two are not learned again. Those that waited for their batch are passed: a batch never has rows from before and after. A
prediction that waits for its label waits on, and its answer becomes the version's: the answer of the learner that was taken
back says nothing about this one.

Source: docs/design/journal.md, rule 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from millrace.learners.protocol import Batch, Learner, State, Value, from_columns
from millrace.streams.features.columns import Features

LEARNED = ("learner", "derived", "features", "window")  # parts of the version; "serve" follows from them

Parts = Mapping[str, Mapping[str, Value]]


def is_learned(part: str) -> bool:
    """Whether a part belongs to the learner: its tables, and the window of rows that an act may let it learn again, too."""
    return part.partition(".")[0] in LEARNED


def rewound(
    features: Features, make_learner: Callable[[], Learner], version: Parts, newest: Parts
) -> dict[str, dict[str, Value]]:
    """The parts of a fold that goes on from ``newest`` with the learner of ``version``."""
    parts = {name: dict(part) for name, part in newest.items() if not is_learned(name)}
    parts |= {name: dict(part) for name, part in version.items() if is_learned(name)}
    counts = dict(newest["counts"]["counts"])
    counts["passed"] += len(newest["batches"].get("x", ()))
    parts["counts"]["counts"] = counts
    parts["batches"] = {"deadline_ms": 0}
    features.load(version["features"])
    before = newest["features"]
    for name in [column for column in ("x", "pending") if "held_out" in parts and len(parts["held_out"][column])]:
        parts["held_out"][name] = features.retabled(Batch(parts["held_out"][name]), before).x
    if "join" in parts:
        parts["join"]["given"] = []
        if "x" in parts["join"]:
            waiting = features.retabled(from_columns(parts["join"]), before)
            parts["join"] |= {"x": waiting.x} | _answers(features.answer(waiting), make_learner, version)
    return parts


def _answers(waiting: Batch, make_learner: Callable[[], Learner], version: Parts) -> dict[str, Value]:
    """What the version answers to the n rows that wait, one by one: BLAS rounds by their number."""
    x, learner = waiting.x, make_learner()
    learner.load_state_dict(State(dict(version["learner"]), dict(version["derived"])))
    servable = learner.servable()
    scores = np.concatenate([servable.predict_many(Batch(row[None])) for row in x])
    return {
        "classes": [list(servable.classes)],
        "table": np.zeros(len(x), dtype=np.int64),
        "outputs": np.full(len(x), scores.shape[1], dtype=np.int64),
        "scores": scores.ravel(),
    }
