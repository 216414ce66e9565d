"""Bad input to the replay family: each has a defined behaviour, and none stops a stream that could go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_steps import ASKED, CLASSES, FULL, KINDS, bits, blob, learner, rows, taught_in

from millrace.learners.errors import BadInputError
from millrace.learners.protocol import Batch
from millrace.learners.replay.unlearning import forget_class, forget_keys


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_class_outside_the_declared_set_are_left_out_and_counted(kind: str) -> None:
    """As if they had not come; one bad label in a stream must not stop it."""
    declared = {"classes": ("a", "b", "c")}
    restricted, other = learner(kind, **declared), learner(kind, **declared)
    batch = rows(120, 1, classes=5)
    restricted.learn_many(batch)
    known = np.isin(batch.y, ["a", "b", "c"])
    other.learn_many(batch.only(known))
    assert restricted.left_out == int((~known).sum()) > 0
    assert np.array_equal(restricted.predict_many(ASKED), other.predict_many(ASKED))
    assert set(restricted.servable().classes) == {"a", "b", "c"}


def test_a_declared_class_that_was_never_seen_is_not_answered() -> None:
    """Its column is there from the start, and is not served before a row of it was learned."""
    made = learner("er", classes=("z", "c", "b", "a"))
    made.learn_many(rows(60, 1))
    assert made.servable().classes == ("c", "b", "a") and made.predict_many(ASKED).shape == (9, 3)


@pytest.mark.parametrize("image", [(1, 2, 2), (3, 2, 3), (1, 6), (1, 2, 0)])
def test_an_image_of_another_shape_is_refused(image: tuple[int, ...]) -> None:
    """When the learner is made: its numbers must be the columns that the fields make."""
    with pytest.raises(ValueError, match="image"):
        learner("er", image=image)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_another_width_are_refused_and_change_nothing(kind: str) -> None:
    """With the column's name."""
    made = taught_in(kind, [150], rows(60, 1))
    before = bits(made)
    for bad in (rows(5, 1, d=7), Batch(np.full((2, 6), np.nan), CLASSES[:2]), Batch(np.zeros((2, 6)), np.array([1.0, 2.0]))):
        with pytest.raises(BadInputError, match=r"column [xy]"):
            made.learn_many(bad)
    assert bits(made) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_was_removed_begins_anew_when_it_is_seen_again(kind: str) -> None:
    """It leaves the answers and the buffer; back, it is the newest class; the others' answers order stays."""
    made = taught_in(kind, [150], rows(60, 1), rows(60, 2))
    order = list(made.servable().classes)
    assert forget_class(made, "b") >= 0
    left = [name for name in order if name != "b"]
    assert list(made.servable().classes) == left and made.predict_many(ASKED).shape == (9, 2)
    stored = made.buffer.columns.get("y")
    assert stored is None or set(stored[made.buffer.full].tolist()) <= {0, 1}
    again = learner(kind, **FULL.get(kind, {}))
    again.load_state_dict(made.state_dict())
    for resumed in (made, again):
        resumed.learn_many(rows(60, 3))
    assert list(made.servable().classes) == [*left, "b"]
    assert bits(made) == bits(again) and np.isfinite(made.predict_many(ASKED)).all()
    with pytest.raises(BadInputError, match="no class 'q'"):
        forget_class(made, "q")


def test_a_declared_class_that_was_removed_keeps_its_column() -> None:
    """And is not answered until it is seen again."""
    made = learner("derpp", classes=("a", "b", "c"))
    made.learn_many(rows(60, 1))
    forget_class(made, "b")
    assert made.servable().classes == ("a", "c")
    made.learn_many(rows(60, 2))
    assert made.servable().classes == ("a", "b", "c")


