"""Split MNIST and split CIFAR-10 as one-pass streams: two classes a task, in an order that the seed draws.

Data: as in services/data/datasets.py. CIFAR-10 is a JPEG copy there, so its figures compare methods with each other only.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASKS = 5  # of two classes each
HELD_OUT = 500  # test images that every evaluation looks at, as many of each class
CIFAR_ROWS = 10_000  # training images that are used
BACKBONE = "mobilenet_v1_0.25_128_quant_dequant.onnx"


@dataclass(frozen=True, slots=True)
class SplitStream:
    """Images in the order in which they are learned, once each, and the images that are held out."""

    name: str
    x: NDArray[Any]  # (n, C, H, W), 0..255; or features (n, d)
    y: NDArray[np.int64]  # (n,) classes
    task: NDArray[np.int64]  # (n,) of each row, never decreasing; no learner is told
    held_x: NDArray[Any]  # (m, ...)
    held_y: NDArray[np.int64]  # (m,)
    held_task: NDArray[np.int64]  # (m,)


def split_mnist(data: Path, seed: int, rows: int | None = None) -> SplitStream:
    """All 60,000 training images, or the first ``rows`` of them, before they are put in order."""
    with np.load(data / "mnist" / "mnist.npz") as file:
        names = {name: file[name] for name in file.files}
    train_x, train_y = names["x_train"][:rows], names["y_train"][:rows]
    held = _held_out(names["y_test"])
    pictures = (train_x[:, None], names["x_test"][held][:, None])
    return _split("split MNIST", pictures, (train_y, names["y_test"][held]), seed)


def split_cifar(data: Path, seed: int, rows: int = CIFAR_ROWS) -> SplitStream:
    """The first ``rows`` training images."""
    with np.load(data / "cifar10" / "cifar10_jpeg.npz") as file:
        names = {name: file[name] for name in file.files}
    held = _held_out(names["y_test"])
    train = _decoded(names["jpeg_train"], names["off_train"], np.arange(rows))
    pictures = (train, _decoded(names["jpeg_test"], names["off_test"], held))
    return _split("split CIFAR-10", pictures, (names["y_train"][:rows], names["y_test"][held]), seed)


def cifar_features(data: Path, seed: int, rows: int = CIFAR_ROWS, cache: Path | None = None) -> SplitStream:
    """The same rows in the same order as features (n, 256) of the frozen MobileNet, through the product's own door."""
    with np.load(data / "cifar10" / "cifar10_jpeg.npz") as file:
        names = {name: file[name] for name in file.files}
    held = _held_out(names["y_test"])
    place = None if cache is None else cache / f"backbone-{rows}.npz"
    if place is not None and place.exists():
        with np.load(place) as file:
            pictures = (file["train"], file["held"])
    else:
        train = _features(data, names["jpeg_train"], names["off_train"], np.arange(rows))
        pictures = (train, _features(data, names["jpeg_test"], names["off_test"], held))
        if place is not None:
            np.savez(place, train=pictures[0], held=pictures[1])
    return _split("CIFAR-10 features", pictures, (names["y_train"][:rows], names["y_test"][held]), seed)


def stream_named(name: str, data: Path, seed: int, rows: int) -> SplitStream:
    """The stream that a request names."""
    return (split_mnist if name == "mnist" else split_cifar)(data, seed, rows)


def _features(
    data: Path, blob: NDArray[np.uint8], offsets: NDArray[np.int64], chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of JPEG files, (n, 256)."""
    from millrace.streams.features.backbone import backbone
    from millrace.streams.schema import Field

    path = str(data / "vision_backbones" / BACKBONE)
    field = Field("picture", "image", center=128.0, scale=128.0, backbone=path, shape=(128, 128), features=256)
    files = [blob[offsets[at] : offsets[at + 1]].tobytes() for at in chosen]
    return backbone(field).features(np.array(files, dtype=object))


def _decoded(blob: NDArray[np.uint8], offsets: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images (n, 3, 32, 32)."""
    from PIL import Image

    files = (io.BytesIO(blob[offsets[at] : offsets[at + 1]].tobytes()) for at in chosen)
    return np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])


def _held_out(y: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the first images of each class, HELD_OUT in all."""
    each = HELD_OUT // 10
    return np.concatenate([np.flatnonzero(y == label)[:each] for label in range(10)])


def _split(
    name: str,
    pictures: tuple[NDArray[Any], NDArray[Any]],
    labels: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
) -> SplitStream:
    """Rows task by task, shuffled within a task."""
    rng = np.random.default_rng(seed)
    task_of = np.empty(10, dtype=np.int64)
    task_of[rng.permutation(10)] = np.arange(10) // 2
    y, held_y = (column.astype(np.int64) for column in labels)
    order = rng.permutation(len(y))
    order = order[np.argsort(task_of[y[order]], kind="stable")]
    return SplitStream(name, pictures[0][order], y[order], task_of[y[order]], pictures[1], held_y, task_of[held_y])
