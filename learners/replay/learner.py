"""What every learner that is a network shares; an algorithm adds its loss.

Rows are cut into gradient steps of ``step_rows`` rows; fewer wait in the state, so that the same rows in any batches give the
same learner bit for bit. Each step: the algorithm's loss over incoming and drawn rows, one step of the optimiser, then the
incoming rows are offered to the reservoir. Where rows are not pixels, the first ``warm_up_rows`` rows wait until the scale
(mean and deviation of each feature) has been taken from them and frozen. A step whose gradient is not finite is left out and
counted.

Source: docs/design/learners.md#replay; serving averages of weights and running statistics: Soutif-Cormerais
et al., "Improving Online Continual Learning Performance and Stability with Temporal Ensembles", CoLLAs 2023.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from millrace.learners.errors import BadInputError, LearnerError
from millrace.learners.linear.scale import Scale
from millrace.learners.linear.servable import finite
from millrace.learners.protocol import Array, Batch, Floats, State, Value
from millrace.learners.replay.adjusted import Adjusted
from millrace.learners.replay.config import Head, NetworkConfig, ReplayConfig, spec_of
from millrace.learners.replay.networks import Tensors, scaled, use_one_thread
from millrace.learners.replay.optimiser import Optimiser
from millrace.learners.replay.reservoir import Reservoir
from millrace.learners.replay.servable import NetworkServable, plain
from millrace.learners.replay.step import Network, StepRows, TrainingStep

Pending = dict[str, Array]  # x (n, d), y (n,), weight (n,), key (n,): rows that wait for their step


class Method(Protocol):
    """What an algorithm adds."""

    head: Head

    def loss(self, step: TrainingStep) -> Tensor | None:
        """What this step descends; None: nothing, the rows are only stored."""


class Replay:
    """A network that learns online by one algorithm.

    For examples see the algorithms: er.py, er_ace.py, derpp.py, uer.py, pcr.py, hpcr.py, onpro.py, pec.py.
    """

    # 2: a step adds in another order (losses of joined rows, convolutions with channels last)
    # 3: the scale is taken from the first row, so that features far from zero count
    revision: int = 3
    tolerance: float = 0.1  # training amplifies another host's rounding: the same to the eye, not to the digit

    def __init__(self, method: Method, config: NetworkConfig, d: int, seed: int) -> None:
        """An untaught network over ``d`` >= 1 features.

        Raises: ValueError where the config does not fit ``d``; LearnerError where there is no such device.
        """
        if config.device == "cuda" and not torch.cuda.is_available():
            raise LearnerError('device = "cuda": this machine has none that torch can use; leave it at "cpu"')
        use_one_thread()
        self.method = method
        self.config = config
        self.d = d
        self.probabilities = method.head.kind != "error"
        self.spec = spec_of(config, method.head, d)
        self.network = Network(self.spec, config.device, seed)
        self.buffer = Reservoir(config.buffer_rows if isinstance(config, ReplayConfig) else 0)
        self.optimiser = Optimiser(config.optimiser, config.momentum, config.weight_decay, method.head.kind == "error")
        self.average: Tensors = {}  # of weights and running statistics, where ``ema``
        self.rows = 0  # learned: those that wait are not yet
        self.steps = 0
        self.left_out = 0  # rows whose label is none of ``classes``
        self.skipped = 0  # steps whose gradient was not finite
        self.adjusted = Adjusted(d)
        self._raised: dict[str, Value] = {"factor": 1.0, "rows": 0}  # the rate is so many times as large for so many rows
        self.draws = np.random.Generator(np.random.PCG64([seed, 0]))
        self.columns = {name: at for at, name in enumerate(config.classes)}  # class -> column, in order of appearance
        self.seen = np.zeros(0, dtype=bool)  # (C,)
        self._scale: tuple[Floats, Floats] | None = None
        self.waiting: Pending = self._none()
        self.served: NetworkServable | None = None
        self._grow(len(self.columns))

    def learn_many(self, batch: Batch) -> None:
        """Learn labelled rows, and those that waited; a batch of none is allowed and does nothing.

        Raises: BadInputError where columns do not fit; nothing is learned then.
        """
        if not len(batch):
            return
        use_one_thread()
        columns = self._checked(batch)
        pending = {name: np.concatenate([self.waiting[name], columns[name]]) for name in columns}
        at, count = 0, self.config.step_rows
        if self._scale is None and not self.spec.pixels:
            if len(pending["y"]) < self.config.warm_up_rows:
                self.waiting = pending
                return
            self._freeze(pending["x"][: self.config.warm_up_rows])
        while len(pending["y"]) - at >= count:
            self._step({name: column[at : at + count] for name, column in pending.items()})
            at += count
        self.waiting = {name: column[at:].copy() for name, column in pending.items()}

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C) in the order of ``servable().classes``. Pure. Raises: BadInputError as the servable does."""
        return self.servable().predict_many(batch)

    def noticed(self) -> dict[str, Any]:
        """Steps that were left out, rows whose label is none of ``classes``, and values that were learned as others."""
        return {"skipped_steps": self.skipped, "outside_classes": self.left_out} | self.adjusted.noticed()

    def servable(self) -> NetworkServable:
        """What answers now: the average where there is one, for the classes seen so far."""
        if self.served is None:
            self.served = self._picture()
        return self.served

    def raise_rate(self, factor: float, rows: int) -> None:
        """Let the learning rate be ``factor`` > 0 times as large for the next ``rows`` >= 1 learned rows, then as before.

        A step is taken at the rate of its first row; a second call takes the first one's place.
        Raises: BadInputError.
        """
        if not (0.0 < factor < np.inf and rows >= 1):
            raise BadInputError(f"factor = {factor}, rows = {rows}: must be a number above 0, and a whole number from 1")
        self._raised = {"factor": float(factor), "rows": int(rows)}

    def state_dict(self) -> State:
        """A copy of everything."""
        truth: dict[str, Value] = {**self._shape(), "classes": list(self.columns), "seen": self.seen.copy()}
        truth |= {"draws": self.draws.bit_generator.state, "raised": dict(self._raised)}
        truth |= {name: getattr(self, name) for name in ("rows", "steps", "left_out", "skipped")}
        truth |= {f"waiting.{name}": column.copy() for name, column in self.waiting.items()}
        if self._scale is not None:
            truth |= {"mean": self._scale[0].copy(), "deviation": self._scale[1].copy()}
        for part, tensors in self._parts().items():
            truth |= {f"{part}.{name}": tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}
        return State(truth | self.buffer.state(), self.adjusted.state())

    def load_state_dict(self, state: State) -> None:
        """Become the learner that gave ``state``, on copies of its arrays.

        Raises: LearnerError where the state is another learner's or another shape's.
        """
        truth = state.truth_of(self._shape())
        self.columns = {name: at for at, name in enumerate(truth["classes"])}
        self.seen, self._raised = np.array(truth["seen"]), dict(truth["raised"])
        self.draws.bit_generator.state = truth["draws"]
        self.rows, self.steps, self.left_out, self.skipped = (truth[key] for key in ("rows", "steps", "left_out", "skipped"))
        self.waiting = {name: np.array(truth[f"waiting.{name}"]) for name in self._none()}
        self._scale = (np.array(truth["mean"]), np.array(truth["deviation"])) if "mean" in truth else None
        device = self.config.device
        for part, tensors in self._parts().items():
            tensors.clear()
            stored = {name: value for name, value in truth.items() if name.startswith(f"{part}.")}
            tensors |= {name.removeprefix(f"{part}."): torch.tensor(value).to(device) for name, value in sorted(stored.items())}
        self.network.move_to(device)
        self.buffer.load(truth, device)
        self.adjusted.load(state.derived)
        self.served = None

    def _parts(self) -> dict[str, Tensors]:
        """The tensors that are state, beside the buffer's."""
        groups = {"weight": self.network.weights, "statistic": self.network.statistics}
        return groups | {"moment": self.optimiser.moments, "average": self.average}

    def _shape(self) -> dict[str, Value]:
        """What a state must agree on with its learner."""
        kind = {"kind": type(self.method).__name__, "optimiser": self.config.optimiser, "ema": self.config.ema > 0.0}
        return {**kind, "momentum": self.config.momentum > 0.0, "buffer_rows": self.buffer.size, "spec": plain(self.spec)}

    def _none(self) -> Pending:
        """No rows."""
        x = np.zeros((0, self.d), dtype=np.uint8 if self.spec.pixels else np.float64)
        return {"x": x, "y": np.zeros(0, np.int64), "weight": np.zeros(0, np.float32), "key": np.zeros(0, dtype=object)}

    def _checked(self, batch: Batch) -> Pending:
        """The rows as they wait; classes get their columns here. Raises: BadInputError."""
        x = finite("x", batch.x, (self.d,))
        if batch.y is None or batch.y.shape != x.shape[:1] or not all(isinstance(name, str) for name in batch.y):
            raise BadInputError(f"column y: expected {len(x)} class names, got {None if batch.y is None else batch.y[:3]}")
        weight = np.ones(len(x)) if batch.weight is None else finite("weight", batch.weight, ())
        if len(weight) != len(x) or weight.min() < 0.0:
            raise BadInputError(f"column weight: expected {len(x)} numbers >= 0, got {len(weight)}, least {weight.min()}")
        key = np.full(len(x), None, dtype=object) if batch.key is None else batch.key
        names: list[str] = batch.y.tolist()
        if not self.config.classes:
            y = np.array([self.columns.setdefault(name, len(self.columns)) for name in names])
        else:
            y = np.array([self.columns.get(name, -1) for name in names])
        rows = {"x": x, "y": y, "weight": weight, "key": key}
        if self.config.classes and (y < 0).any():
            self.left_out += int((y < 0).sum())
            rows = {name: column[y >= 0] for name, column in rows.items()}
        if self.spec.pixels:
            rows["x"] = self.adjusted.pixels(rows["x"])
        return rows | {"weight": self.adjusted.weights(rows["weight"]).astype(np.float32)}

    def _freeze(self, x: Floats) -> None:
        """Take the scale from the first rows, once and for all."""
        scale = Scale(self.d, len(x))
        scale.take(x)
        self._scale = scale.mean, scale.deviation

    def _step(self, rows: Pending) -> None:
        """One gradient step, then the rows are offered to the buffer."""
        raw = torch.from_numpy(np.ascontiguousarray(rows["x"]))
        if self._scale is not None:
            self.adjusted.count(rows["x"], self._scale)
            raw = scaled(self.spec, self._tensor_scale(), raw).flatten(1)
        stored = {"x": raw, "y": torch.from_numpy(rows["y"]), "weight": torch.from_numpy(rows["weight"])}
        stored = {name: column.to(self.config.device) for name, column in stored.items()}
        self._grow(int(rows["y"].max()) + 1)
        self.seen[rows["y"]] = True
        incoming = StepRows(scaled(self.spec, None, stored["x"]), stored["y"], stored["weight"])
        seen_classes = torch.from_numpy(self.seen).to(self.config.device)
        step = TrainingStep(incoming, self.network, self.buffer, self.config, self.draws, seen_classes, self.steps, self.rows)
        before = {name: tensor.clone() for name, tensor in self.network.statistics.items() if ".norm." in name}
        loss = self.method.loss(step)
        if loss is not None and not self._descend(loss):
            self.network.statistics |= before
        if self.buffer.size:
            self._store(stored | step.kept, rows["key"])
        self.rows += len(rows["y"])
        self.steps += 1
        self._raised["rows"] = max(0, self._raised["rows"] - len(rows["y"]))
        self.served = None

    def _descend(self, loss: Tensor) -> bool:
        """One step of the optimiser, and of the average; whether the gradient was finite, so that it was taken."""
        weights = self.network.weights
        derivatives = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(weights, derivatives, strict=True) if gradient is not None}
        if not all(map(math.isfinite, torch._foreach_norm(list(gradients.values())))):
            self.skipped += 1
            return False
        raised = self._raised["factor"] if self._raised["rows"] else 1.0
        self.optimiser.step(weights, gradients, self.config.rate * raised)
        if self.config.ema:
            self._follow()
        return True

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the average follow; it begins as a plain copy."""
        for name, tensor in self.network.tensors.items():
            if name in self.average:
                self.average[name].lerp_(tensor, 1.0 - self.config.ema)
            else:
                self.average[name] = tensor.detach().clone()

    def _store(self, stored: dict[str, Tensor], keys: Array) -> None:
        if "logits" in stored:
            self.buffer.widen("logits", stored["logits"].shape[1])
        self.buffer.add(stored, keys, self.draws)

    def _grow(self, classes: int) -> None:
        """Let the head have columns for so many classes at least; optimiser and average follow."""
        if classes <= self.network.classes:
            return
        new = self.network.grow(classes, self.draws)
        for name, added in new.items():
            if name in self.average:
                self.average[name] = torch.cat([self.average[name], added])
        for name, weight in self.network.weights.items():
            self.optimiser.grow(name, weight)
        self.seen = np.concatenate([self.seen, np.zeros(classes - len(self.seen), dtype=bool)])

    def _tensor_scale(self) -> tuple[Tensor, Tensor] | None:
        return None if self._scale is None else (torch.tensor(self._scale[0]), torch.tensor(self._scale[1]))

    def _picture(self) -> NetworkServable:
        """A copy of what answering needs."""
        source: dict[str, Any] = self.average or self.network.tensors
        seen_columns = np.flatnonzero(self.seen)
        names = list(self.columns)
        tensors = {}
        for name, tensor in source.items():
            copy = tensor.detach().cpu()
            if not name.startswith("projection."):
                tensors[name] = copy[seen_columns] if name.startswith("head.") else copy.clone()
        return NetworkServable(tuple(names[at] for at in seen_columns), self.spec, self._tensor_scale(), tensors)
