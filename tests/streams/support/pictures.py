"""Pictures and a network for tests: CIFAR-10's JPEG bytes, and MobileNet at 128 x 128."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from millrace.streams.features.backbone import located
from millrace.streams.schema import Field, Label, Schema

DATA = Path(os.environ.get("MILLRACE_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")
NETWORK = DATA / "vision_backbones" / "mobilenet_v1_0.25_128_quant_dequant.onnx"
SHAPED = {"type": "image", "shape": (128, 128), "features": 256, "center": 128.0, "scale": 128.0}


def photos(split: str, start: int, stop: int) -> tuple[list[bytes], list[int]]:
    """JPEG bytes and labels of CIFAR-10; skips where the shared data is not there."""
    path = DATA / "cifar10" / "cifar10_jpeg.npz"
    if not path.exists() or not NETWORK.exists():
        pytest.skip("the shared data is not here")
    with np.load(path) as parts:
        offsets, jpeg, y = parts[f"off_{split}"], parts[f"jpeg_{split}"], parts[f"y_{split}"]
        return [jpeg[offsets[at] : offsets[at + 1]].tobytes() for at in range(start, stop)], y[start:stop].tolist()


def picture_schema() -> Schema:
    """A picture and a class."""
    fields = located([Field("photo", backbone=NETWORK.name, **SHAPED)], NETWORK.parent)
    return Schema(fields, Label("y", "integer"))


def drawn(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A picture of some colours."""
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    cells = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    sink = BytesIO()
    Image.fromarray(cells, mode if len(mode) > 1 else "L").convert(mode).save(sink, kind)
    return sink.getvalue()
