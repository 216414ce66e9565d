"""A second view of images: random crop after zero padding, and a horizontal flip; drawn from a generator in the state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BORDER = 8  # an image of height H is padded by H / BORDER (4 for 32, as in He et al., CVPR 2016)


def augmented(images: Tensor, flips: bool, draws: np.random.Generator) -> Tensor:
    """Images (n, C, H, W), each cropped and perhaps flipped by its own draw."""
    count, _, height, width = images.shape
    border = max(1, height // BORDER)
    down, across = draws.integers(0, 2 * border + 1, (2, count)).tolist()
    flipped = (draws.random(count) < 0.5).tolist() if flips else [False] * count
    padded, found = functional.pad(images, (border, border, border, border)), torch.empty_like(images)
    for image, row, column, turned, view in zip(padded, down, across, flipped, found, strict=True):
        crop = image[:, row : row + height, column : column + width]
        view.copy_(crop.flip(2) if turned else crop)
    return found


def partners(y: Tensor, pairs: Tensor, labels: Tensor, by_closeness: int, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Which rows are mixed with which, as two lists of their places (n,): the last ``by_closeness`` by pairs of classes.

    ``pairs`` (K, K) are the chances of two classes of ``labels`` (K,); the others are mixed with any row.
    Source: OnPro, ICCV 2023, section 3.4.
    """
    count, chances = len(y), pairs.double().cpu().numpy()
    first = np.arange(count)
    second = draws.permutation(count)
    if by_closeness:
        names, own = labels.cpu().numpy(), y.cpu().numpy()
        chosen = draws.choice(chances.size, by_closeness, p=chances.ravel() / chances.sum())
        for places, classes in ((first, names[chosen // len(names)]), (second, names[chosen % len(names)])):
            keys = draws.random((by_closeness, count)) * (own[None] == classes[:, None])
            places[count - by_closeness :] = keys.argmax(axis=1)
    return torch.from_numpy(first), torch.from_numpy(second)
