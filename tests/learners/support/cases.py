"""Every learner in the variants that the contract is run on, the lessons it is taught, and the questions it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tiny_draft
from broken import D

from millrace.learners.memory.config import MemoryConfig, Remembering
from millrace.learners.protocol import Array, Batch, Learner
from millrace.learners.river_adapter import MODELS, WEIGHED, RiverConfig
from millrace.learners.table import LEARNERS, algorithm_of

ROWS = 48  # rows of a lesson in the suite
SOLVE_ROWS = 20  # falls inside lessons, and on the end of every fifth

Make = Callable[[], Learner]
Lessons = Callable[[int], Batch]  # seed -> the same labelled batch whenever it is called, in arrays of its own
Promise = Callable[[Make, Lessons], None]


def ridge(kind: str = "ridge", **config: Any) -> Make:
    """Makes a learner of the analytic family with this config."""
    algorithm = LEARNERS[kind]
    return lambda: algorithm.learner(algorithm.config(solve_rows=SOLVE_ROWS, **config), D, 3)


def stepping(**config: Any) -> Make:
    """Makes a softmax regression of the table with this config; its steps fit neither lessons nor batches."""
    algorithm = LEARNERS["softmax"]
    return lambda: algorithm.learner(algorithm.config(step_rows=7, warm_up_rows=100, **config), D, 3)


def network(kind: str, **config: Any) -> Make:
    """Makes a small network of the table with this config."""
    algorithm = LEARNERS[kind]
    small = {"warm_up_rows": 30, "step_rows": 13}
    small |= {"units": 5, "teacher_units": 9, "outputs": 4} if kind == "pec" else {"hidden": (8,), "buffer_rows": 25}
    return lambda: algorithm.learner(algorithm.config(**small | config), D, 3)


def as_it_comes(kind: str) -> Make:
    """Makes a learner of the table with the defaults of its config."""
    return lambda: LEARNERS[kind].learner(LEARNERS[kind].config(), D, 3)


def classes(seed: int) -> Batch:
    """Rows of four classes with weights; the fourth is first seen in the batch of seed 1."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4 if seed else 3, ROWS)
    x = rng.normal(size=(ROWS, D)) + 3.0 * np.eye(4, D)[label]
    return Batch(x, np.array(["a", "b", "c", "d"], dtype=object)[label], weight=rng.uniform(0.5, 2.0, ROWS))


def values(seed: int) -> Batch:
    """Rows with two outputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, D))
    return Batch(x, x[:, :2] * 3.0 + rng.normal(size=(ROWS, 2)))


def unweighed(seed: int) -> Batch:
    """The classes without weights."""
    return replace(classes(seed), weight=None)


def draft(**config: Any) -> Make:
    """Makes a tiny draft; its steps fit neither lessons nor batches, and its buffers are full after a lesson."""
    small = {"step_completions": 31, "updates": 1, "draws": 8, "ring_tokens": 200, "reservoir_tokens": 150, "rate": 0.01}
    keys = small | {"start": tiny_draft.start()} | config
    return lambda: LEARNERS["draft"].learner(LEARNERS["draft"].config(**keys), D, 3)


def completions(seed: int) -> Batch:
    """Completions of two domains with weights."""
    return tiny_draft.lesson(seed, ROWS, D)


def river(name: str) -> Make:
    """Makes one of river's models."""
    config = RiverConfig(name, task="regress" if MODELS[name] == "number" else "classify")
    return lambda: LEARNERS["river"].learner(config, D, 3)


def lessons_of(name: str) -> Lessons:
    """What such a model can be taught."""
    return values if MODELS[name] == "number" else classes if name in WEIGHED else unweighed


