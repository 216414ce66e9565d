"""The machinery of the replay family: bits, bounds, bad input, classes that come and go, the average, the rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lessons import CLASSES, learner, rows

from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.protocol import Batch, State
from millrace.learners.replay import Replay
from millrace.learners.replay_forgetting import forget_class, forget_keys
from millrace.learners.table import LEARNERS
from millrace.streams.parts import pack, sha256, unpack

KINDS = [kind for kind, algorithm in LEARNERS.items() if algorithm.needs == "torch"]
ASKED = rows(9, 77)
FULL = {
    "er": {"momentum": 0.9, "ema": 0.9, "image": (1, 2, 3)},
    "hpcr": {"distil_rows": 30, "pair_rows": 5},
    "onpro": {"replay_rows": 6},
}


def blob(taught: Replay) -> bytes:
    """Everything, as the store keeps it."""
    return pack(taught.state_dict().truth)


def bits(taught: Replay) -> str:
    """A name for all of its bits."""
    return sha256(blob(taught))


def taught_in(kind: str, sizes: list[int], *batches: Batch) -> Replay:
    """A learner that learned the batches in pieces of these sizes, again and again."""
    made, piece = learner(kind, **FULL.get(kind, {})), 0
    for batch in batches:
        at = 0
        while at < len(batch):
            made.learn_many(batch.rows(at, at + sizes[piece % len(sizes)]))
            at += sizes[piece % len(sizes)]
            piece += 1
    return made


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    """The bits of each learner after 150 rows given at once: 60 of three classes, 90 of five."""
    return {kind: bits(taught_in(kind, [150], rows(60, 1), rows(90, 2, classes=5))) for kind in KINDS}


@settings(max_examples=4)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4))
@pytest.mark.parametrize("kind", KINDS)
def test_any_pieces_of_the_same_rows_give_the_same_bits(kind: str, whole: dict[str, str], sizes: list[int]) -> None:
    """Steps are cut by rows, and rows that do not fill one wait in the state."""
    assert bits(taught_in(kind, sizes, rows(60, 1), rows(90, 2, classes=5))) == whole[kind]


@settings(max_examples=6)
@given(cut=st.integers(0, 150))
@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_resumes_bit_for_bit_at_any_cut(kind: str, whole: dict[str, str], cut: int) -> None:
    """Through the bytes of a checkpoint, before the scale is frozen, inside a step, after a class came."""
    first, second = (
        Batch(np.concatenate([a.x, b.x]), np.concatenate([a.y, b.y])) for a, b in [(rows(60, 1), rows(90, 2, 5))] * 2
    )
    one = taught_in(kind, [150], first.rows(0, cut))
    other = learner(kind, **FULL.get(kind, {}))
    other.load_state_dict(State(unpack(blob(one), "here")))
    assert np.array_equal(one.predict_many(ASKED), other.predict_many(ASKED))
    other.learn_many(second.rows(cut, 150))
    assert bits(other) == whole[kind]


PARTS = ("weight.", "moment.", "average.", "statistic.", "buffer.", "waiting.", "draws", "raised", "seen", "mean", "deviation")
ABSENT = {"pec": ("statistic.", "buffer.", "waiting.", "draws")}  # the teacher is the seed's; nothing is stored, drawn or waits


def used(kind: str) -> Iterator[str]:
    """The parts of a learner's state that there are, by the first words of their names."""
    state = taught_in(kind, [150], rows(60, 1)).state_dict().truth
    there = (part for part in PARTS if any(name.startswith(part) for name in state))
    return (part for part in there if part not in ABSENT.get(kind, ()))


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in KINDS for part in used(kind)])
def test_a_twin_that_forgets_a_part_of_its_state_is_found_out(kind: str, part: str, whole: dict[str, str]) -> None:
    """So no part of the state is there for nothing, and none could be lost without a test that fails."""
    one, fresh = taught_in(kind, [150], rows(54, 1)), learner(kind, **FULL.get(kind, {}))
    one.raise_rate(3.0, 20)
    fresh.learn_many(rows(30, 3))
    fresh.raise_rate(1.0, 1)
    twin, sound, state = learner(kind, **FULL.get(kind, {})), learner(kind, **FULL.get(kind, {})), one.state_dict().truth
    sound.load_state_dict(State(state))
    kept = {name: value for name, value in state.items() if not name.startswith(part)}
    others = {name: value for name, value in fresh.state_dict().truth.items() if name.startswith(part)}
    twin.load_state_dict(State(kept | ({"seen": np.zeros(3, dtype=bool)} if part == "seen" else others)))
    answers = [resumed.servable().classes for resumed in (one, sound, twin)]
    for resumed in (one, sound, twin):
        resumed.learn_many(rows(60, 2))
    assert answers[1] == answers[0] and bits(sound) == bits(one)
    assert answers[2] != answers[0] or bits(twin) != bits(one)


