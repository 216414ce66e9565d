"""river's models answer through the adapter as they do by themselves, and nothing that cannot be saved is let in."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from broken import D
from cases import asked, classes, values
from pipelines import TIMEOUT_S
from river.multiclass import OneVsRestClassifier
from river.optim import SGD

from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.protocol import Batch, State
from millrace.learners.river_adapter import MODELS, STEPPED, WEIGHED, River, RiverConfig, described, restored
from millrace.learners.table import LEARNERS
from millrace.streams.parts import pack, unpack

ROWS = np.random.default_rng(5).normal(size=(40, D))


def config(name: str, **settings) -> RiverConfig:
    """A model's config."""
    return RiverConfig(name, task="regress" if MODELS[name] == "number" else "classify", **settings)


def theirs(name: str, **params):
    """river's own model."""
    module, kind = name.split(".")
    return getattr(import_module(f"river.{module}"), kind)(**params)


@pytest.mark.parametrize("name", [name for name, tells in MODELS.items() if tells != "number"])
def test_class_scores_are_those_of_river(name) -> None:
    """Bit for bit: its own probabilities where it tells all classes apart, else those of its one-against-the-rest."""
    ours, own = River(config(name), D, 0), theirs(name)
    own = own if MODELS[name] == "all" else OneVsRestClassifier(own)
    for seed in (0, 1):
        batch = classes(seed)
        ours.learn_many(Batch(batch.x, batch.y))
        for row, label in zip(batch.x.tolist(), batch.y, strict=True):
            own.learn_one(dict(enumerate(row)), label)
    names = ours.servable().classes
    assert set(names) == {"a", "b", "c", "d"}
    for row, scores in zip(ROWS.tolist(), ours.predict_many(Batch(ROWS)), strict=True):
        x = dict(enumerate(row))
        if MODELS[name] == "all":
            probabilities = own.predict_proba_one(x)
            assert scores.tolist() == [probabilities[label] for label in names]
        else:
            assert scores.tolist() == [own.classifiers[label].predict_proba_one(x)[True] for label in names]


@pytest.mark.parametrize("name", [name for name, tells in MODELS.items() if tells == "number"])
def test_values_are_those_of_river(name) -> None:
    """One model an output."""
    ours, batch = River(config(name), D, 0), values(0)
    ours.learn_many(batch)
    for output in range(2):
        own = theirs(name)
        for row, value in zip(batch.x.tolist(), batch.y[:, output].tolist(), strict=True):
            own.learn_one(dict(enumerate(row)), value)
        expected = [own.predict_one(dict(enumerate(row))) for row in ROWS.tolist()]
        assert ours.predict_many(Batch(ROWS))[:, output].tolist() == expected


