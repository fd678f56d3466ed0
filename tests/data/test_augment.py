"""Augmentation: that it is a function of the seed, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from pamkd.data import Augment, generator


def slow_augment(image, draws, i, padding, cutout, mean, std):
    """One image, step by step, with loops."""
    c, h, w = image.shape
    out = torch.zeros(c, h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            sx = w - 1 - x if draws.flip is not None and draws.flip[i] else x
            sy, sx = y + int(draws.top[i]) - padding, sx + int(draws.left[i]) - padding
            inside = 0 <= sy < h and 0 <= sx < w
            for k in range(c):
                value = image[k, sy, sx].item() / 255 if inside else 0.0
                out[k, y, x] = (value - mean[k]) / std[k]
                if abs(y - int(draws.row[i]) + 0.5) < cutout // 2 and abs(x - int(draws.column[i]) + 0.5) < cutout // 2:
                    out[k, y, x] = 0
    return out


def test_augmentation_against_a_slow_one():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    augment = Augment(mean, std, padding=2, flip=True, cutout=4)
    images = torch.randint(0, 256, (20, 3, 7, 6), dtype=torch.uint8)
    draws = augment.draw(images, generator(0, "test"))
    expected = torch.stack([slow_augment(image, draws, i, 2, 4, mean, std) for i, image in enumerate(images)])
    torch.testing.assert_close(augment.apply(images, draws).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(augment(images, generator(0, "test")), augment.apply(images, draws))


def test_augmentation_covers_its_range():
    augment = Augment((0.5,), (0.5,), padding=2, flip=True, cutout=4)
    draws = augment.draw(torch.zeros(4000, 1, 8, 6, dtype=torch.uint8), generator(0, "range"))
    assert set(draws.top.tolist()) == set(draws.left.tolist()) == set(range(5))
    assert set(draws.row.tolist()) == set(range(8)) and set(draws.column.tolist()) == set(range(6))
    assert 0.45 < draws.flip.double().mean() < 0.55


def test_augmentation_of_floating_images_keeps_their_dtype():
    augment = Augment((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), padding=2, flip=True, cutout=4)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8).to(memory_format=torch.channels_last)
    floating = augment(images.double() / 255, generator(0, "x"))
    assert floating.dtype == torch.float64
    torch.testing.assert_close(augment(images, generator(0, "x")).double(), floating, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "options", "message"),
    [
        ((0.5,), (0.1, 0.1), {}, "mean has 1 channels and std 2"),
        ((0.5,), (0.0,), {}, "needed are positive numbers"),
        ((0.5,), (0.1,), {"padding": -1}, "padding is -1"),
        ((0.5,), (0.1,), {"color_jitter": True}, "pass resized_crop=True too"),
    ],
)
def test_impossible_augmentation(mean, std, options, message):
    with pytest.raises(ValueError, match=message):
        Augment(mean, std, **options)


def test_augmentation_refuses_other_images():
    augment = Augment((0.5,), (0.1,))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 4\): needed is \[n, 1, h, w\]"):
        augment(torch.zeros(2, 3, 4, 4), generator(0))
    with pytest.raises(ValueError, match=r"images are torch\.int64"):
        augment(torch.zeros(2, 1, 4, 4, dtype=torch.int64), generator(0))
