"""river's models as learners: those whose whole state is numbers and names, saved without pickle and resumed exactly.

A model that tells two classes apart is trained once a class against the rest, from the class's first row on, as river's
OneVsRestClassifier does. A model of one number is trained once an output. Rows are learned one after the other.

A state is the model's object graph, walked attribute by attribute. It has numbers, texts, lists, dictionaries in their order,
arrays, and objects of the few classes in ``PARTS``. What never changes as a model learns (losses, initialisers, functions)
comes from a fresh model. Anything else is refused by name, so a new release of river cannot lose a part of the state silently.

Source: river 0.26. The models of ``MODELS`` pass the learner contract. Others break it: trees and forests grow without bound,
neighbours hold graphs of their rows, MultinomialNB and ComplementNB fail on a negative number; the answers of
BayesianLinearRegression depend on how its matrices lie in memory.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np

from millrace.learners.declaration import declared
from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.linear.servable import finite
from millrace.learners.protocol import Array, Batch, Floats, Scaling, State, Value

MODELS: dict[str, Literal["one", "all", "number"]] = {  # what a model tells: one class from the rest, all classes, a number
    "linear_model.ALMAClassifier": "one",
    "linear_model.AdPredictor": "one",
    "linear_model.LinearRegression": "number",
    "linear_model.LogisticRegression": "one",
    "linear_model.PAClassifier": "one",
    "linear_model.PARegressor": "number",
    "linear_model.Perceptron": "one",
    "linear_model.SoftmaxRegression": "all",
    "dummy.PriorClassifier": "all",
    "naive_bayes.BernoulliNB": "all",
    "naive_bayes.GaussianNB": "all",
}
WEIGHED = {"linear_model.LinearRegression", "linear_model.LogisticRegression", "linear_model.Perceptron"}  # take a row's weight
STEPPED = {*WEIGHED, "linear_model.SoftmaxRegression"} - {"linear_model.Perceptron"}  # take an optimiser
PARTS = {  # classes of which a state may hold objects, beside the model's own
    "river.optim.schedulers.Constant",
    "river.optim.sgd.SGD",
    "river.proba.gaussian.Gaussian",
    "river.stats.mean.Mean",
    "river.stats.var.Var",
}
FIXED = ("river.optim.losses.", "river.optim.initializers.", "random.Random", "builtins.method")  # never change by learning
VECTOR = "river._river_rust.vectordict.VectorDict"
NUMPY = {"linear_model.PARegressor": ("weights", "intercept")}  # attributes whose numbers are NumPy's once it has learned
FAILS = (ArithmeticError, ValueError)  # what a model raises whose numbers have run away

Param = bool | int | float | str
Tree = Any  # what JSON can say; floats stand apart, in the order of the walk


@dataclass(frozen=True, slots=True)
class RiverConfig:
    """One of river's models, with its own parameters."""

    model: str  # which of river's models, such as linear_model.LogisticRegression
    params: dict[str, Param] = field(default_factory=dict)  # arguments of the model's constructor, by river's own names
    learning_rate: float = 0.0  # >= 0, of models that take steps; more learns faster and forgets faster; 0: river's own
    task: Literal["classify", "regress"] = "classify"  # as the label's type says

    def __post_init__(self) -> None:
        """Refuse models that are not offered."""
        offered = [name for name, output in MODELS.items() if (output == "number") == (self.task == "regress")]
        if self.model not in offered:
            raise ValueError(f"model = {self.model!r}: for {self.task} there are {', '.join(offered)}")
        if not 0.0 <= self.learning_rate < float("inf") or (self.learning_rate and self.model not in STEPPED):
            raise ValueError(f"learning_rate = {self.learning_rate}: at least 0, for {', '.join(sorted(STEPPED))}")


def scaling_of(config: RiverConfig) -> Scaling:
    """Linear models take steps whose size goes by a feature's unit; the others look at each feature alone."""
    return "standardise" if config.model.startswith("linear_model.") else "none"


def _fresh(config: RiverConfig) -> Any:
    """An untaught model. Raises: LearnerError where river does not take the parameters."""
    module, name = config.model.split(".")
    steps = {"optimizer": import_module("river.optim").SGD(config.learning_rate)} if config.learning_rate else {}
    try:
        return getattr(import_module(f"river.{module}"), name)(**config.params, **steps)
    except (TypeError, ValueError) as error:
        raise LearnerError(f"river's {config.model} does not take params = {config.params} ({error}).") from error


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_fixed(value: Any) -> bool:
    return _class_of(value).startswith(FIXED)


