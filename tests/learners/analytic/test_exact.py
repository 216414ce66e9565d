"""Merging, forgetting and relabelling against a learner that never knew better, each with a twin that does it wrong."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from family import ONCE, imbalanced, made, same, taught
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.learners.analytic.exact import ErrorBound, forget, forget_class, forget_key, merge, relabel
from millrace.learners.analytic.recentring import move
from millrace.learners.analytic.ridge import Ridge
from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.protocol import Array, Batch, Floats

KINDS = ["ridge", "aef-ocl", "air", "slda", "ncm"]
D = 5
COUNTS = (300, 80, 40)


def lessons(seed: int) -> tuple[Floats, Array]:
    """420 rows of three classes."""
    return imbalanced(seed, COUNTS, D)


def fresh(kind: str, **config: Any) -> Ridge:
    """An untaught learner that solves when it is asked, expanding its features."""
    return made(kind, D, **{"solve_rows": ONCE, "expand": 12, **config})


def keyed(x: Floats, y: Array) -> Batch:
    """Rows of seven keys in turn, with weights."""
    keys = np.array([b"key %d" % (at % 7) for at in range(len(x))], dtype=object)
    return Batch(x, y, keys, weight=np.random.default_rng(0).uniform(0.5, 2.0, len(x)))


def learned(learner: Ridge, batch: Batch) -> Ridge:
    """``learner`` after one batch, solved."""
    learner.learn_many(batch)
    learner.solve_now()
    return learner


def same_statistics(ours: Ridge, theirs: Ridge, tolerance: float) -> bool:
    """Whether what is kept is the same, relative to its size; for classes in the same order, seen from the same centre.

    All but ``largest``: how large sums once were is what rounding is reckoned by, and no statistic of the rows.
    """
    ours = deepcopy(ours)
    move(ours._sums, ours._per_class, theirs._sums.centre, theirs._sums.centre_targets)
    mine, yours = ours.state_dict().truth, theirs.state_dict().truth
    arrays = [key for key, value in yours.items() if isinstance(value, np.ndarray) and value.size and key != "largest"]
    return all(np.abs(mine[key] - yours[key]).max() <= tolerance * max(1.0, float(np.abs(yours[key]).max())) for key in arrays)


# --- merge ------------------------------------------------------------------------------------------------------------


def merge_of_eight(kind: str, join: Callable[[dict[str, Ridge]], Ridge]) -> bool:
    """Whether eight workers joined answer as one that learned everything, to 1e-10; only the last sees a third class."""
    x, y = lessons(1)
    y = np.where((y == "cat") & (np.arange(len(y)) < 367), "bee", y).astype(object)
    edges = np.linspace(0, len(x), 9).astype(int)
    shards = {
        f"worker {at}": taught(fresh(kind), x[start:stop], y[start:stop])
        for at, (start, stop) in enumerate(zip(edges, edges[1:], strict=False))
    }
    whole = taught(fresh(kind), x, y)
    merged = join(shards)
    return merged.rows == whole.rows and same(merged.servable(), whole.servable(), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_workers_merged_are_one(kind: str) -> None:
    """Sums commute; gamma is added once; classes are united by name."""
    assert merge_of_eight(kind, lambda shards: merge(shards)[0])


def averaged(shards: dict[str, Ridge]) -> Ridge:
    """The broken twin: the mean of the workers' weights."""
    merged = merge(shards)[0]
    names = merged.servable().classes
    mean = np.zeros_like(merged.servable().weights)
    for shard in shards.values():
        for at, name in enumerate(shard.servable().classes):
            mean[:, names.index(name)] += shard.servable().weights[:, at] / len(shards)
    merged._keep(replace(merged._solution, weights=mean))
    return merged


@pytest.mark.parametrize("kind", KINDS)
def test_averaged_workers_are_not_one(kind: str) -> None:
    """So the test above can fail."""
    assert not merge_of_eight(kind, averaged)


