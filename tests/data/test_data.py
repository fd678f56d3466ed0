"""Datasets, splits, augmentation and batches: what they hold, that they are functions of the seed, and what they refuse."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from pamkd.data import Augment, Batches, ImageFiles, derived_seed, generator, halves, load_dataset
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
    with pytest.raises(ValueError, match=r"1\.png is 30x20, not 12x9 as the first training image: .*--image-size"):
        load_dataset("folder", tree)
    assert len(load_dataset("folder", tree, image_size=8)) == 8


def test_grey_folder_has_one_channel(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(1, mode="L").save(tmp_path / "train" / name / "x.png")
    assert load_dataset("folder", tmp_path).image_shape == (1, 9, 12)


def test_test_set_takes_size_and_channels_of_the_training_set(tree):
    picture(1, mode="L").save(tree / "test" / "cat" / "0.png")
    assert load_dataset("folder", tree, train=False).image_shape == (3, 9, 12)
    picture(1, size=(9, 11)).save(tree / "test" / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"test/cat/0\.png is 11x9, not 12x9 as the first training image"):
        load_dataset("folder", tree, train=False)


def test_pictures_that_cannot_be_taken_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(1, mode="L").save(tmp_path / "train" / name / "0.png")
    picture(2).save(tmp_path / "train" / "b" / "1.png")
    with pytest.raises(ValueError, match=r"b/1\.png is coloured .* where the first ones are grey"):
        load_dataset("folder", tmp_path)
    Image.fromarray(np.zeros((9, 12), dtype=np.uint16)).save(tmp_path / "train" / "b" / "1.png")
    with pytest.raises(ValueError, match=r"b/1\.png has pixels of more than 8 bits"):
        load_dataset("folder", tmp_path)


def test_folders_that_are_incomplete(tree):
    (tree / "test" / "horse").mkdir()
    with pytest.raises(ValueError, match=r"holds the class 'horse', which .*train does not hold"):
        load_dataset("folder", tree, train=False)
    (tree / "test").rename(tree / "elsewhere")
    with pytest.raises(FileNotFoundError, match="neither test/ nor val/"):
        load_dataset("folder", tree, train=False)
    (tree / "elsewhere" / "horse").rmdir()
    (tree / "elsewhere").rename(tree / "val")
    assert len(load_dataset("folder", tree, train=False)) == 2
    (tree / "train").rename(tree / "other")
    (tree / "train").mkdir()
    with pytest.raises(ValueError, match="train holds no class folders"):
        load_dataset("folder", tree)


def test_links_to_a_folder_above_end(tree):
    """Followed as deep as the system allows, three of them would lead to millions of folders."""
    for i in range(3):
        (tree / "train" / "cat" / f"link{i}").symlink_to(tree / "train" / "cat", target_is_directory=True)
    assert len(load_dataset("folder", tree)) == 8


@pytest.fixture
def files(tree, monkeypatch):
    """The tree's training set, read from its files."""
    monkeypatch.setattr("pamkd.data.datasets.MEMORY_LIMIT", 0)
    data = load_dataset("folder", tree)
    assert isinstance(data, ImageFiles)
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_what_memory_gives(files, tree, monkeypatch, workers):
    monkeypatch.undo()
    memory = load_dataset("folder", tree)
    augment = Augment(memory.mean, memory.std, padding=1, flip=True)
    options = {"seed": 1, "stream": "train", "augment": augment}
    for (a, x), (b, y) in zip(
        Batches(memory, [1, 3, 5, 7], 2, **options).epoch(0),
        Batches(files, [1, 3, 5, 7], 2, workers=workers, **options).epoch(0),
        strict=True,
    ):
        assert torch.equal(a, b) and torch.equal(x, y)
    assert (files.mean, files.std) == (memory.mean, memory.std) and files.image_shape == memory.image_shape


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_file_is_one_sentence_from_workers_too(files, tree, workers):
    (tree / "train" / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^image [^\n]*dog/1\.png cannot be read [^\n]*: repair or remove it$"):
        list(Batches(files, None, 2, seed=0, stream="train", workers=workers).epoch(0))


def test_fingerprint_of_files_and_subsets(files, tree):
    whole, part = files.fingerprint(), files.subset([0, 6]).fingerprint()
    assert len({whole, part, files.subset([6, 0]).fingerprint()}) == 3
    assert files.subset([0, 6]).mean == files.mean and files.subset([0, 6]).labels.tolist() == [0, 1]
    picture(99, size=(9, 50)).save(tree / "train" / "dog" / "0.png")
    assert files.fingerprint() != whole and files.subset([0, 6]).fingerprint() == part
    for indices in ([-1], [8]):
        with pytest.raises(ValueError, match="into a dataset of 8 images"):
            files.subset(indices)


def test_imagenet_is_resized_and_its_centre_cropped(tree):
    from torchvision.transforms import v2

    picture(7, size=(40, 30)).save(tree / "train" / "cat" / "0.png")
    data = load_dataset("imagenet", tree, image_size=14)
    with Image.open(tree / "train" / "cat" / "0.png") as file:
        expected = v2.functional.pil_to_tensor(v2.CenterCrop(14)(v2.Resize(16)(file)))
    assert torch.equal(data[0][0], expected) and data.mean == (0.485, 0.456, 0.406)
    assert load_dataset("imagenet", tree).image_shape == (3, 224, 224) and load_dataset("imagenet", tree).resize == 256


def test_resized_crops_are_a_function_of_their_place(tree):
    data = load_dataset("imagenet", tree, image_size=8)
    augment = Augment(data.mean, data.std, flip=True, resized_crop=True, color_jitter=True)

    def epoch(number, start=0, workers=0):
        batches = Batches(data, None, 2, seed=1, stream="train", augment=augment, workers=workers)
        return torch.stack([images for images, _ in batches.epoch(number, start)])

    assert torch.equal(epoch(0), epoch(0, workers=2)) and torch.equal(epoch(0)[2:], epoch(0, 2))
    assert not torch.equal(epoch(0), epoch(1))
    with pytest.raises(ValueError, match="resized_crop needs a dataset read from files, such as imagenet; train is a Images"):
        Batches(load_dataset("folder", tree), None, 2, seed=1, stream="train", augment=augment)


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


@pytest.mark.parametrize(
    ("count", "portion", "message"),
    [
        (10, 1.0, "needed are positive numbers"),
        (10, (0.7, 0.4), "of sum 1 at most"),
        (1, 0.5, "1 images cannot be cut"),
        (20, (0.1, 0.02), "would be empty"),
    ],
)
def test_impossible_halves(count, portion, message):
    with pytest.raises(ValueError, match=message):
        halves(torch.zeros(count), 0, portion)


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
