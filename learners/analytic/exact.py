"""What the algebra of sums allows: merge workers, take rows out again, give rows another label, answer by another prior.

Every learner of the analytic family (ridge, aef-ocl, air, slda, ncm) can; each operation gives an error bound, and leaves a
learner that never knew the rows, to rounding. Rows are given again by the caller, with the weights that they have now.

| operation | sums |
|---|---|
| merge | G, Q, s, t, n, y2 of the shards added in the order of their names; gamma once |
| forget rows or a key | those of the rows taken out |
| forget a class | A_c, Q_c, n_c taken out, without the rows (air only: it keeps A_c) |
| relabel | Q, t, y2 alone: G and s stay as they are, bit for bit |

Source: docs/design/learners.md#exact-operations; features that only the forgotten rows had are set to 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from millrace.learners.analytic.class_statistics import ClassGrams
from millrace.learners.analytic.normal_equations import RESIDUAL, Sums
from millrace.learners.analytic.priors import Prior
from millrace.learners.analytic.ridge import Ridge
from millrace.learners.analytic.solver import served
from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.linear.servable import LinearServable
from millrace.learners.protocol import Array, Batch, Value

ROUNDING = 1e-9  # by which sums of the same weights in another order may differ


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """What was done, and how exactly the answers now follow from the statistics."""

    operation: str  # "merge", "forget", "forget-class" or "relabel"
    rows: int  # that it was done to
    residual_before: float  # ||A V - B|| / ||B|| of the answers before
    residual_after: float  # and after
    bound: float  # ||V - V*|| is at most this, V* being the exact solution of the statistics as they are now

    @property
    def holds(self) -> bool:
        """Whether the answers are to be trusted."""
        return self.residual_after <= RESIDUAL


def forget(learner: Ridge, batch: Batch) -> ErrorBound:
    """Take labelled rows out, as if they had never been learned.

    Raises: BadInputError where a class has fewer rows than are to be forgotten, and nothing is; LearnerError where rows fade.
    """
    _no_decay(learner, "forget")
    _known_rows(learner, batch, "forgotten")
    squares, before = _squares(learner), learner.residual
    learner.combine(learner.gathered(batch), -1)
    learner.finish_downdate(squares)
    return ErrorBound("forget", len(batch), before, learner.residual, learner.error)


def forget_key(learner: Ridge, batch: Batch, key: bytes) -> ErrorBound:
    """Take out those of the labelled rows whose key is ``key``. Raises: as ``forget``; BadInputError without keys."""
    if batch.key is None:
        raise BadInputError("column key: the rows have no keys; give the rows to be forgotten to forget()")
    return forget(learner, batch.only(np.array([row_key == key for row_key in batch.key], dtype=bool)))


def forget_class(learner: Ridge, name: str) -> ErrorBound:
    """Take a whole class out, without its rows; its column stays, and the class may be seen again.

    Raises: BadInputError where no such class was seen; LearnerError where the learner does not keep second moments by class.
    """
    statistics = learner.known()
    if name not in statistics.names:
        raise BadInputError(f"class {name!r}: never learned; the classes are {list(statistics.names)}")
    if not isinstance(statistics.per_class, ClassGrams):
        raise LearnerError(
            f"kind {learner.head.kind} keeps one second moment of all classes, so class {name!r} cannot be taken out without "
            "its rows; give them to forget(), or learn with kind air"
        )
    squares, before, rows = _squares(learner), learner.residual, learner.class_rows[name]
    learner.combine(learner.only_class(name), -1)
    learner.finish_downdate(squares)
    return ErrorBound("forget-class", rows, before, learner.residual, learner.error)


def relabel(learner: Ridge, batch: Batch, y: Array) -> ErrorBound:
    """Let rows that were learned with ``batch.y`` have been learned with ``y`` (n,) or (n, k).

    Raises: BadInputError where a class has fewer rows than are to lose it, and nothing changes; LearnerError where rows fade.
    """
    _no_decay(learner, "relabel")
    _known_rows(learner, batch, "relabelled")
    squares, before = _squares(learner), learner.residual
    moved = learner.gathered(replace(batch, y=y))
    moved.combine(learner.gathered(batch), -1)  # G and s of the same rows are the same bits, so their difference is 0
    learner.combine(moved, 1)
    learner.finish_downdate(squares)
    return ErrorBound("relabel", len(batch), before, learner.residual, learner.error)


def merge(shards: Mapping[str, Ridge]) -> tuple[Ridge, ErrorBound]:
    """One learner that knows what every worker learned; a worker's newer snapshot replaces its older one in ``shards``.

    Added in the order of the names, so that the same shards give the same bits; classes stand in the order in which the
    shards, in that order, saw them.
    Raises: LearnerError where the shards are of different makes, fade, or two of them are the same snapshot.
    """
    digests: dict[str, str] = {}
    for name in sorted(shards):
        twin = digests.setdefault(_digest(shards[name]), name)
        if twin != name and shards[name].rows:
            raise LearnerError(f"shards {twin!r} and {name!r} are the same snapshot; leave one out, or its rows count twice")
    return merge_disjoint(shards)


def merge_disjoint(shards: Mapping[str, Ridge]) -> tuple[Ridge, ErrorBound]:
    """``merge`` of workers that are known to have learned different records, equal though those may be.

    Raises: LearnerError where the shards are of different makes, or fade.
    """
    if not shards:
        raise LearnerError("there are no shards to merge")
    names = sorted(shards)
    first = shards[names[0]]
    _no_decay(first, "merge")
    merged = first.blank()
    for name in names:
        _same_make(names[0], first, name, shards[name])
        merged.combine(shards[name], 1)
    merged.solve_now()
    worst = max(shards[name].residual for name in names)
    return merged, ErrorBound("merge", merged.rows, worst, merged.residual, merged.error)


def with_prior(learner: Ridge, prior: Prior) -> LinearServable:
    """Answers by another class prior, from the statistics as they are now; the learner stays as it is.

    Raises: LearnerError where this learner has no prior; BadInputError where the prior cannot be used.
    """
    statistics = learner.known()
    solution = learner.head.answer(learner.head.config, replace(statistics, prior=prior))
    return served(statistics.names, solution, statistics.projection)


def seen_from_zero(truth: Mapping[str, Value]) -> dict[str, Value]:
    """A state with its sums seen from 0, on copies: in that learners of the same rows agree, whichever came first.

    What only says where sums were seen from is left out.
    """
    copies = {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in truth.items()}
    sums = Sums.of(copies)
    sums.move(np.zeros_like(sums.centre), np.zeros_like(sums.centre_targets))
    return {key: value for key, value in (copies | sums.state()).items() if key not in sums.centre_state()}


def _no_decay(learner: Ridge, verb: str) -> None:
    if learner.config.decay < 1.0:
        raise LearnerError(
            f"cannot {verb}: with decay = {learner.config.decay} a row's weight depends on the rows after it, and those of "
            "other workers have no common clock; learn with decay = 1, or fork without the rows"
        )


def _known_rows(learner: Ridge, batch: Batch, verb: str) -> None:
    """Raises: BadInputError where the learner cannot have learned these rows."""
    if learner.config.task != "classify" or batch.y is None:
        if len(batch) > learner.rows:
            raise BadInputError(f"{len(batch)} rows are to be {verb} and {learner.rows} were learned")
        return
    learned, total = learner.class_rows, dict(zip(learner.class_rows, learner.known().sums.targets, strict=True))
    weight = np.ones(len(batch)) if batch.weight is None else batch.weight
    for name in dict.fromkeys(batch.y.tolist()):
        rows = batch.y == name
        if rows.sum() > learned.get(name, 0):
            raise BadInputError(f"{rows.sum()} rows of class {name!r} are to be {verb} and {learned.get(name, 0)} were learned")
        if weight[rows].sum() > total[name] * (1.0 + ROUNDING):
            raise BadInputError(
                f"column weight: rows of class {name!r} that weigh {weight[rows].sum():g} are to be {verb} and those learned "
                f"weigh {total[name]:g}; give each row the weight it has now"
            )


def _same_make(ours: str, first: Ridge, theirs: str, other: Ridge) -> None:
    """Raises: LearnerError where two shards cannot be added."""
    for what, our_value, their_value in (
        ("kind", first.head.kind, other.head.kind),
        ("config", first.head.config, other.head.config),
        ("d", first.d, other.d),
        ("seed", first.seed, other.seed),
        ("revision", first.revision, other.revision),
    ):
        if our_value != their_value:
            raise LearnerError(
                f"shards {ours!r} and {theirs!r} differ in {what}: {our_value} and {their_value}; they cannot be merged"
            )
    ours_drawn, theirs_drawn = first.known().projection, other.known().projection
    if ours_drawn is not None and theirs_drawn is not None and not np.array_equal(ours_drawn, theirs_drawn):
        raise LearnerError(f"shards {ours!r} and {theirs!r} expand features differently; they cannot be merged")


def _digest(learner: Ridge) -> str:
    """A hash of all statistics."""
    digest = hashlib.sha256()
    for key, value in sorted(learner.state_dict().truth.items()):
        digest.update(key.encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def _squares(learner: Ridge) -> Array:
    return np.diag(learner.known().sums.gram).copy()
