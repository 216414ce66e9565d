"""A second view of images, drawn from a generator in the state.

``crop``: a random crop after zero padding; ``crop-flip``: and a horizontal flip, as in He et al., CVPR 2016. ``colour``: a part
of the image at the image's size, flipped, in other colours, as in PCR, CVPR 2023: scale 0.2 to 1; brightness, contrast and
saturation by 0.4, hue by 0.1, in this order, for 8 of 10 images; 2 of 10 in grey.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BORDER = 8  # an image of height H is padded by H / BORDER (4 for 32, as in He et al., CVPR 2016)
LEAST_AREA = 0.2  # of the part of an image that is shown
WIDEST = 4.0 / 3.0  # that part's width to its height, and the other way round
JITTER, HUE = 0.4, 0.1  # how far colours are changed; hue in turns of the colour circle
JITTERED, GREYED = 0.8, 0.2  # shares of images
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def augmented(images: Tensor, mode: str, draws: np.random.Generator) -> Tensor:
    """Images (n, C, H, W), each changed by its own draw; those of ``colour`` are in [0, 1], and stay there."""
    if mode == "colour":
        return recoloured(resized(images, draws), draws)
    return cropped(images, mode == "crop-flip", draws)


def cropped(images: Tensor, flips: bool, draws: np.random.Generator) -> Tensor:
    """Each image moved by up to a border of zeros, and perhaps flipped."""
    count, _, height, width = images.shape
    border = max(1, height // BORDER)
    down, across = draws.integers(0, 2 * border + 1, (2, count)).tolist()
    flipped = (draws.random(count) < 0.5).tolist() if flips else [False] * count
    padded, views = functional.pad(images, (border, border, border, border)), torch.empty_like(images)
    for image, row, column, turned, view in zip(padded, down, across, flipped, views, strict=True):
        crop = image[:, row : row + height, column : column + width]
        view.copy_(crop.flip(2) if turned else crop)
    return views


def resized(images: Tensor, draws: np.random.Generator) -> Tensor:
    """A part of each image at the image's own size, and perhaps flipped."""
    count = len(images)
    area, ratio = draws.uniform(LEAST_AREA, 1.0, count), WIDEST ** draws.uniform(-1.0, 1.0, count)
    width, height = np.minimum(np.sqrt(area * ratio), 1.0), np.minimum(np.sqrt(area / ratio), 1.0)
    part = np.zeros((count, 2, 3), dtype=np.float32)  # from places in the view to places in the image, both in [-1, 1]
    part[:, 0, 0], part[:, 1, 1] = width * np.where(draws.random(count) < 0.5, -1.0, 1.0), height
    part[:, 0, 2], part[:, 1, 2] = draws.uniform(-1.0, 1.0, (2, count)) * np.array([1.0 - width, 1.0 - height])
    places = functional.affine_grid(torch.from_numpy(part).to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, padding_mode="border", align_corners=False)


def recoloured(images: Tensor, draws: np.random.Generator) -> Tensor:
    """Most images (n, 3, H, W) in other colours, some in grey; those of another number of channels by light alone."""
    count, coloured = len(images), images.shape[1] == len(GREY)
    chosen = draws.random(count) < JITTERED
    light, contrast, saturation = (
        _each(images, np.where(chosen, draws.uniform(1 - JITTER, 1 + JITTER, count), 1)) for _ in range(3)
    )
    turn, grey = _each(images, np.where(chosen, draws.uniform(-HUE, HUE, count), 0)), draws.random(count) < GREYED
    coloured_images = (images * light).clamp(0.0, 1.0)
    coloured_images = blended(coloured_images, greys(coloured_images).mean((1, 2, 3), keepdim=True), contrast)
    if not coloured:
        return coloured_images
    coloured_images = hue_turned(blended(coloured_images, greys(coloured_images), saturation), turn)
    return torch.where(_each(images, grey).bool(), greys(coloured_images), coloured_images)


def _each(images: Tensor, values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Tensor:
    """One value (n,) an image, as (n, 1, 1, 1)."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device).view(-1, 1, 1, 1)


def greys(images: Tensor) -> Tensor:
    """Brightness (n, 1, H, W) of images."""
    if images.shape[1] != len(GREY):
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(GREY).view(1, -1, 1, 1)).sum(1, keepdim=True)


def blended(images: Tensor, other_images: Tensor, share: Tensor) -> Tensor:
    """``share`` of the images and the rest of the other; a share above 1 leads away from the other."""
    return (share * images + (1.0 - share) * other_images).clamp(0.0, 1.0)


def hue_turned(images: Tensor, turn: Tensor) -> Tensor:
    """Images (n, 3, H, W) with hues further by ``turn`` (n, 1, 1, 1) of the colour circle; value and saturation as they were.

    Source: Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978, the hexcone model (HSV).
    """
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    red, green, blue = images.unbind(1)
    sixths = torch.where(value == green, (blue - red) / chroma + 2.0, (red - green) / chroma + 4.0)
    sixths = torch.where(value == red, (green - blue) / chroma, sixths).nan_to_num()  # without chroma there is no hue
    hue = sixths + 6.0 * turn[:, 0]
    sectors = [(place + hue) % 6.0 for place in (5.0, 3.0, 1.0)]
    return torch.stack([value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0) for k in sectors], 1)


def partners(y: Tensor, pairs: Tensor, labels: Tensor, by_closeness: int, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Which rows are mixed with which, as two lists of their places (n,): the last ``by_closeness`` by pairs of classes.

    ``pairs`` (K, K) are the chances of two classes of ``labels`` (K,); the others are mixed with any row.
    Source: OnPro, ICCV 2023, section 3.4.
    """
    count, chances = len(y), pairs.double().cpu().numpy()
    first = np.arange(count)
    second = draws.permutation(count)
    if by_closeness:
        names, own_labels = labels.cpu().numpy(), y.cpu().numpy()
        chosen = draws.choice(chances.size, by_closeness, p=chances.ravel() / chances.sum())
        for places, classes in ((first, names[chosen // len(names)]), (second, names[chosen % len(names)])):
            keys = draws.random((by_closeness, count)) * (own_labels[None] == classes[:, None])
            places[count - by_closeness :] = keys.argmax(axis=1)
    return torch.from_numpy(first), torch.from_numpy(second)