class _Walk:
    """A model's state on its way into a tree, and its floats."""

    def __init__(self, model: str) -> None:
        self._parts = PARTS | {model}
        self.floats: list[float] = []

    def tree(self, value: Any) -> Tree:
        """What JSON can say of a part of a state. Raises: LearnerError naming a class that is not known to be complete."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            self.floats.append(float(value))
            return ["float"]
        if isinstance(value, np.ndarray):
            self.floats += value.astype(np.float64).ravel().tolist()
            return ["array", list(value.shape)]
        if isinstance(value, list | tuple):
            return ["list", [self.tree(item) for item in value]]
        if isinstance(value, dict) or _class_of(value) == VECTOR:
            return ["dict", [[self.tree(key), self.tree(value)] for key, value in value.items()]]
        if _is_fixed(value):
            return ["fixed"]
        if _class_of(value) not in self._parts:
            raise LearnerError(f"A state with a {_class_of(value)} in it cannot be saved without pickle.")
        return ["object", [[name, self.tree(value)] for name, value in vars(value).items()]]


class _Return:
    """The way back: a tree and its floats into a fresh model."""

    def __init__(self, floats: Iterator[float]) -> None:
        self._floats = floats

    def into(self, old: Any, tree: Tree) -> Any:
        """What the tree says, in the place of ``old``, which a fresh model has there."""
        if not isinstance(tree, list):
            return tree
        if tree[0] == "float":
            return next(self._floats)
        if tree[0] == "array":
            return np.array([next(self._floats) for _ in range(int(np.prod(tree[1])))]).reshape(tree[1])
        if tree[0] == "list":
            return type(old)(self.into(None, item) for item in tree[1])
        if tree[0] == "dict":
            return self._dictionary(old, tree[1])
        if tree[0] == "object":
            for name, value in tree[1]:
                setattr(old, name, self.into(getattr(old, name), value))
        return old

    def _dictionary(self, old: Any, pairs: list[list[Tree]]) -> Any:
        """The same keys in the same order, in a dictionary of the same kind; what a new key holds its own factory says."""
        restored = copy(old)
        restored.clear()
        make = old.default_factory if isinstance(old, defaultdict) else None
        for key_tree, value in pairs:
            key = self.into(None, key_tree)
            restored[key] = self.into(None if make is None else make(), value)
        return restored


def described(models: Sequence[Any]) -> tuple[list[Tree], Floats]:
    """The trees of models, and all their floats in one array. Raises: LearnerError where one cannot be saved."""
    floats, trees = list[float](), []
    for model in models:
        walk = _Walk(_class_of(model))
        trees.append(walk.tree(model))
        floats += walk.floats
    numbers = np.array(floats, dtype=np.float64)
    numbers.flags.writeable = False
    return trees, numbers


def restored(config: RiverConfig, trees: Sequence[Tree], floats: Floats) -> list[Any]:
    """The models that ``described`` was given. Raises: LearnerError where trees and floats are not of such models."""
    values = iter(floats.tolist())
    try:
        return [_in_numpy(config.model, _Return(values).into(_fresh(config), tree)) for tree in trees]
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise LearnerError(f"this state is not of river's {config.model} ({error!r}); restore it into one like it") from error


def _in_numpy(name: str, model: Any) -> Any:
    """The model with NumPy's numbers where a live one has them: Python's ``sum`` rounds its own otherwise from 3.12 on."""
    for attribute in NUMPY.get(name, ()):
        held = getattr(model, attribute)
        if isinstance(held, dict):
            held.update({key: np.float64(value) for key, value in held.items()})
        else:
            setattr(model, attribute, np.float64(held))
    return model


class RiverServable:
    """Models that answer, and are taught no more."""

    def __init__(self, config: RiverConfig, d: int, classes: tuple[str, ...], state: tuple[list[Tree], Floats]) -> None:
        self._config, self._d, self._state = config, d, state
        self.classes = classes
        self._models = restored(config, *state)
        self._asking = threading.Lock()  # some fill their tables as they are asked

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C), or values (n, k). Raises: BadInputError where ``batch.x`` is not finite numbers (n, d)."""
        rows = finite("x", batch.x, (self._d,)).tolist()
        with self._asking:
            answers = [self._answer(dict(enumerate(row))) for row in rows]
        columns = len(self.classes) if self._config.task == "classify" else max(1, len(self._models))
        return np.array(answers, dtype=np.float64).reshape(len(rows), columns)

    def _answer(self, x: dict[int, float]) -> list[float]:
        output = MODELS[self._config.model]
        if output == "number":
            return [model.predict_one(x) for model in self._models] or [0.0]
        if output == "one":
            return [model.predict_proba_one(x).get(True, 0.0) for model in self._models]
        probabilities = self._models[0].predict_proba_one(x) if self.classes else {}
        return [probabilities.get(name, 0.0) for name in self.classes]

    def arrays(self) -> dict[str, Value]:
        """Everything ``from_arrays`` needs."""
        trees, floats = self._state
        return {
            "classes": list(self.classes),
            "config": declared(self._config),
            "d": self._d,
            "trees": trees,
            "floats": floats,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, Value]) -> RiverServable:
        """The servable that gave ``arrays``."""
        state = list(arrays["trees"]), np.array(arrays["floats"], dtype=np.float64)
        state[1].flags.writeable = False
        return cls(RiverConfig(**arrays["config"]), int(arrays["d"]), tuple(arrays["classes"]), state)


