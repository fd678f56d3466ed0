"""Datasets: what they hold, and what they refuse."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pamkd.data import Augment, Batches, ImageFiles, derived_seed, load_dataset


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


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_worker_processes_that_are_not_forked_can_read(name, tree):
    data = load_dataset(name, tree, image_size=8).subset([0, 6]).subset([1])
    augment = Augment(data.mean, data.std)
    augment(data[0][0][None], torch.Generator())
    there, aside = pickle.loads(pickle.dumps((data, augment)))
    assert torch.equal(there[0][0], data[0][0]) and there.labels.tolist() == [1] and there.mean == data.mean
    assert torch.equal(aside(data[0][0][None], torch.Generator()), augment(data[0][0][None], torch.Generator()))


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
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing: give the one where the dataset folder lies"):
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