CASES: dict[str, tuple[Make, Lessons]] = {
    "ridge": (ridge(), classes),
    "ridge, forgetting": (ridge(decay=0.99), classes),
    "ridge, expanded": (ridge(expand=20), classes),
    "ridge, regression": (ridge(task="regress"), values),
    "ridge, expanded regression that forgets": (ridge(task="regress", decay=0.98, expand=20), values),
    "softmax": (stepping(), classes),
    "softmax, penalised": (stepping(l2=0.01, rate=0.5), classes),
    "aef-ocl": (ridge("aef-ocl"), classes),
    "aef-ocl, expanded, forgetting, towards a prior": (ridge("aef-ocl", expand=20, decay=0.99, prior={"a": 0.7}), classes),
    "air": (ridge("air"), classes),
    "air, expanded, forgetting, towards a prior": (ridge("air", expand=20, decay=0.99, prior={"a": 0.7}), classes),
    "aef-ocl, solved behind": (ridge("aef-ocl", solve_behind=True, expand=20, decay=0.99), classes),
    "air, solved behind": (ridge("air", solve_behind=True, expand=20, decay=0.99), classes),
    "slda": (ridge("slda"), classes),
    "slda, expanded, forgetting": (ridge("slda", expand=20, decay=0.99, prior="as-seen"), classes),
    "ncm": (ridge("ncm"), classes),
    "ncm, by angle, forgetting": (ridge("ncm", distance="cosine", decay=0.99), classes),
    "er": (network("er"), classes),
    "er, averaged": (network("er", ema=0.9, momentum=0.9, weight_decay=1e-3), classes),
    "er, convolutions": (network("er", network="convnet", image=(1, 2, 3), channels=2), classes),
    "er, residual": (network("er", network="resnet18", image=(1, 2, 3), channels=2, step_rows=24, ema=0.9), classes),
    "er-ace": (network("er-ace", rate=0.02), classes),
    "derpp": (network("derpp"), classes),
    "uer": (network("uer", classes=("d", "c", "b", "a", "never seen")), classes),
    "pcr": (network("pcr", optimiser="adam", rate=0.01), classes),
    "hpcr": (network("hpcr", pair_rows=8, distil_rows=40, period_steps=10), classes),
    "onpro": (network("onpro", image=(1, 2, 3), replay_rows=9, projection=6), classes),
    "pec": (network("pec"), classes),
    "draft": (draft(), completions),
    "draft, as the paper has it": (draft(draws=0, positions="osd-published"), completions),
}
CASES |= {f"river, {name.partition('.')[2]}": (river(name), lessons_of(name)) for name in MODELS}
VARIED = {case.partition(",")[0] for case in CASES}
OF_ROWS = [kind for kind, algorithm in LEARNERS.items() if not algorithm.distils]  # which an error memory can stand around
CASES |= {kind: (as_it_comes(kind), classes) for kind in LEARNERS if kind not in VARIED}  # a learner that was just added
MEMORY = {"rows": 100, "near": 20, "warm_up_rows": 30, "step_rows": 8, "arrays": 12}  # full after a few lessons
KEYS: dict[str, dict[str, Any]] = {
    "softmax": {"step_rows": 7, "warm_up_rows": 100},
    "pec": {"warm_up_rows": 30, "step_rows": 13, "units": 5, "teacher_units": 9, "outputs": 4},
    "river": {"model": "linear_model.LogisticRegression"},
}


def config_of(kind: str, **config: Any) -> Any:
    """The small config of a learner that has a memory around it."""
    small = (
        {"warm_up_rows": 30, "step_rows": 13, "hidden": (8,), "buffer_rows": 25}
        if LEARNERS[kind].needs
        else {"solve_rows": SOLVE_ROWS}
    )
    return LEARNERS[kind].config(**KEYS.get(kind, small) | config)


def remembering(kind: str, memory: dict[str, Any], **config: Any) -> Make:
    """Makes a learner of the table with an error memory around it."""
    algorithm, both = algorithm_of(f"{kind}+memory"), Remembering(config_of(kind, **config), MemoryConfig(**MEMORY | memory))
    return lambda: algorithm.learner(both, D, 3)


CASES |= {f"{kind}+memory": (remembering(kind, {}), unweighed if kind == "river" else classes) for kind in OF_ROWS}
CASES |= {
    "ridge+memory, sketch": (remembering("ridge", {"form": "sketch"}), classes),
    "ridge+memory, of numbers": (remembering("ridge", {"strength": 0.5}, task="regress"), values),
    "ridge+memory, of numbers, sketch": (remembering("ridge", {"form": "sketch", "gamma": 0.3}, task="regress"), values),
    "softmax+memory, always and by the answer": (remembering("softmax", {"strength": 0.9, "gamma": 1.0}), classes),
    "softmax+memory, sketch, half": (remembering("softmax", {"form": "sketch", "strength": 0.5, "gamma": 0.5}), classes),
    "ridge+memory, frozen": (remembering("ridge", {"freeze_base_rows": 100}), classes),
    "er+memory, sketch": (remembering("er", {"form": "sketch", "strength": 0.7}), classes),
}
QUESTIONS = np.random.default_rng(99).normal(size=(17, D))
QUESTIONED = tiny_draft.lesson(99, 17, D).sequences  # completions that a draft is asked about; others do not look at them


def asked(learner: Any) -> Array:
    """The answers to the suite's questions."""
    return np.array(learner.predict_many(questions()))


def questions() -> Batch:
    """The suite's questions."""
    return Batch(QUESTIONS.copy(), sequences=QUESTIONED)


def taught(make: Make, lessons: Lessons, *seeds: int) -> Learner:
    """A learner after some lessons."""
    learner = make()
    for seed in seeds:
        learner.learn_many(lessons(seed))
    return learner