class River:
    """One of river's models.

    >>> river = River(RiverConfig("naive_bayes.GaussianNB"), d=1, seed=0)
    >>> names = np.array(["low", "low", "high", "high"], dtype=object)
    >>> river.learn_many(Batch(np.array([[0.0], [1.0], [4.0], [5.0]]), names))
    >>> river.predict_many(Batch(np.array([[0.5], [4.5]]))).argmax(axis=1)
    array([0, 1])
    """

    revision: int = 1
    tolerance: float = 1e-9

    def __init__(self, config: RiverConfig, d: int, seed: int) -> None:
        """An untaught model over ``d`` >= 1 features; none of those offered draws by chance, so ``seed`` says nothing."""
        self.config = config
        self.d = d
        self.probabilities = MODELS[config.model] == "all"
        self.rows = 0
        self._classes: dict[str, int] = {}  # name -> column, in order of first appearance
        model = _fresh(config)  # made in any case, for river to look at the parameters
        self._models: list[Any] = [model] if self.probabilities else []
        self._picture()

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows, one after the other.

        Raises: BadInputError where columns do not fit (nothing is learned then); LearnerError where its numbers ran away.
        """
        x, y, weight = self._checked(batch)
        try:
            for row, label, heavy in zip(x.tolist(), y.tolist(), weight, strict=True):
                if heavy:
                    self._learn(dict(enumerate(row)), label, heavy)
        except FAILS as error:
            raise LearnerError(f"river's {self.config.model} failed on a row ({error!r}); scale the features.") from error
        self.rows += len(x)
        self._picture()
        if not np.isfinite(self._state[1]).all():
            raise LearnerError(
                f"The numbers of river's {self.config.model} ran away; scale the features or lower learning_rate."
            )

    def _learn(self, x: dict[int, float], label: Any, weight: float) -> None:
        """One row: by the one model that tells all, or by each of those that tell one."""
        weight_argument = {"w": weight} if self.config.model in WEIGHED else {}
        if self.config.task == "regress":
            self._models += [_fresh(self.config) for _ in range(len(label) - len(self._models))]
            for model, value in zip(self._models, label, strict=True):
                model.learn_one(x, value, **weight_argument)
            return
        self._classes.setdefault(label, len(self._classes))
        if self.probabilities:
            self._models[0].learn_one(x, label)
            return
        if len(self._models) < len(self._classes):
            self._models.append(_fresh(self.config))
        for name, model in zip(self._classes, self._models, strict=True):
            model.learn_one(x, name == label, **weight_argument)

    def _checked(self, batch: Batch) -> tuple[Floats, Array, list[float]]:
        """x (n, d), y (n,) names or (n, k) numbers, and each row's weight. Raises: BadInputError."""
        x = finite("x", batch.x, (self.d,))
        if batch.y is None or batch.y.shape[:1] != x.shape[:1]:
            raise BadInputError(f"column y: expected {len(x)} labels, got {None if batch.y is None else batch.y.shape}")
        y = batch.y
        if self.config.task == "regress":
            y = y[:, None] if y.ndim == 1 else y
            y = finite("y", y, (len(self._models) or y.shape[1],))
        elif y.ndim != 1 or not all(isinstance(name, str) for name in y):
            raise BadInputError(f"column y: expected class names (n,), got {y.dtype} {y.shape}")
        weight = np.ones(len(x)) if batch.weight is None else finite("weight", batch.weight, ())
        weights_valid = self.config.model in WEIGHED or np.isin(weight, (0.0, 1.0)).all()
        if len(weight) != len(x) or weight.min(initial=0.0) < 0.0 or not weights_valid:
            kind = "numbers >= 0" if self.config.model in WEIGHED else "0 or 1, for this model takes no weights"
            raise BadInputError(f"column weight: expected {len(x)} of {kind}")
        return x, y, weight.tolist()

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) in the order of ``servable().classes``, or values (n, k). Raises: as the servable does."""
        return self._servable.predict_many(batch)

    def servable(self) -> RiverServable:
        """What answers now."""
        return self._servable

    def state_dict(self) -> State:
        """A copy of everything."""
        trees, floats = self._state
        truth = {"classes": list(self._classes), "rows": self.rows, "trees": trees, "floats": floats.copy()}
        return State({**self._shape(), **truth}, {})

    def load_state_dict(self, state: State) -> None:
        """Become the model that gave ``state``. Raises: LearnerError where it is another's."""
        truth = state.truth_of(self._shape())
        self._models = restored(self.config, truth["trees"], truth["floats"])
        self._classes = {name: column for column, name in enumerate(truth["classes"])}
        self.rows = truth["rows"]
        self._picture()

    def _shape(self) -> dict[str, Value]:
        """What a state must agree on with its learner."""
        return {"kind": "river", "d": self.d, "config": declared(self.config)}

    def _picture(self) -> None:
        """Keep the state as it is now, and answer by a copy made from it: asking never touches what learns."""
        self._state = described(self._models)
        self._servable = RiverServable(self.config, self.d, tuple(self._classes), self._state)
