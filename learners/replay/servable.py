"""What a network serves: its layers and weights, the frozen scale, and the classes it has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from millrace.learners.declaration import declared
from millrace.learners.linear.servable import finite
from millrace.learners.protocol import Array, Batch, Floats, Value
from millrace.learners.replay.config import Spec
from millrace.learners.replay.networks import Tensors, layers_of, logits_of, run, scaled, use_one_thread

LARGEST = 1e30  # a logit beyond it counts as this one, and none as 0: a network that diverged still answers in numbers
PREDICT_ROWS = 512  # rows answered at a time; bounds the memory of a large question


@dataclass(frozen=True, slots=True, eq=False)
class NetworkServable:
    """An immutable network on the processor; what it gives away is read-only."""

    classes: tuple[str, ...]  # seen so far, in the order of the score columns
    spec: Spec
    scale: tuple[Tensor, Tensor] | None  # mean and deviation (d,), float64; None: pixels, or nothing has been learned
    tensors: Tensors  # weights and running statistics, of nobody else

    def predict_many(self, batch: Batch) -> Floats:
        """Scores (n, C): class probabilities; of a head that compares errors, minus the errors. float32's precision.

        Raises: BadInputError where ``batch.x`` is not finite numbers (n, d).
        """
        x = finite("x", batch.x, (self.spec.d,))
        if not self.classes or not len(x):
            return np.zeros((len(x), len(self.classes)))
        use_one_thread()
        rows = torch.from_numpy(x.copy())
        with torch.inference_mode():
            parts = [self._scores(rows[at : at + PREDICT_ROWS]) for at in range(0, len(rows), PREDICT_ROWS)]
        scores: Floats = torch.cat(parts).double().numpy()
        return scores

    def _scores(self, x: Tensor) -> Tensor:
        z = run(layers_of(self.spec), self.tensors, scaled(self.spec, self.scale, x))
        logits = logits_of(self.spec.head, self.tensors, z).nan_to_num(0.0, LARGEST, -LARGEST)
        return logits if self.spec.head.kind == "error" else logits.softmax(1)

    def arrays(self) -> dict[str, Value]:
        """Everything ``from_arrays`` needs; the arrays are read-only."""
        arrays: dict[str, Value] = {"classes": list(self.classes), "spec": plain(self.spec)}
        if self.scale is not None:
            arrays |= {"mean": read_only(self.scale[0]), "deviation": read_only(self.scale[1])}
        return arrays | {f"tensor.{name}": read_only(tensor) for name, tensor in self.tensors.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Value]) -> NetworkServable:
        """The servable that gave ``arrays``, on copies of them, with equal answers bit for bit."""
        copied = {name: torch.tensor(value) for name, value in arrays.items() if isinstance(value, np.ndarray)}
        scale = (copied["mean"], copied["deviation"]) if "mean" in copied else None
        tensors = {name.removeprefix("tensor."): value for name, value in copied.items() if name.startswith("tensor.")}
        return cls(tuple(arrays["classes"]), Spec.of(arrays["spec"]), scale, tensors)


def plain(spec: Spec) -> dict[str, Value]:
    """A spec as JSON says it."""
    return declared(spec)


def read_only(tensor: Tensor) -> Array:
    """A view that cannot be written to."""
    view = tensor.numpy().view()
    view.flags.writeable = False
    return view