def test_merging_is_the_same_bits_in_any_order_of_arrival() -> None:
    """Shards are added in the order of names; a newer snapshot of one replaces the older; the same one twice is refused."""
    x, y = lessons(2)
    a, b = taught(fresh("air"), x[:200], y[:200]), taught(fresh("air"), x[200:], y[200:])
    first, _ = merge({"a": a, "b": b})
    second, certificate = merge({"b": b, "a": a})
    assert np.array_equal(first.servable().weights, second.servable().weights)
    assert certificate.holds and certificate.rows == len(x) and certificate.operation == "merge"
    older = taught(fresh("air"), x[200:300], y[200:300])
    assert merge({"a": a, "b": older} | {"b": b})[0].rows == len(x)
    copy = fresh("air")
    copy.load_state_dict(a.state_dict())
    with pytest.raises(LearnerError, match="shards 'a' and 'c' are the same snapshot"):
        merge({"a": a, "b": b, "c": copy})
    assert merge({"a": a, "idle": fresh("air"), "idle too": fresh("air")})[0].rows == a.rows


@pytest.mark.parametrize(
    ("other", "what"),
    [(fresh("slda"), "kind"), (fresh("ridge", gamma=2.0), "config"), (made("ridge", 4, solve_rows=ONCE, expand=12), "d")],
)
def test_shards_of_different_makes_are_refused(other: Ridge, what: str) -> None:
    """With what differs; so are those whose rows fade, and none at all."""
    with pytest.raises(LearnerError, match=f"differ in {what}:"):
        merge({"a": fresh("ridge"), "b": other})
    with pytest.raises(LearnerError, match="cannot merge: with decay = 0.9"):
        merge({"a": fresh("ridge", decay=0.9)})
    with pytest.raises(LearnerError, match="no shards"):
        merge({})


def test_a_merged_regression_is_one() -> None:
    """Numbers merge as classes do."""
    x = np.random.default_rng(3).normal(size=(90, D))
    y = x[:, :2] * 2.0
    shards = {str(at): learned(fresh("ridge", task="regress"), Batch(x[at::3], y[at::3])) for at in range(3)}
    whole = learned(fresh("ridge", task="regress"), Batch(x, y))
    assert same_statistics(merge(shards)[0], whole, 1e-12)


def test_what_does_not_fit_together_is_refused_before_anything_changes() -> None:
    """Numbers with another count of outputs; and more classes than there is room for, merged or by another label."""
    x, y = lessons(3)
    two = learned(fresh("ridge", task="regress"), Batch(x[:50], x[:50, :2]))
    before = two.state_dict().truth["gram"]
    for wrong in (lambda: forget(two, Batch(x[:5], x[:5, 0])), lambda: relabel(two, Batch(x[:5], x[:5, :2]), x[:5, 0])):
        with pytest.raises(LearnerError, match=r"one has \d outputs and the other \d"):
            wrong()
    assert np.array_equal(two.state_dict().truth["gram"], before)
    room = {"most_classes": 2}
    ants, cats = (learned(fresh("air", **room), Batch(x[y != gone], y[y != gone])) for gone in ("cat", "ant"))
    with pytest.raises(LearnerError, match="3 classes together; there is room for most_classes = 2"):
        merge({"a": ants, "b": cats})
    first = Batch(x[y == "ant"][:1], y[y == "ant"][:1])
    with pytest.raises(LearnerError, match="3 classes together"):
        relabel(ants, first, np.array(["gnu"], dtype=object))
    assert ants.servable().classes == tuple(ants.class_rows) and len(ants.class_rows) == 2


# --- forget -----------------------------------------------------------------------------------------------------------


def add_then(kind: str, undo: Callable[[Ridge, Batch], object]) -> bool:
    """Whether a learner that learned some rows more and undid that is the one before, to 1e-10, in statistics and answers."""
    x, y = lessons(4)
    kept, extra = keyed(x, y).rows(0, 300), keyed(x, y).rows(300, 420)
    learner, control = learned(fresh(kind), kept), learned(fresh(kind), kept)
    learner.learn_many(extra)
    undo(learner, extra)
    same_answers = same(learner.servable(), control.servable(), 1e-10)
    return learner.rows == control.rows and same_statistics(learner, control, 1e-10) and same_answers


@pytest.mark.parametrize("kind", KINDS)
def test_adding_and_forgetting_is_identity(kind: str) -> None:
    """Rows with weights, all statistics, and the answers."""
    assert add_then(kind, forget)


