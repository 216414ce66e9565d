"""docs/design/journal.md, test 4: recorded streams and their final hashes; a change that folds them differently must say so.

Features are small integers and weights 1 or 4 (rows are scaled by their root), so that every sum is exact and the hashes are
the same on any processor. To record a new
revision of a learner, run this file as a script: it prints the line to add to ``hashes.json``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
from branches import HOST, Rooms, SteppedClock, fold_spec

from millrace.learners.analytic.ridge import Ridge, RidgeConfig
from millrace.learners.errors import LearnerError
from millrace.learners.linear.softmax import Softmax, SoftmaxConfig
from millrace.streams.branch.branch import FoldSpec, state_hash
from millrace.streams.formats.json_rows import Codec
from millrace.streams.records import Event
from millrace.streams.schema import Field, Label, Schema
from millrace.streams.state.fold import REVISION
from millrace.streams.worker.config import WorkerConfig
from millrace.streams.worker.worker import Worker, WorkerIdentity

RECORDED = Path(__file__).parents[2] / "recorded"
HASHES = json.loads((RECORDED / "hashes.json").read_text()) if (RECORDED / "hashes.json").exists() else {}


class SkipsLast(Ridge):
    """Broken: leaves out the last row of every batch."""

    def learn_many(self, batch) -> None:
        super().learn_many(batch.rows(0, len(batch) - 1))


FIELDS = (
    Field("x", size=3),
    Field("age", missing="indicator"),
    Field("town", type="categorical", categories="grow", max=3, missing="category"),
)


def ridge_of(config: RidgeConfig, width: int, revision: int) -> Ridge:
    """An untaught ridge as it was at a revision."""
    ridge = Ridge(config, width, 0)
    ridge.as_of(revision)
    return ridge


def begun_under(fold_revision: int) -> type[FoldSpec]:
    """Whose branches are begun as the releases of a fold revision did."""

    class Begun(FoldSpec):
        def new_fork(self, branch, source):
            return msgspec.structs.replace(super().new_fork(branch, source), fold_revision=fold_revision)

    return Begun


def pipeline(label: Label, revision: int = Ridge.revision, fold_revision: int = REVISION) -> FoldSpec:
    """A pipeline over the recorded rows, with a ridge of a revision, whose branches are folded as at a revision."""
    schema = Schema(FIELDS, label, weight="w")
    make = partial(ridge_of, RidgeConfig(task=label.task, solve_rows=9), schema.width, revision)
    how = replace(fold_spec(), schema=schema, codec=Codec(schema, 4096), make_learner=make, scaling="clip")
    return begun_under(fold_revision)(*(getattr(how, field.name) for field in fields(how)))


REVISIONS = [(1, 1), (2, 2), (Ridge.revision, REVISION)]  # of learner and fold, as releases had them together
LABELS = {"classes": Label("kind"), "numbers": Label("size", "number")}
PIPELINES = {name: pipeline(label) for name, label in LABELS.items()}


def folded(how: FoldSpec, later: FoldSpec | None = None) -> str:
    """The hash of the state after the whole recorded stream, whose second half a release with ``later`` reads."""
    lines = (RECORDED / "small.jsonl").read_text().splitlines()
    rows = enumerate(map(json.loads, lines))
    events = [Event(at, row["t"], None, b"", row[how.schema.label.name].encode()) for at, row in rows]
    rooms = Rooms(events, read_rows=17)
    for spec, until in ((how, len(events) // 2), (later or how, len(events))):
        worker = Worker(spec, rooms.backends(), WorkerConfig(), WorkerIdentity("main", HOST, SteppedClock()))
        while sum(worker.fold.position.values()) < until:
            list(worker.step())
        worker.close()
    return state_hash(worker.fold.parts())


def expected(name: str, how: FoldSpec) -> str | None:
    """The hash that was recorded for its revisions."""
    fork = how.new_fork("main", Rooms([], read_rows=1).backends().source)
    return HASHES.get(name, {}).get(f"{fork.learner_revision}.{fork.fold_revision}")


@pytest.mark.parametrize("revisions", REVISIONS)
@pytest.mark.parametrize("name", LABELS)
def test_a_recorded_stream_folds_to_its_recorded_hash(name, revisions):
    """Whoever changes how rows are decoded, cut, learned or packed raises a revision and records it anew.

    What was begun under an earlier one still folds to the hash that was recorded then.
    """
    how = pipeline(LABELS[name], *revisions)
    assert folded(how) == expected(name, how)


@pytest.mark.parametrize("revisions", REVISIONS[:-1])
@pytest.mark.parametrize("name", LABELS)
def test_a_branch_begun_under_an_earlier_revision_goes_on_under_it(name, revisions):
    """Half of it by the release before, half by this one, and the hash is that of the release before."""
    before = pipeline(LABELS[name], *revisions)
    assert folded(before, pipeline(LABELS[name])) == expected(name, before) != expected(name, pipeline(LABELS[name]))


def test_a_branch_of_a_revision_that_is_not_here_is_refused_with_the_way_out():
    """A later ridge, and a softmax of before, which cannot be what it was."""
    how = pipeline(Label("kind"))
    softmax = replace(how, make_learner=lambda: Softmax(SoftmaxConfig(), how.schema.width, 0))
    for spec, revision in ((how, 3), (softmax, 1)):
        fork = msgspec.structs.replace(
            spec.new_fork("main", Rooms([], read_rows=1).backends().source), learner_revision=revision
        )
        with pytest.raises(LearnerError, match=rf"by revision {revision} of .* anew with `millrace run --branch NEW`, or"):
            spec.fold(fork)


def test_a_learner_that_leaves_rows_out_does_not_fold_to_it():
    """The hash notices a broken twin."""
    how = PIPELINES["classes"]
    broken = replace(how, make_learner=lambda: SkipsLast(RidgeConfig(solve_rows=9), how.schema.width, 0))
    assert folded(broken) != expected("classes", how)


if __name__ == "__main__":
    hashes = {name: {f"{Ridge.revision}.{REVISION}": folded(how)} for name, how in PIPELINES.items()}
    sys.stdout.write(json.dumps(hashes, indent=2) + "\n")
