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
from training_steps import ASKED, FULL, KINDS, bits, blob, learner, rows, taught_in

from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.protocol import Batch, State
from millrace.learners.table import LEARNERS
from millrace.streams.parts import unpack


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
    until_cut = taught_in(kind, [150], first.rows(0, cut))
    other = learner(kind, **FULL.get(kind, {}))
    other.load_state_dict(State(unpack(blob(until_cut), "here")))
    assert np.array_equal(until_cut.predict_many(ASKED), other.predict_many(ASKED))
    other.learn_many(second.rows(cut, 150))
    assert bits(other) == whole[kind]


PARTS = ("weight.", "moment.", "average.", "statistic.", "buffer.", "waiting.", "draws", "raised", "seen", "mean", "deviation")
ABSENT = {"pec": ("statistic.", "buffer.", "waiting.", "draws")}  # the teacher is the seed's; nothing is stored, drawn or waits


def used(kind: str) -> Iterator[str]:
    """The parts of a learner's state that there are, by the first words of their names."""
    state = taught_in(kind, [150], rows(60, 1)).state_dict().truth
    parts = (part for part in PARTS if any(name.startswith(part) for name in state))
    return (part for part in parts if part not in ABSENT.get(kind, ()))


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in KINDS for part in used(kind)])
def test_a_twin_that_forgets_a_part_of_its_state_is_found_out(kind: str, part: str, whole: dict[str, str]) -> None:
    """So no part of the state is there for nothing, and none could be lost without a test that fails."""
    original, fresh = taught_in(kind, [150], rows(54, 1)), learner(kind, **FULL.get(kind, {}))
    original.raise_rate(3.0, 20)
    fresh.learn_many(rows(30, 3))
    fresh.raise_rate(1.0, 1)
    twin, sound, state = learner(kind, **FULL.get(kind, {})), learner(kind, **FULL.get(kind, {})), original.state_dict().truth
    sound.load_state_dict(State(state))
    kept = {name: value for name, value in state.items() if not name.startswith(part)}
    others = {name: value for name, value in fresh.state_dict().truth.items() if name.startswith(part)}
    twin.load_state_dict(State(kept | ({"seen": np.zeros(3, dtype=bool)} if part == "seen" else others)))
    answers = [resumed.servable().classes for resumed in (original, sound, twin)]
    for resumed in (original, sound, twin):
        resumed.learn_many(rows(60, 2))
    assert answers[1] == answers[0] and bits(sound) == bits(original)
    assert answers[2] != answers[0] or bits(twin) != bits(original)


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
    first, same, other = (algorithm.learner(config, 6, seed) for seed in (3, 3, 4))
    for made in (first, same, other):
        made.learn_many(rows(60, 1))
    assert bits(first) == bits(same) != bits(other)


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
    averaging = learner("er", ema=0.9, **config)
    averaging.learn_many(rows(20, 0))  # two steps
    slow = {name: tensor.clone() for name, tensor in averaging.average.items()}
    averaging.learn_many(rows(10, 1))
    for name, tensor in averaging.network.tensors.items():
        if name in slow and slow[name].shape == tensor.shape:
            assert torch.allclose(averaging.average[name], 0.9 * slow[name] + 0.1 * tensor.detach(), atol=1e-7), name
    assert "body.0.norm.mean" in averaging.average
    assert not np.array_equal(plain.predict_many(ASKED), averaged.predict_many(ASKED))


def test_the_rate_is_raised_for_so_many_learned_rows_and_then_as_before() -> None:
    """Exactly the learner with that rate for these rows; it goes on through a checkpoint."""
    raised, other = learner("er", rate=0.05), learner("er", rate=0.2)
    start = learner("er", rate=0.05)
    start.learn_many(rows(60, 1))
    for made in (raised, other):
        made.load_state_dict(start.state_dict())
    raised.raise_rate(4.0, 30)
    resumed = learner("er", rate=0.05)
    resumed.load_state_dict(raised.state_dict())
    for made in (raised, resumed):
        made.learn_many(rows(50, 2).rows(0, 30))
    other.learn_many(rows(50, 2).rows(0, 30))
    assert bits(raised) == bits(resumed)
    assert all(torch.equal(weight, other.network.weights[name]) for name, weight in raised.network.weights.items())
    back = learner("er", rate=0.05)
    back.load_state_dict(other.state_dict())
    for made in (raised, back):
        made.learn_many(rows(50, 2).rows(30, 50))
    assert all(torch.equal(weight, back.network.weights[name]) for name, weight in raised.network.weights.items())


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
    folder = Path(__file__).resolve().parents[3] / "learners" / "replay"
    for name in ("er", "er_ace", "derpp", "uer", "pcr", "hpcr", "onpro", "pec", "learner", "step"):
        source = (folder / f"{name}.py").read_text()
        assert "task_id" not in source and ".task" not in source, name