def forgets_without_weights(learner: Ridge, batch: Batch) -> None:
    """The broken twin: takes rows out as if each weighed 1."""
    forget(learner, replace(batch, weight=None))


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_without_the_weights_is_not_identity(kind: str) -> None:
    """So the test above can fail."""
    assert not add_then(kind, forgets_without_weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_key_was_never_learned(kind: str) -> None:
    """Of rows of seven keys, those of one are taken out; the certificate says how many and how exactly."""
    x, y = lessons(5)
    batch = keyed(x, y)
    assert batch.key is not None
    learner = learned(fresh(kind), batch)
    certificate = forget_key(learner, batch, b"key 3")
    rest = batch.only(np.array([key != b"key 3" for key in batch.key]))
    never = learned(fresh(kind), rest)
    assert certificate == ErrorBound("forget", 60, certificate.residual_before, learner.residual, learner.error)
    assert certificate.holds and certificate.bound < 1e-6
    assert same(learner.servable(), never.servable(), 1e-9)
    with pytest.raises(BadInputError, match="the rows have no keys"):
        forget_key(learner, replace(batch, key=None), b"key 3")


def test_the_bound_of_a_certificate_holds() -> None:
    """The distance to the solution by extended precision is below it, and it is not idle: within a million times of it."""
    x, y = lessons(6)
    learner = learned(fresh("ridge", standardise=False, intercept=False, gamma=0.1), Batch(x, y))
    certificate = forget(learner, Batch(x[:50], y[:50]))
    sums = learner.known().sums
    gram = (np.tril(sums.gram) + np.tril(sums.gram, -1).T).astype(np.longdouble) + np.longdouble(0.1) * np.eye(12)
    v = learner.servable().weights.astype(np.longdouble)
    for _ in range(3):  # of refinement in extended precision: the exact solution, as far as float64 can see
        v = v + np.linalg.solve(gram.astype(float), (sums.cross[:3].T - gram @ v).astype(float))
    apart = float(np.linalg.norm((v - learner.servable().weights).astype(float)))
    assert 0.0 < apart <= certificate.bound + 1e-15 and certificate.bound < 1e-9


def test_air_forgets_a_class_without_its_rows() -> None:
    """Its column stays, empty; the others answer as if it had never been; seen again, it is learned from nothing."""
    x, y = lessons(7)
    learner = taught(fresh("air"), x, y)
    certificate = forget_class(learner, "bee")
    never = taught(fresh("air"), x[y != "bee"], y[y != "bee"])
    assert certificate.rows == 80 and learner.class_rows["bee"] == 0 and certificate.holds
    assert learner.servable().classes.count("bee") == 1
    others = [name for name in learner.servable().classes if name != "bee"]
    columns = [learner.servable().classes.index(name) for name in others]
    scores, expected = learner.predict_many(Batch(x)), never.predict_many(Batch(x))
    assert np.allclose(scores[:, columns], expected[:, [never.servable().classes.index(n) for n in others]], atol=1e-9)
    assert not scores[:, learner.servable().classes.index("bee")].any()
    learner.learn_many(Batch(x[y == "bee"], y[y == "bee"]))
    learner.solve_now()
    assert same(learner.servable(), taught(fresh("air"), x, y).servable(), 1e-9)
    with pytest.raises(BadInputError, match="class 'zebra': never learned"):
        forget_class(learner, "zebra")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "air"])
def test_without_second_moments_by_class_a_class_is_forgotten_by_its_rows(kind: str) -> None:
    """Refused by name; with the rows it is done, and the class never answers before it is seen again."""
    x, y = lessons(8)
    learner = taught(fresh(kind), x, y)
    with pytest.raises(LearnerError, match="give them to forget"):
        forget_class(learner, "ant")
    forget(learner, Batch(x[y == "ant"], y[y == "ant"]))
    never = taught(fresh(kind), x[y != "ant"], y[y != "ant"])
    assert learner.class_rows["ant"] == 0
    scores = learner.predict_many(Batch(x))
    assert np.isfinite(scores).all() and learner.servable().classes.index("ant") not in scores.argmax(axis=1)
    columns = [learner.servable().classes.index(name) for name in never.servable().classes]
    ours, theirs = scores[:, columns], never.predict_many(Batch(x))
    assert np.allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_that_only_forgotten_rows_had_is_gone(kind: str) -> None:
    """And not blown up from the rounding that is left of it; forgetting all rows leaves an untaught learner's zeros."""
    x, y = lessons(9)
    x[:, 4] = 0.0
    x[40:90, 4] = np.random.default_rng(1).normal(size=50) * 0.1 + 0.3
    learner = taught(fresh(kind, expand=0), x, y)
    forget(learner, Batch(x[40:90], y[40:90]))
    kept = np.r_[0:40, 90 : len(x)]
    never = taught(fresh(kind, expand=0), x[kept], y[kept])
    assert not learner.servable().weights[4].any() and same(learner.servable(), never.servable(), 1e-9)
    forget(learner, Batch(x[kept], y[kept]))
    assert learner.rows == 0 and not learner.known().sums.gram.any() and learner.known().sums.weight == 0.0
    assert np.isfinite(learner.predict_many(Batch(x))).all()