@pytest.mark.parametrize(("kind", "count"), [(kind, 100 if kind == "hpcr" else 4) for kind in KINDS])
def test_the_state_does_not_grow(kind: str, count: int) -> None:
    """Bytes after 1,000 rows and after 4,000 (of the learner that stores most: 100,000) are the same but for digits."""
    made = learner(kind, hidden=(3,), step_rows=500) if kind != "pec" else learner(kind, step_rows=500)
    batch = rows(1000, 1)
    made.learn_many(batch)
    before = len(blob(made))
    for _ in range(count - 1):
        made.learn_many(batch)
    assert made.rows == 1000 * count and abs(len(blob(made)) - before) < 64


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_learner_and_another_seed_another(kind: str) -> None:
    """Bit for bit."""
    algorithm = LEARNERS[kind]
    config = learner(kind).config
    one, same, other = (algorithm.learner(config, 6, seed) for seed in (3, 3, 4))
    for made in (one, same, other):
        made.learn_many(rows(60, 1))
    assert bits(one) == bits(same) != bits(other)


@pytest.mark.parametrize("kind", KINDS)
def test_each_learner_learns(kind: str) -> None:
    """Three classes that stand apart are told apart after 600 rows, those of the first 300 among them."""
    faster = {"rate": 0.01} if kind in ("onpro", "pec") else {}
    wider = {"outputs": 10, "units": 10} if kind == "pec" else {"hidden": (16,), "buffer_rows": 60}
    made = learner(kind, **faster, **wider)
    made.learn_many(rows(300, 1, classes=2))
    made.learn_many(rows(300, 2))
    asked = rows(300, 3)
    names = np.array(made.servable().classes, dtype=object)
    assert (names[made.predict_many(asked).argmax(axis=1)] == asked.y).mean() > 0.8
    assert made.skipped == 0


# --- bad input


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_class_outside_the_declared_set_are_left_out_and_counted(kind: str) -> None:
    """As if they had not come; one bad label in a stream must not stop it."""
    declared = {"classes": ("a", "b", "c")}
    one, other = learner(kind, **declared), learner(kind, **declared)
    batch = rows(120, 1, classes=5)
    one.learn_many(batch)
    known = np.isin(batch.y, ["a", "b", "c"])
    other.learn_many(batch.only(known))
    assert one.left_out == int((~known).sum()) > 0
    assert np.array_equal(one.predict_many(ASKED), other.predict_many(ASKED))
    assert set(one.servable().classes) == {"a", "b", "c"}


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


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted() -> None:
    """The weights stay finite at a rate far too large."""
    made = learner("er", rate=1e30)
    made.learn_many(rows(200, 1))
    assert made.skipped > 0 and all(bool(weight.isfinite().all()) for weight in made.network.weights.values())


# --- scale, average, rate, state


def test_the_scale_is_taken_from_the_first_rows_and_never_again() -> None:
    """Mean and deviation of the first ``warm_up_rows`` rows in float64; until then nothing is learned or answered."""
    made, batch = learner("er", warm_up_rows=50), rows(80, 1)
    made.learn_many(batch.rows(0, 49))
    assert made.rows == 0 and made.servable().classes == () and made.predict_many(ASKED).shape == (9, 0)
    made.learn_many(batch.rows(49, 80))
    made.learn_many(replace(rows(80, 2), x=rows(80, 2).x * 100.0))
    scale = made.servable().scale
    assert scale is not None and made.rows == 160
    assert np.allclose(scale[0], batch.x[:50].mean(axis=0)) and np.allclose(scale[1], batch.x[:50].std(axis=0))


