"""Batches: that they are functions of the seed and their place, and what they refuse."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from pamkd.data import Augment, Batches, load_dataset


class Items(Dataset):
    """A user's dataset: whatever `make(i)` returns."""

    def __init__(self, make, count=4):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.make(i)


def plain(make, **options):
    return next(iter(Batches(Items(make), None, 4, seed=0, stream="train", shuffle=False, **options).epoch(0)))


def test_every_kind_of_image_gives_the_same_batch():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    kinds = [
        lambda i: (Image.fromarray(pixels[i]), i),
        lambda i: (pixels[i], np.int64(i)),
        lambda i: (pixels[i].transpose(2, 0, 1), torch.tensor(i)),
        lambda i: (torch.from_numpy(pixels[i]).permute(2, 0, 1), i),
        lambda i: [expected[i], float(i)],
    ]
    for make in kinds:
        images, labels = plain(make)
        assert torch.equal(images, expected) and labels.tolist() == [0, 1, 2, 3] and labels.dtype == torch.int64
    assert plain(lambda i: (pixels[i, :, :, 0], i))[0].shape == (4, 1, 6, 5)


def test_random_transforms_repeat_and_leave_the_global_generators_alone():
    def make(i):
        return torch.rand(1, 2, 2) + float(np.random.rand()) + random.random(), 0

    torch.manual_seed(5)
    before = torch.rand(2)
    torch.manual_seed(5)
    first = plain(make)[0]
    assert torch.equal(torch.rand(2), before)
    assert torch.equal(first, plain(make)[0]) and torch.equal(first, plain(make, workers=2)[0])
    assert len(first.unique()) == first.numel()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: torch.zeros(1, 2, 2), "item 0 of the dataset is a Tensor: needed is a pair"),
        (lambda i: (torch.zeros(1, 2, 2), "cat"), "the label of item 0 is 'cat'"),
        (lambda i: (torch.zeros(1, 2, 2), -1), "the label of item 0 is -1"),
        (lambda i: (torch.zeros(1, 2, 2), 0.5), "the label of item 0 is 0.5"),
        (lambda i: ("cat.jpg", 0), "the image of item 0 is a str"),
        (lambda i: (Image.new("I;16", (2, 2)), 0), "the image of item 0 has pixels of more than 8 bits .mode I;16."),
        (lambda i: (torch.zeros(4, 2, 2), 0), r"the image of item 0 has shape \(4, 2, 2\)"),
        (lambda i: (torch.zeros(1, 2, 2, dtype=torch.int32), 0), r"the image of item 0 is torch\.int32"),
        (lambda i: (torch.zeros(1, 2, 2 + i), 0), r"the image of item 1 is \(1, 2, 3\) .* not \(1, 2, 2\) .* of item 0"),
    ],
)
def test_unusable_items_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        plain(make)


class Numbers(Dataset):
    """Item i is an image that says i."""

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return torch.full((1, 2, 2), float(i)), i % 3


def epoch_of(batches, *place):
    return [(images[:, 0, 0, 0].tolist(), labels.tolist()) for images, labels in batches.epoch(*place)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_their_place(workers):
    make = lambda seed=5: Batches(Numbers(), None, 5, seed=seed, stream="train", workers=workers)  # noqa: E731
    whole = epoch_of(make(), 2)
    assert len(make()) == len(whole) == 4
    assert sorted(i for images, _ in whole for i in images) == sorted({i for images, _ in whole for i in images})
    assert all(label == int(i) % 3 for images, labels in whole for i, label in zip(images, labels, strict=True))
    assert epoch_of(make(), 2, 3) == whole[3:] and epoch_of(make(), 2, 4) == []
    assert epoch_of(make(), 3) != whole != epoch_of(make(6), 2)
    stream = make().forever(2 * 4 + 3)
    assert [next(stream)[0][:, 0, 0, 0].tolist() for _ in range(2)] == [whole[3][0], epoch_of(make(), 3)[0][0]]


class Processes(Numbers):
    """Labels are the processes that read them."""

    def __getitem__(self, i):
        return super().__getitem__(i)[0], os.getpid()


def test_workers_outlive_an_epoch():
    batches = Batches(Processes(), None, 5, seed=5, stream="train", workers=2)
    first, second = ({label for _, labels in epoch_of(batches, epoch) for label in labels} for epoch in (0, 1))
    assert first == second and len(first) == 2 and os.getpid() not in first


def test_epochs_that_are_left_early_or_read_side_by_side_do_not_mix():
    whole = [epoch_of(Batches(Numbers(), None, 5, seed=5, stream="train"), epoch) for epoch in range(2)]
    batches = Batches(Numbers(), None, 5, seed=5, stream="train", workers=2)
    left = batches.epoch(1)
    next(left)
    left.close()
    assert epoch_of(batches, 0) == whole[0]
    pairs = zip(batches.epoch(0), batches.epoch(1), strict=True)
    sides = zip(*([images[:, 0, 0, 0].tolist() for images, _ in pair] for pair in pairs), strict=True)
    assert [list(side) for side in sides] == [[images for images, _ in epoch] for epoch in whole]


def test_every_image_once_without_dropping():
    batches = Batches(Numbers(), None, 5, seed=0, stream="check", drop_last=False, shuffle=False)
    assert [i for images, _ in epoch_of(batches, 0) for i in images] == list(range(23))


def test_augmented_batches_resume_exactly():
    data = load_dataset("digits")
    make = lambda: Batches(data, torch.arange(100), 16, seed=1, stream="train", augment=Augment(data.mean, data.std, padding=1, cutout=2))  # noqa: E731
    whole, rest = list(make().epoch(4)), list(make().epoch(4, 3))
    for (a, x), (b, y) in zip(whole[3:], rest, strict=True):
        assert torch.equal(a, b) and torch.equal(x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Numbers(), [], 1), "the train dataset is empty"),
        ((Numbers(), None, 24), "batch_size is 24 and the train dataset has 23 images"),
        ((Numbers(), None, 0), "batch_size is 0"),
        ((iter([]), None, 1), "needed is a map-style one"),
    ],
)
def test_impossible_batches(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(*arguments, seed=0, stream="train")


def test_label_beyond_the_classes_is_named():
    batches = Batches(load_dataset("digits"), None, 100, seed=0, stream="train", classes=9)
    with pytest.raises(ValueError, match="a label of the train dataset is 9: needed is a number below 9"):
        list(batches.epoch(0))
