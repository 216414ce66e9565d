"""What drift leads to, done to a learner with an error memory while rows wait for their label: both begin afresh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late_stream import AT_ONCE, driven

from millrace.learners.memory.abilities import remembering
from millrace.learners.protocol import Batch
from millrace.services.config.config import build_pipeline
from millrace.services.pipeline.instance import Instance
from millrace.streams.journal.entries import Act

ROWS, DELAY, NEWEST = 400, 37, 96
ACT_AT = 200 // AT_ONCE  # of the steps


def instance_of(home: Path, form: str, learner: dict[str, Any], op: str) -> Instance:
    """A pipeline of four numbers."""
    raw: dict[str, Any] = {
        "name": "acts",
        "fields": [{"name": "x", "size": 4}],
        "label": {"name": "y"},
        "learner": learner,
        "memory": {"form": form, "rows": 100, "warm_up_rows": 40},
        "drift": {"act": op},
        "batch": {"rows": AT_ONCE},
        "labels": {},
        "worker": {"step_ms": 0},
    }
    return Instance(build_pipeline(raw), home / "acts")


@pytest.mark.parametrize("form", ["exact", "sketch"])
@pytest.mark.parametrize("learner", [{"kind": "ridge", "solve_rows": 32}, {"kind": "softmax", "warm_up_rows": 32}])
@pytest.mark.parametrize(("op", "args"), [("reset", {}), ("relearn", {"rows": NEWEST})])
def test_a_memory_begins_afresh_with_its_learner(
    op: str, args: dict[str, int], learner: dict[str, Any], form: str, tmp_path: Path
) -> None:
    """It knows nothing but what the learner learned again; rows that were asked before are learned as they come."""
    rng = np.random.default_rng(0)
    x, instance = rng.normal(size=(ROWS, 4)), instance_of(tmp_path, form, learner, op)
    labels = np.where(x[:, 0] * x[:, 1] > 0.0, "yes", "no").tolist()
    for at, (_, worker) in enumerate(driven(instance, [x], labels, DELAY)):
        if at != ACT_AT:
            continue
        before = worker.fold.counts.learned
        assert worker.fold.figures()["strength"] > 0.0 and worker.fold.waiting >= DELAY
        act = Act(branch="main", seq=99, epoch=1, op=op, args=args, cause="operator", evidence="a test")  # type: ignore[arg-type]
        worker.fold.act(act)
        alone = remembering(worker.fold.make_learner().base, instance.loaded.learner_config, 4, 0)  # type: ignore[attr-defined]
        if op == "relearn":
            again = slice(before - NEWEST, before)
            for start in range(0, NEWEST, AT_ONCE):
                rows = slice(again.start + start, again.start + start + AT_ONCE)
                alone.learn_many(Batch(x[rows], np.array(labels[rows], dtype=object)))
        learned, expected = worker.fold.learner.state_dict().truth, alone.state_dict().truth
        assert learned["rows"] == (NEWEST if op == "relearn" else 0)
        for name in ("names", "losses", "rows", *(key for key in expected if key.startswith("memory."))):
            assert np.array_equal(learned[name], expected[name])
    assert worker.fold.counts.learned == (ROWS - DELAY) // AT_ONCE * AT_ONCE
