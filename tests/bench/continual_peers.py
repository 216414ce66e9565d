"""What public code is given in our place: the same rows in the same order, and the same network, as a torch module.

Runs in `.venv-continual`, where millrace is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from continual_streams import SplitStream, stream_named
from torch import Tensor, nn
from torch.nn import functional

BORDER = 8  # as in learners/replay/augmentation.py


class Network(nn.Module):
    """The mlp or the convnet of learners/replay/networks.py, begun as PyTorch begins layers, with a head of ten classes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        ins, layers = spec["d"], list[nn.Module]()
        if spec["network"] == "convnet":
            colours, height, width = spec["image"]
            nf = spec["channels"]
            for a, b in ((colours, nf), (nf, 2 * nf)):
                layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            ins = 2 * nf * -(-height // 4) * -(-width // 4)
        layers.append(nn.Flatten())
        for outs in (8 * spec["channels"],) if spec["network"] == "convnet" else spec["hidden"]:
            layers += [nn.Linear(ins, outs), nn.ReLU()]
            ins = outs
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(ins, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10)."""
        return self.classifier(self.body(x))


def stream_of(request: dict[str, Any]) -> SplitStream:
    """The stream, its images as float tensors in [0, 1] and its classes as tensors."""
    stream = stream_named(request["stream"], Path(request["data"]), request["seed"], request["rows"])
    as_seen = {"x": torch.from_numpy(stream.x).float() / 255.0, "y": torch.from_numpy(stream.y)}
    as_seen |= {"held_x": torch.from_numpy(stream.held_x).float() / 255.0}
    parts = {name: getattr(stream, name) for name in stream.__slots__} | as_seen
    return SplitStream(**parts)


@torch.no_grad()
def accuracies(network: nn.Module, stream: SplitStream) -> list[float]:
    """On each task's held-out images, in the order of learning."""
    network.eval()
    right = (network(stream.held_x).argmax(1).numpy() == stream.held_y).astype(float)
    return [float(right[stream.held_task == task].mean()) for task in np.unique(stream.held_task)]


def augmentation(request: dict[str, Any]) -> nn.Module | None:
    """Ours, drawn from torch's generator; None where the request has none."""
    return None if request["augment"] == "none" else CropFlip()


class CropFlip(nn.Module):
    """A random crop after zero padding, and a horizontal flip, image by image."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W)."""
        count, _, height, width = images.shape
        border = max(1, height // BORDER)
        offsets = torch.randint(0, 2 * border + 1, (2, count, 1))
        across = torch.arange(width)
        across = torch.where(torch.rand(count, 1) < 0.5, width - 1 - across, across) + offsets[1]
        down = torch.arange(height) + offsets[0]
        padded = functional.pad(images, (border, border, border, border)).permute(0, 2, 3, 1)
        return padded[torch.arange(count)[:, None, None], down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