def test_rows_that_were_not_learned_are_not_forgotten() -> None:
    """Refused with the class and the counts, and nothing changes; so is forgetting where rows fade."""
    x, y = lessons(10)
    learner = taught(fresh("ridge"), x, y)
    before = learner.state_dict().truth["gram"]
    with pytest.raises(BadInputError, match="301 rows of class 'ant' are to be forgotten and 300 were learned"):
        forget(learner, Batch(np.zeros((301, D)), np.array(["ant"] * 301, dtype=object)))
    with pytest.raises(BadInputError, match="weigh 6 are to be forgotten and those learned weigh"):
        forget(learned(fresh("ridge"), Batch(x[:2], y[:2])), Batch(x[:1], y[:1], weight=np.array([6.0])))
    with pytest.raises(BadInputError, match="1 rows of class 'zebra' are to be relabelled and 0 were learned"):
        relabel(learner, Batch(x[:1], np.array(["zebra"], dtype=object)), y[:1])
    assert np.array_equal(learner.state_dict().truth["gram"], before)
    with pytest.raises(LearnerError, match="cannot forget: with decay = 0.9"):
        forget(taught(fresh("ridge", decay=0.9), x, y), Batch(x[:1], y[:1]))
    numbers = learned(fresh("ridge", task="regress"), Batch(x[:3], x[:3, 0]))
    with pytest.raises(BadInputError, match="4 rows are to be forgotten and 3 were learned"):
        forget(numbers, Batch(x[:4], x[:4, 0]))


# --- relabel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrected_label_is_as_if_it_had_been_right_at_once(kind: str) -> None:
    """G and s keep every bit; a label may be one that was never seen; and twice to and fro is where it began."""
    x, y = lessons(11)
    batch = keyed(x, y)
    wrong = y.copy()
    wrong[:30], wrong[30:40] = "bee", "gnu"
    learner = learned(fresh(kind), replace(batch, y=wrong))
    before = learner.state_dict().truth
    fixed = batch.rows(0, 40)
    certificate = relabel(learner, replace(fixed, y=wrong[:40]), y[:40])
    assert certificate.holds and certificate.rows == 40 and learner.class_rows["gnu"] == 0
    assert np.array_equal(learner.state_dict().truth["gram"], before["gram"])
    assert np.array_equal(learner.state_dict().truth["features"], before["features"])
    right = learned(fresh(kind), batch).servable()
    names = [learner.servable().classes.index(name) for name in right.classes]
    ours, theirs = learner.predict_many(batch)[:, names], right.predict_many(batch)
    assert np.allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-8 * max(1.0, float(np.abs(theirs).max())))
    relabel(learner, fixed, wrong[:40])
    assert all(
        np.allclose(learner.state_dict().truth[key], before[key], atol=1e-9) for key in ("gram", "cross", "targets", "counts")
    )


# --- late labels ------------------------------------------------------------------------------------------------------


@given(st.permutations(range(6)), st.sampled_from(KINDS))
@settings(max_examples=30, deadline=None)
def test_labels_that_come_late_and_in_any_order_lead_to_the_same_answers(order: list[int], kind: str) -> None:
    """Statistics commute."""
    x, y = lessons(12)
    parts = np.array_split(np.arange(len(x)), 6)
    late = np.concatenate([parts[at] for at in order])
    assert same(taught(fresh(kind), x[late], y[late], (7, 200)).servable(), taught(fresh(kind), x, y).servable(), 1e-9)