def test_parameters_learning_rate_and_weights_reach_river() -> None:
    """By river's own names."""
    name, batch = "linear_model.LogisticRegression", classes(0)
    ours = River(config(name, params={"l2": 0.1}, learning_rate=0.5), D, 0)
    ours.learn_many(batch)
    own = theirs(name, l2=0.1, optimizer=SGD(0.5))
    first = ours.servable().classes[0]
    for row, label, weight in zip(batch.x.tolist(), batch.y, batch.weight.tolist(), strict=True):
        own.learn_one(dict(enumerate(row)), label == first, w=weight)
    assert ours.predict_many(Batch(ROWS))[:, 0].tolist() == [
        own.predict_proba_one(dict(enumerate(row)))[True] for row in ROWS.tolist()
    ]
    for rate in (name for name in MODELS if name not in STEPPED):
        with pytest.raises(ValueError, match="learning_rate"):
            config(rate, learning_rate=0.1)
    with pytest.raises(LearnerError, match="does not take params"):
        River(config(name, params={"wings": 2}), D, 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_state_goes_through_its_bytes_and_on_as_before(name) -> None:
    """What is packed is all there is: the learner made from it goes on bit for bit, and packs to the same bytes."""
    lessons = values if MODELS[name] == "number" else lambda seed: Batch(classes(seed).x, classes(seed).y)
    first, second = River(config(name), D, 0), River(config(name), D, 0)
    first.learn_many(lessons(0))
    blob = pack(first.state_dict().truth)
    second.load_state_dict(State(unpack(blob, "here"), {}))
    assert pack(second.state_dict().truth) == blob
    for seed in (1, 2):
        first.learn_many(lessons(seed))
        second.learn_many(lessons(seed))
    assert pack(first.state_dict().truth) == pack(second.state_dict().truth)
    served = LEARNERS["river"].servable(unpack(pack(first.servable().arrays()), "here"))
    assert np.array_equal(asked(served), asked(first))


def kinds(thing) -> list[str]:
    """The class of every number in a model, in the order of its attributes and keys."""
    if isinstance(thing, float):
        return [type(thing).__name__]
    if isinstance(thing, list | tuple):
        return [kind for item in thing for kind in kinds(item)]
    if isinstance(thing, dict):
        return kinds(list(thing.values()))
    return kinds(vars(thing)) if type(thing).__module__.startswith("river.") and hasattr(thing, "__dict__") else []


@pytest.mark.parametrize("name", MODELS)
def test_a_restored_model_holds_numbers_of_the_classes_that_a_live_one_does(name) -> None:
    """From 3.12 on Python's sum rounds its own floats otherwise than NumPy's, so the two would not go on alike."""
    lessons = values if MODELS[name] == "number" else lambda seed: Batch(classes(seed).x, classes(seed).y)
    first = River(config(name), D, 0)
    first.learn_many(lessons(0))
    trees, floats = described(first._models)
    assert kinds(restored(first.config, trees, floats)) == kinds(first._models)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("learn_intercept", [True, False])
def test_a_regressor_resumed_after_every_row_is_the_one_that_was_not(mode: int, learn_intercept: bool) -> None:
    """Over many features, whose products a sum rounds again and again; and it is river's own, bit for bit."""
    chance = np.random.default_rng(mode)
    x, y = chance.normal(size=(60, 30)), chance.normal(size=(60, 1))
    settings = config("linear_model.PARegressor", params={"mode": mode, "learn_intercept": learn_intercept})
    whole, own = River(settings, 30, 0), theirs("linear_model.PARegressor", mode=mode, learn_intercept=learn_intercept)
    parts = River(settings, 30, 0)
    for at in range(60):
        resumed = River(settings, 30, 0)
        resumed.load_state_dict(State(unpack(pack(parts.state_dict().truth), "here"), {}))
        parts = resumed
        for learner in (whole, parts):
            learner.learn_many(Batch(x[at : at + 1], y[at : at + 1]))
        own.learn_one(dict(enumerate(x[at].tolist())), y[at, 0].item())
        assert pack(parts.state_dict().truth) == pack(whole.state_dict().truth)
    assert parts.predict_many(Batch(x))[:, 0].tolist() == [own.predict_one(dict(enumerate(row))) for row in x.tolist()]


HASH = """
import hashlib, numpy as np, sys
sys.path[:0] = {paths!r}
from broken import D
from cases import classes
from millrace.learners.protocol import Batch
from millrace.learners.river_adapter import MODELS, River, RiverConfig
from millrace.streams.parts import pack
digest = hashlib.sha256()
for name in (name for name, tells in MODELS.items() if tells != "number"):
    river = River(RiverConfig(name), D, 0)
    for seed in (0, 1):
        river.learn_many(Batch(classes(seed).x, classes(seed).y))
    digest.update(pack(river.state_dict().truth))
print(digest.hexdigest())
"""


def test_another_process_learns_the_same_bytes(tmp_path) -> None:
    """Whatever its hash seed is: `verify` compares hashes of states between processes."""
    paths = [path for path in sys.path if path]
    digests = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", HASH.format(paths=paths)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def test_models_that_cannot_be_saved_are_refused_by_name_with_those_that_can() -> None:
    """In the pipeline file, before anything is learned."""
    for name in (
        "tree.HoeffdingTreeClassifier",
        "forest.ARFClassifier",
        "linear_model.LinearRegression",
        "os.system",
        "nonsense",
    ):
        with pytest.raises(ValueError, match=r"for classify there are .*naive_bayes\.GaussianNB"):
            RiverConfig(name)
    with pytest.raises(ValueError, match=r"for regress there are .*LinearRegression"):
        RiverConfig("naive_bayes.GaussianNB", task="regress")


def test_a_part_of_a_state_that_nobody_vouched_for_is_refused() -> None:
    """So a river that keeps something new in a model is noticed, and never saved by half."""
    model = theirs("naive_bayes.GaussianNB")
    described([model])
    model.something_new = {1, 2}
    with pytest.raises(LearnerError, match=r"a builtins\.set in it cannot be saved"):
        described([model])


def test_a_damaged_state_is_refused() -> None:
    """Floats that are missing, trees of another model."""
    model = theirs("linear_model.LogisticRegression")
    model.learn_one({0: 1.0}, True)
    trees, floats = described([model])
    with pytest.raises(LearnerError, match="restore it into one like it"):
        restored(config("linear_model.LogisticRegression"), trees, floats[:-1])
    with pytest.raises(LearnerError, match="restore it into one like it"):
        restored(config("naive_bayes.GaussianNB"), trees, floats)
    river = River(config("naive_bayes.GaussianNB"), D, 0)
    with pytest.raises(LearnerError, match="this state is of"):
        river.load_state_dict(River(config("naive_bayes.BernoulliNB"), D, 0).state_dict())


def test_weights_are_refused_where_a_model_has_none_and_runaway_numbers_stop() -> None:
    """0 leaves a row out, 1 is a row; steps far too large end in words."""
    batch = classes(0)
    for name in MODELS:
        if MODELS[name] == "number" or name in WEIGHED:
            continue
        with pytest.raises(BadInputError, match="takes no weights"):
            River(config(name), D, 0).learn_many(batch)
        some, few = River(config(name), D, 0), River(config(name), D, 0)
        kept = np.arange(len(batch)) % 2 == 0
        some.learn_many(Batch(batch.x, batch.y, weight=kept.astype(float)))
        few.learn_many(Batch(batch.x[kept], batch.y[kept]))
        assert np.array_equal(asked(some), asked(few))
    river = River(config("linear_model.LinearRegression", learning_rate=1e250), D, 0)
    with pytest.raises(LearnerError, match="scale the features"):
        river.learn_many(Batch(values(0).x * 1e90, values(0).y))
