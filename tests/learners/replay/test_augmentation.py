"""A second view of an image: the same picture, moved, resized or in other colours, by draws that are in the state."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from millrace.learners.replay.augmentation import GREYED, augmented, blended, greys, hue_turned, resized

WAYS = ("crop", "crop-flip", "colour")


def draws(seed: int = 0) -> np.random.Generator:
    """A generator of its own."""
    return np.random.Generator(np.random.PCG64(seed))


def pictures(count: int, channels: int = 3, side: int = 16) -> torch.Tensor:
    """Images (n, C, H, W) of numbers in [0, 1]."""
    return torch.from_numpy(draws(9).random((count, channels, side, side), dtype=np.float32))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_view_is_drawn_from_the_generator_alone_and_stays_in_range(how, channels) -> None:
    """The same draws give the same bits, others another view; the images themselves stay as they were."""
    images = pictures(20, channels)
    before = images.clone()
    first, again, other = (augmented(images, how, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(images, before)
    assert first.shape == images.shape and float(first.min()) >= 0.0 and float(first.max()) <= 1.0


@pytest.mark.parametrize("how", WAYS)
def test_a_view_of_one_image_does_not_depend_on_the_others(how) -> None:
    """Each image is changed by its own numbers, whatever stands beside it."""
    images = pictures(6)
    changed = images.clone()
    changed[3:] = 0.25
    assert torch.equal(augmented(images, how, draws())[:3], augmented(changed, how, draws())[:3])


def test_hues_turn_as_the_standard_library_turns_them() -> None:
    """Pixel by pixel, greys and pure colours among them."""
    images = pictures(4, side=5)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0.5, torch.tensor([1.0, 0.0, 0.0])
    images[0, :, 0, 2] = 0.0
    turn = torch.tensor([0.1, -0.1, 0.0, 0.37]).view(-1, 1, 1, 1)
    turned = hue_turned(images, turn)
    for at in np.ndindex(4, 5, 5):
        red, green, blue = (float(value) for value in images[at[0], :, at[1], at[2]])
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        right = colorsys.hsv_to_rgb((hue + float(turn[at[0]])) % 1.0, saturation, value)
        np.testing.assert_allclose(turned[at[0], :, at[1], at[2]].numpy(), right, atol=2e-6)


def test_a_share_above_one_leads_away_from_the_other() -> None:
    """Contrast and saturation: 1 changes nothing, 0 leaves the other alone."""
    images = pictures(2)
    other, whole = greys(images), torch.ones(2, 1, 1, 1)
    torch.testing.assert_close(blended(images, other, whole), images)
    torch.testing.assert_close(blended(images, other, 0.0 * whole), other.expand_as(images))
    assert float((blended(images, other, 1.4 * whole) - other).std()) > float((images - other).std())


def test_the_part_that_is_shown_is_within_the_image_and_as_large_as_the_paper_says() -> None:
    """Of an image that tells places, each view runs over 0.2 to 1 of the area, 3/4 to 4/3 as wide as high; half are flipped."""
    side, count = 32, 2000
    across = (torch.arange(side) + 0.5) / side
    place = torch.stack([across.expand(side, side), across[:, None].expand(side, side)])
    view = resized(place.expand(count, 2, side, side).contiguous(), draws())
    width = (view[:, 0, 0, -1] - view[:, 0, 0, 0]) * side / (side - 1)
    height = (view[:, 1, -1, 0] - view[:, 1, 0, 0]) * side / (side - 1)
    area, ratio = (width.abs() * height).numpy(), (width.abs() / height).numpy()
    assert 0.17 < area.min() < 0.25 and 0.9 < area.max() <= 1.01 and abs(area.mean() - 0.59) < 0.02
    assert ratio.min() > 0.7 and ratio.max() < 1.45
    assert 0.45 < float((width < 0).float().mean()) < 0.55
    assert float(view.min()) >= 0.0 and float(view.max()) <= 1.0


def test_two_of_ten_are_grey_and_eight_of_ten_have_other_colours() -> None:
    """As the paper's settings say."""
    flat = torch.tensor([0.6, 0.3, 0.2]).view(1, 3, 1, 1).expand(4000, 3, 4, 4).contiguous()
    view = augmented(flat, "colour", draws())
    grey = (view.amax(1) - view.amin(1)).amax((1, 2)) < 1e-6
    same = (view - flat).abs().amax((1, 2, 3)) < 1e-6
    assert abs(float(grey.float().mean()) - GREYED) < 0.02
    assert abs(float(same.float().mean()) - 0.2 * 0.8) < 0.02
