"""The one door to onnxruntime: pictures into features, by a network that never learns.

One picture at a time and on one thread, so that a row's features depend on nothing that it was read or asked with; with one
thread that is also the fastest (0.48 ms a picture of MobileNet 0.25 at 128 x 128, 0.96 ms in eights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from millrace.learners.distribution import how_to_get
from millrace.learners.errors import BadInputError, ConfigError
from millrace.learners.protocol import Array, Floats
from millrace.streams.formats.images import pixels
from millrace.streams.parts import sha256
from millrace.streams.schema import Field

OUTPUT = "features"  # what the network must call them


def located(fields: Sequence[Field], folder: Path) -> tuple[Field, ...]:
    """Fields whose networks' paths are taken from ``folder``, with the sha256 of each file.

    A missing file is let pass where the pipeline says its sha256: a rollback needs no network.
    Raises: ConfigError where a file is not there, or another than its sha256 says.
    """
    return tuple(_located(field, folder) if field.type == "image" else field for field in fields)


def _located(field: Field, folder: Path) -> Field:
    path = (folder / field.backbone).absolute()
    if field.sha256 and not path.exists():
        return replace(field, backbone=str(path))
    try:
        digest = sha256(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"Field {field.name}: its backbone {path} cannot be read: {error.strerror}.") from error
    _compare(field, digest, path)
    return replace(field, backbone=str(path), sha256=digest)


def _compare(field: Field, digest: str, path: Path) -> None:
    if field.sha256 not in ("", digest):
        raise ConfigError(f"Field {field.name}: {path} has sha256 {digest}, not {field.sha256}. Put the other file back.")


class Backbone:
    """The network of one field.

    Raises: ConfigError where its file is not what the field says; BadInputError where onnxruntime is not installed.
    """

    def __init__(self, field: Field) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BadInputError(f"A field of images needs onnxruntime. {how_to_get('backbone')}") from error
        path = Path(field.backbone)
        try:
            network = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"Field {field.name}: its backbone {path} cannot be read: {error.strerror}.") from error
        _compare(field, sha256(network), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        states = onnxruntime.capi.onnxruntime_pybind11_state
        error_names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
        refusals = (ValueError, RuntimeError, IndexError, *(getattr(states, name) for name in error_names))
        self._field = field
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            shape = self._run(np.zeros((1, 3, *field.shape), dtype=np.float32)).shape
        except refusals as error:
            raise ConfigError(f"Field {field.name}: {path} is no network that takes {(1, 3, *field.shape)}: {error}") from error
        if shape != (1, field.features):
            raise ConfigError(f"Field {field.name}: output {OUTPUT} of {path} is {shape}; set features = {shape[-1]}.")

    def _run(self, picture: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Array:
        output: Array = self._session.run([OUTPUT], {self._input: picture})[0]
        return output

    def features(self, pictures: Array) -> Floats:
        """Features (n, features) of the bytes of n pictures that can be read."""
        x = np.empty((len(pictures), self._field.features))
        for at, raw in enumerate(pictures.tolist()):
            x[at] = self._run(pixels(raw, self._field))[0]  # widened
        return x


@lru_cache(maxsize=8)
def backbone(field: Field) -> Backbone:
    """The network of a field, loaded once a process. Raises: as ``Backbone`` does."""
    return Backbone(field)
