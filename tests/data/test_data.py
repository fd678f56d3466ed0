"""Datasets, splits, augmentation and batches: what they hold, that they are functions of the seed, and what they refuse."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from pamkd.data import Augment, Batches, derived_seed, generator, halves, load_dataset
from pamkd.data.groups import sample_groups


def picture(seed: int, size=(9, 12), mode="RGB") -> Image.Image:
    shape = (*size, 3) if mode == "RGB" else size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


@pytest.fixture
def tree(tmp_path):
    """train/ with two classes of 5 and 3 pictures, test/ with one of each."""
    for part, counts in (("train", {"cat": 5, "dog": 3}), ("test", {"cat": 1, "dog": 1})):
        for name, count in counts.items():
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(derived_seed(0, part, name, i)).save(folder / f"{i}.png")
    return tmp_path


def test_derived_seeds_are_sha256():
    expected = int.from_bytes(hashlib.sha256(b'[3, "groups", 7]').digest()[:8], "big") >> 1
    assert derived_seed(3, "groups", 7) == expected
    assert len({derived_seed(seed, "a", i) for seed in range(10) for i in range(10)}) == 100
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


def test_digits():
    train, test = load_dataset("digits"), load_dataset("digits", train=False)
    assert (len(train), len(test), train.image_shape, len(train.classes)) == (1437, 360, (1, 8, 8), 10)
    assert set(train.labels.tolist()) == set(range(10))


def test_folder(tree):
    train, test = load_dataset("folder", tree), load_dataset("folder", tree, train=False)
    assert (len(train), len(test)) == (8, 2) and list(train.classes) == ["cat", "dog"]
    assert train.labels.tolist() == [0] * 5 + [1] * 3
    image, label = train[6]
    with Image.open(tree / "train" / "dog" / "1.png") as file:
        assert torch.equal(image, torch.from_numpy(np.array(file)).permute(2, 0, 1)) and label == 1


def test_fingerprint_follows_the_pictures(tree):
    before = load_dataset("folder", tree).fingerprint()
    assert before == load_dataset("folder", tree).fingerprint()
    picture(99).save(tree / "train" / "cat" / "0.png")
    assert load_dataset("folder", tree).fingerprint() != before


def test_statistics_are_those_of_all_pixels(tree):
    data = load_dataset("folder", tree)
    pixels = torch.stack([data[i][0] for i in range(len(data))]).double() / 255
    for ours, truth in ((data.mean, pixels.mean((0, 2, 3))), (data.std, pixels.std((0, 2, 3), correction=0))):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), truth)


def test_images_are_resized_and_cropped(tree):
    assert load_dataset("folder", tree, image_size=8).image_shape == (3, 8, 8)
    picture(5, size=(20, 30)).save(tree / "train" / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is 30x20, not 12x9 as .*--image-size"):
        load_dataset("folder", tree)
    assert len(load_dataset("folder", tree, image_size=8)) == 8


def test_grey_folder_has_one_channel(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(1, mode="L").save(tmp_path / "train" / name / "x.png")
    assert load_dataset("folder", tmp_path).image_shape == (1, 9, 12)


def test_unreadable_picture_is_named(tree):
    (tree / "train" / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"dog/1\.png cannot be read"):
        load_dataset("folder", tree)


@pytest.mark.parametrize("size", [64, 100])
def test_picture_cut_short_is_named(tree, size):
    path = tree / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"dog/1\.png cannot be read"):
        load_dataset("folder", tree)


def test_one_class_and_empty_folders(tree):
    for i in range(3):
        (tree / "train" / "dog" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=r"dog holds no images"):
        load_dataset("folder", tree)
    (tree / "train" / "dog").rmdir()
    with pytest.raises(ValueError, match="one class only, 'cat'"):
        load_dataset("folder", tree)
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        load_dataset("folder", tree / "missing")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_dataset("folder", tree / "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist",), "unknown dataset 'mnist'; known are digits"),
        (("cifar10",), "needs to know where it lies"),
        (("digits", None, 12), "for the datasets folder and imagenet only"),
    ],
)
def test_wrong_arguments(arguments, message):
    name, root, size = (*arguments, None, None)[:3]
    with pytest.raises(ValueError, match=message):
        load_dataset(name, root, image_size=size)


def test_missing_cifar_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete cifar10 in .*--download"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("portion", [0.5, 0.3, (0.1, 0.025)])
def test_halves_are_disjoint_stratified_and_fixed(portion):
    labels = torch.arange(4000) % 7
    first, second = halves(labels, 3, portion)
    shares = portion if isinstance(portion, tuple) else (portion, 1 - portion)
    assert [len(first), len(second)] == [pytest.approx(4000 * share, abs=1) for share in shares]
    assert not set(first.tolist()) & set(second.tolist())
    for part, share in zip((first, second), shares, strict=True):
        assert (labels[part].bincount() - share * labels.bincount()).abs().max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(halves(labels, 3, portion), (first, second), strict=True))
    assert not torch.equal(halves(labels, 4, portion)[0], first)


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


def test_groups_are_distinct_fixed_and_even():
    x, y = sample_groups(11, 3, 4000, seed=9)
    rows = torch.cat([x, y], 1)
    assert all(len(set(line)) == 6 for line in rows[:200].tolist())
    share = rows.reshape(-1).bincount(minlength=11) / rows.numel()
    assert (share - 1 / 11).abs().max() < 0.01  # 24,000 draws: a standard deviation is 0.0019
    for place in range(6):
        assert (rows[:, place].bincount(minlength=11) / 4000 - 1 / 11).abs().max() < 0.025
    assert torch.equal(sample_groups(11, 3, 4000, seed=9)[1], y) and not torch.equal(sample_groups(11, 3, 4000, seed=10)[1], y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((9, 5, 3), "a batch of 9 images is too small"), ((9, 1, 3), "group_size is 1"), ((9, 2, 0), "pairs is 0")],
)
def test_impossible_groups(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_groups(*arguments, seed=0)