def test_far_numbers_close_together_are_told_apart() -> None:
    """Times in milliseconds are scaled in float64 before they become float32."""
    made, batch = learner("er", hidden=(16,)), rows(300, 1, classes=2)
    x = 1.7e12 + batch.x
    made.learn_many(replace(batch, x=x))
    names = np.array(made.servable().classes, dtype=object)
    assert (names[made.predict_many(Batch(x)).argmax(axis=1)] == batch.y).mean() > 0.9


def test_the_average_is_of_weights_and_running_statistics_and_begins_as_a_copy() -> None:
    """e <- m e + (1 - m) w after each step; training does not notice it."""
    config = {"network": "resnet18", "image": (1, 2, 3), "channels": 2}
    plain, averaged = learner("er", **config), learner("er", ema=0.9, **config)
    slow: dict[str, torch.Tensor] = {}
    for at in range(6):
        for made in (plain, averaged):
            made.learn_many(rows(20, at))
        assert torch.equal(plain.network.weights["body.0.conv.weight"], averaged.network.weights["body.0.conv.weight"])
    one = learner("er", ema=0.9, **config)
    one.learn_many(rows(20, 0))  # two steps
    slow = {name: tensor.clone() for name, tensor in one.average.items()}
    one.learn_many(rows(10, 1))
    for name, tensor in one.network.tensors.items():
        if name in slow and slow[name].shape == tensor.shape:
            assert torch.allclose(one.average[name], 0.9 * slow[name] + 0.1 * tensor.detach(), atol=1e-7), name
    assert "body.0.norm.mean" in one.average
    assert not np.array_equal(plain.predict_many(ASKED), averaged.predict_many(ASKED))


def test_the_rate_is_raised_for_so_many_learned_rows_and_then_as_before() -> None:
    """Exactly the learner with that rate for these rows; it goes on through a checkpoint."""
    one, other = learner("er", rate=0.05), learner("er", rate=0.2)
    start = learner("er", rate=0.05)
    start.learn_many(rows(60, 1))
    for made in (one, other):
        made.load_state_dict(start.state_dict())
    one.raise_rate(4.0, 30)
    resumed = learner("er", rate=0.05)
    resumed.load_state_dict(one.state_dict())
    for made in (one, resumed):
        made.learn_many(rows(50, 2).rows(0, 30))
    other.learn_many(rows(50, 2).rows(0, 30))
    assert bits(one) == bits(resumed)
    assert all(torch.equal(weight, other.network.weights[name]) for name, weight in one.network.weights.items())
    back = learner("er", rate=0.05)
    back.load_state_dict(other.state_dict())
    for made in (one, back):
        made.learn_many(rows(50, 2).rows(30, 50))
    assert all(torch.equal(weight, back.network.weights[name]) for name, weight in one.network.weights.items())


@pytest.mark.parametrize(("factor", "count"), [(0.0, 5), (-1.0, 5), (float("inf"), 5), (float("nan"), 5), (2.0, 0)])
def test_a_rate_that_cannot_be_meant_is_refused(factor: float, count: int) -> None:
    """With what is allowed."""
    with pytest.raises(BadInputError, match="factor"):
        learner("er").raise_rate(factor, count)


def test_a_state_of_another_learner_is_refused() -> None:
    """Another algorithm, network, optimiser or buffer."""
    state = learner("er").state_dict()
    for other in (learner("uer"), learner("er", hidden=(9,)), learner("er", momentum=0.5), learner("er", buffer_rows=9)):
        with pytest.raises(LearnerError, match="restore it into one like it"):
            other.load_state_dict(state)


def test_no_learner_knows_a_task() -> None:
    """No file of the family has a task's index: what the papers do at boundaries counts rows or steps here."""
    folder = Path(__file__).resolve().parents[2] / "learners"
    for name in ("er", "er_ace", "derpp", "uer", "pcr", "hpcr", "onpro", "pec", "replay", "lesson"):
        source = (folder / f"{name}.py").read_text()
        assert "task_id" not in source and ".task" not in source, name