def test_rows_are_deleted_from_buffer_and_waiting_rows_by_key() -> None:
    """And from the bytes of the state."""
    made = learner("er", buffer_rows=50)
    batch = rows(35, 1)
    made.learn_many(replace(batch, key=np.array([b"ann", b"bob", None, b"cleo", b"dan"] * 7, dtype=object)))
    assert made.rows == 30 and len(made.waiting["y"]) == 5
    assert forget_keys(made, {b"bob"}) == 7
    assert len(made.buffer) == 24 and len(made.waiting["y"]) == 4
    assert b"Ym9i" not in blob(made) and b"Y2xlbw==" in blob(made)  # base64 of bob, and of cleo
    made.learn_many(rows(60, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_one_row_are_taken(kind: str) -> None:
    """A batch of one, in every learner."""
    made = learner(kind, step_rows=1)
    made.learn_many(rows(40, 1))
    assert made.rows == 40 and made.skipped == 0 and np.isfinite(made.predict_many(ASKED)).all()


def test_steps_of_one_row_are_taken_where_batches_are_normalised() -> None:
    """A single number has no variance: the running statistics stand in."""
    made = learner("er", step_rows=1, network="resnet18", image=(1, 2, 3), channels=2, rate=0.001)
    made.learn_many(rows(40, 1))
    assert made.rows == 40 and made.skipped == 0 and np.isfinite(made.predict_many(ASKED)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_one_class_is_learned(kind: str) -> None:
    """Answers are that class; another one may still come."""
    made, batch = learner(kind), rows(60, 1)
    made.learn_many(Batch(batch.x, np.full(60, "only", dtype=object)))
    assert made.servable().classes == ("only",) and np.isfinite(made.predict_many(ASKED)).all()
    made.learn_many(rows(60, 2))
    assert len(made.servable().classes) == 4 and made.skipped == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, 1e100])
def test_a_constant_feature_changes_nothing_but_its_own_column(kind: str, constant: float) -> None:
    """Its deviation is 0, or rounding: it is taken for 1, and the feature is 0 as long as it is constant."""
    made, batch = learner(kind), rows(60, 1)
    x = batch.x.copy()
    x[:, 2] = constant
    made.learn_many(replace(batch, x=x))
    scale = made.servable().scale
    assert scale is not None and scale[1][2] == 1.0
    assert made.skipped == 0 and np.isfinite(made.predict_many(Batch(x))).all()
    x[0, 2] = constant / 2 + 1e90
    assert np.isfinite(made.predict_many(Batch(x))).all()


@pytest.mark.parametrize("kind", ["pcr", "hpcr"])
def test_while_the_buffer_is_empty_pcr_stores_and_learns_nothing(kind: str) -> None:
    """As in the paper; the others learn from what comes in."""
    made = learner(kind, step_rows=20)
    made.learn_many(rows(20, 1))
    fresh = learner(kind, step_rows=20)
    assert len(made.buffer) == 20 and made.steps == 1
    assert torch.equal(made.network.weights["body.0.weight"], fresh.network.weights["body.0.weight"])
    other = learner("er", step_rows=20)
    other.learn_many(rows(20, 1))
    assert not torch.equal(other.network.weights["body.0.weight"], fresh.network.weights["body.0.weight"])


def test_after_every_stored_row_was_deleted_learning_goes_on() -> None:
    """An empty buffer is no error later either."""
    made = learner("derpp")
    made.learn_many(replace(rows(60, 1), key=np.full(60, b"k", dtype=object)))
    assert forget_keys(made, {b"k"}) == 25 and len(made.buffer) == 0
    made.learn_many(rows(60, 2))
    assert made.rows == 120 and made.skipped == 0


def test_pixels_are_kept_in_one_byte_and_what_is_beyond_is_the_nearest() -> None:
    """From the buffer to the checkpoint; nothing warms up, since the scale is known."""
    made = learner("er", pixels=True, step_rows=4, d=6)
    made.learn_many(Batch(np.array([[-5.0, 0.4, 0.6, 254.5, 255.4, 999.0]] * 5), CLASSES[[0, 1, 0, 1, 0]]))
    assert made.buffer.columns["x"].dtype == torch.uint8 and made.waiting["x"].dtype == np.uint8
    assert made.buffer.columns["x"][0].tolist() == [0, 0, 1, 254, 255, 255]
    stored = made.state_dict().truth["buffer.x"]
    assert stored.dtype == np.uint8 and stored.shape == (4, 6)
    beyond, nearest = np.array([[-5.0, 0.4, 0.6, 254.5, 255.4, 999.0]]), np.array([[0.0, 0, 1, 254, 255, 255]])
    assert np.array_equal(made.predict_many(Batch(beyond)), made.predict_many(Batch(nearest)))


@pytest.mark.parametrize("config", [{}, {"network": "resnet18", "image": (1, 2, 3), "channels": 2, "ema": 0.5}])
def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(config: dict[str, object]) -> None:
    """Weights, running statistics and answers stay finite at a rate far too large."""
    made = learner("er", rate=1e30, **config)
    made.learn_many(rows(200, 1))
    assert made.skipped > 0 and all(bool(tensor.isfinite().all()) for tensor in made.network.tensors.values())
    assert np.isfinite(made.predict_many(ASKED)).all()


@pytest.mark.parametrize("cuts", [[150], [1], [7, 20]])
def test_what_a_network_learns_otherwise_than_it_came_is_counted_by_feature(cuts: list[int]) -> None:
    """Beyond 10,000 deviations of the first rows, by NumPy; heavy rows; however the rows are cut, and after a restart."""
    batch = rows(150, 1)
    batch.x[[40, 70, 149], [2, 2, 5]] = [9.97e36, -1e30, 1e9]
    weight = np.where(np.arange(150) % 50 == 49, 1e5, 1.0)
    made = taught_in("er-ace", cuts, replace(batch, weight=weight))
    first = batch.x[:20]
    beyond = (np.abs(batch.x - first.mean(axis=0)) > 1e4 * first.std(axis=0)).sum(axis=0)
    assert beyond.tolist() == [0, 0, 2, 0, 0, 1]
    again = learner("er-ace")
    again.load_state_dict(made.state_dict())
    for model in (made, again):
        assert model.noticed()["clipped"] == {2: 2, 5: 1} and model.noticed()["clipped_weights"] == 3


def test_pixels_that_are_not_whole_or_not_within_a_byte_are_counted() -> None:
    """So pixels from 0 to 1, of which nothing would be left, are named; rows that are left out are not counted."""
    made = learner("er", pixels=True, classes=("a", "b"))
    x = np.array([[-5.0, 0.4, 0.6, 254.5, 255.4, 999.0], [0.0, 1.0, 2.0, 0.5, 255.0, 256.0], [0.5] * 6])
    made.learn_many(Batch(x, np.array(["a", "b", "unknown"], dtype=object)))
    whole = np.rint(x[:2])
    rounded, clipped = (whole != x[:2]).sum(axis=0), ((whole < 0) | (whole > 255)).sum(axis=0)
    assert made.noticed()["rounded"] == {at: int(rounded[at]) for at in np.flatnonzero(rounded)} and rounded.sum() == 5
    assert made.noticed()["clipped"] == {0: 1, 5: 2} == {at: int(clipped[at]) for at in np.flatnonzero(clipped)}
