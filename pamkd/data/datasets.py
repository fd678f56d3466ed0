"""Image datasets by name: small ones decoded once into a uint8 tensor, large ones read from their files."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pamkd.data import imagenet16

if TYPE_CHECKING:
    from PIL import Image

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
Item = TypeVar("Item")
Result = TypeVar("Result")

DATASETS = ("digits", "cifar10", "cifar100", "imagenet16-120", "imagenet", "folder")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
MEMORY_LIMIT = 2 << 30  # bytes of pixels up to which a folder is decoded into memory
DIGITS_TRAIN = 1437  # the rest of the 1797 tests; neighbours in the file are by one writer, so the cut is by place

CIFAR10_STATISTICS = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
CIFAR100_STATISTICS = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Map-style dataset of (uint8 image [c, h, w], label); what `Images` and `ImageFiles` share.

    Attributes: `name`, `classes` (names), `labels` (int64 [n]), `image_shape` (c, h, w), `mean` and `std` (per channel, of
    pixels in 0 .. 1; published values for CIFAR and ImageNet, else measured on all images of the dataset that it is a subset of).
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    image_shape: tuple[int, int, int]
    _statistics: Statistics | Callable[[], Statistics] | None

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process that was not forked gets: of a subset the numbers, in place of the dataset that knows them."""
        return vars(self) | {"_statistics": self.statistics if callable(self._statistics) else self._statistics}

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @abstractmethod
    def subset(self, indices: Tensor | Sequence[int]) -> ImageDataset:
        """The images of these indices, in this order; no pixel is copied. Raises ValueError for an index that is out of range."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256, in hexadecimal, over what the dataset holds."""

    @property
    @abstractmethod
    def statistics(self) -> Statistics:
        """Mean and standard deviation per channel."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in 0 .. 1."""
        return self.statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, of pixels in 0 .. 1."""
        return self.statistics[1]

    def _indices(self, indices: Tensor | Sequence[int]) -> Tensor:
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise ValueError(f"indices from {int(indices.min())} to {int(indices.max())} into a dataset of {len(self)} images")
        return indices


class Images(ImageDataset):
    """Images in memory: `images` uint8 [m, c, h, w] and `labels` [m], of which `rows` (default: all) are the dataset."""

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        images: Tensor,
        labels: Tensor,
        statistics: Statistics | Callable[[], Statistics] | None = None,
        rows: Tensor | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) != len(labels):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)} and labels {tuple(labels.shape)}: needed are uint8 [n, c, h, w] and [n]"
            )
        self.name, self.classes = name, tuple(classes)
        self._images, self._labels = images, labels.to(torch.int64)
        self._rows = torch.arange(len(images)) if rows is None else rows
        self._statistics = statistics
        self.labels = self._labels[self._rows]
        self.image_shape = images.shape[1], images.shape[2], images.shape[3]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self._rows[index]
        return self._images[row], int(self._labels[row])

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [k, c, h, w] and labels int64 [k] of these indices."""
        return self._images[self._rows[indices]], self.labels[indices]

    def subset(self, indices: Tensor | Sequence[int]) -> Images:
        rows = self._rows[self._indices(indices)]
        return Images(self.name, self.classes, self._images, self._labels, lambda: self.statistics, rows)

    def fingerprint(self) -> str:
        """sha256 over class names, shape, labels and pixels."""
        sha = hashlib.sha256(repr((self.classes, len(self), self.image_shape)).encode())
        sha.update(self.labels.numpy().tobytes())
        for rows in self._rows.split(4096):
            sha.update(self._images[rows].numpy().tobytes())
        return sha.hexdigest()

    @property
    def statistics(self) -> Statistics:
        if self._statistics is None:
            self._statistics = _measured(self._images[rows] for rows in self._rows.split(4096))
        return self._statistics() if callable(self._statistics) else self._statistics


class ImageFiles(ImageDataset):
    """Images that stay in their files: paths below `root`, read one by one.

    A picture becomes `image_shape` by resizing its shorter side to `resize` pixels and cropping the centre; without `resize` it must
    have that size already.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        root: Path,
        paths: np.ndarray,
        labels: Tensor,
        image_shape: tuple[int, int, int],
        resize: int | None,
        statistics: Statistics | Callable[[], Statistics] | None = None,
    ) -> None:
        self.name, self.classes, self.root = name, tuple(classes), root
        self.paths = paths  # relative, bytes: one buffer, which worker processes share without copying it
        self.labels, self.image_shape, self.resize = labels, image_shape, resize
        self._statistics = statistics

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read_one(index, None), int(self.labels[index])

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(self.paths[index])

    def read_one(self, index: int, crop: Callable[[Image.Image, tuple[int, int]], Image.Image] | None) -> Tensor:
        """An image, uint8 [c, h, w]; `crop(picture, (h, w))` takes the place of resizing and cropping the centre.

        Raises ValueError, with the file's name, when it cannot be decoded or has not the size of the others.
        """
        channels, height, width = self.image_shape
        picture = _decode(self.path(index), channels)
        if crop is not None:
            picture = crop(picture, (height, width))
        elif self.resize is not None:
            picture = _centre(picture, self.resize, (height, width))
        elif picture.size != (width, height):
            sizes = f"{picture.width}x{picture.height}, not {width}x{height} as the first training image"
            raise ValueError(f"image {self.path(index)} is {sizes}: make all of one size, or have them resized (--image-size PIXELS)")
        return _to_tensor(picture)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageFiles:
        indices = self._indices(indices)
        shape = (self.image_shape, self.resize, lambda: self.statistics)
        return ImageFiles(self.name, self.classes, self.root, self.paths[indices.numpy()], self.labels[indices], *shape)

    def fingerprint(self) -> str:
        """sha256 over class names, shape, and the relative path, size in bytes and label of every file."""
        sha = hashlib.sha256(repr((self.classes, len(self), self.image_shape, self.resize)).encode())
        for index, (path, label) in enumerate(zip(self.paths.tolist(), self.labels.tolist(), strict=True)):
            sha.update(path + f":{self.path(index).stat().st_size}:{label};".encode())
        return sha.hexdigest()

    @property
    def statistics(self) -> Statistics:
        """Measured on at most 4096 images, evenly spaced over the file list, unless they were given."""
        if self._statistics is None:
            step = -(-len(self) // 4096)
            self._statistics = _measured(image.unsqueeze(0) for image in _parallel(lambda i: self[i][0], range(0, len(self), step)))
        return self._statistics() if callable(self._statistics) else self._statistics


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, *, train: bool = True, image_size: int | None = None, download: bool = False
) -> ImageDataset:
    """The training or the test set of `digits`, `cifar10`, `cifar100`, `imagenet16-120`, `imagenet` or `folder`.

    - digits: scikit-learn's 1797 embedded grey pictures of 8x8; the first 1437 train, the last 360 test; no `root`.
    - cifar10, cifar100: torchvision's files below `root`, fetched there with `download`.
    - imagenet16-120: `root/train_data_batch_1` to `_10` and `root/val_data` of ImageNet16, of which the first 120 classes.
    - imagenet: `root/train/<class>/*` and `root/val/<class>/*`, read from the files; the shorter side resized to 8/7 of
      `image_size` (224), then the centre cropped (256 and 224).
    - folder: any `root/train/<class>/*.jpg` with `root/test` or `root/val` beside it. Pictures must be of one size, or
      `image_size` is given: the shorter side is resized to it and the centre cropped. One channel where the first
      training image of every class is grey, else three; a test set takes size and channels of its training set. Up
      to 2 GiB of pixels are decoded into memory.

    Raises FileNotFoundError when something is missing, ValueError when it is unusable; both name it.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known are {', '.join(DATASETS)}")
    if image_size is not None and (name not in ("imagenet", "folder") or image_size < 1):
        raise ValueError(f"image_size is {image_size} for {name}: it is a number of pixels, for the datasets folder and imagenet only")
    if download and name not in ("cifar10", "cifar100"):
        raise ValueError(f"download is possible for cifar10 and cifar100 only, not for {name}")
    if name == "digits":
        return _digits(train)
    if root is None:
        raise ValueError(f"dataset {name} needs to know where it lies: give its folder (--data PATH)")
    root = Path(root)
    if name in ("cifar10", "cifar100"):
        return _cifar(name, root, train, download)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: give the one where the dataset {name} lies (--data PATH)")
    if name == "imagenet16-120":
        return Images(
            name,
            [str(label) for label in range(1, imagenet16.CLASSES + 1)],
            *imagenet16.read_imagenet16(root, train),
            imagenet16.STATISTICS,
        )
    return _folder(name, root, train, image_size)


def _digits(train: bool) -> Images:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(data.target)
    part = slice(DIGITS_TRAIN) if train else slice(DIGITS_TRAIN, None)
    return Images("digits", [str(name) for name in data.target_names], images[part].clone(), labels[part])


def _cifar(name: str, root: Path, train: bool, download: bool) -> Images:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        data = kind(root, train=train, download=download)
    except OSError as error:
        raise OSError(f"{name} could not be fetched into {root} ({error}): check the network, or put torchvision's files there") from error
    except RuntimeError as error:  # torchvision's "not found or corrupted"
        what = f"no complete {name} in {root} ({kind.base_folder} is missing or damaged)"
        raise FileNotFoundError(f"{what}: give its folder (--data PATH) or fetch it (--download)") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(name, data.classes, images, torch.tensor(data.targets), CIFAR10_STATISTICS if name == "cifar10" else CIFAR100_STATISTICS)


def _folder(name: str, root: Path, train: bool, image_size: int | None) -> ImageDataset:
    classes = _classes(root / "train")
    part = root / "train"
    if not train:
        if not (tests := [root / test for test in ("test", "val") if (root / test).is_dir()]):
            raise FileNotFoundError(f"{root} holds neither test/ nor val/: needed is one of them, with a folder of images per class")
        part = tests[0]
        if unknown := sorted(set(_classes(part)) - set(classes)):
            raise ValueError(f"{part} holds the class {unknown[0]!r}, which {root / 'train'} does not hold")
    paths, labels = [], []
    for label, name_of_class in enumerate(classes):
        found = _images_below(part / name_of_class)
        if not found and (train or (part / name_of_class).is_dir()):
            raise ValueError(f"folder {part / name_of_class} holds no images ({', '.join(EXTENSIONS)}): fill it or remove it")
        paths += [os.fsencode(path.relative_to(root)) for path in found]
        labels += [label] * len(found)
    where = (root, np.array(paths, dtype=np.bytes_), torch.tensor(labels))
    if name == "imagenet":
        size = image_size or 224
        return ImageFiles(name, classes, *where, (3, size, size), round(size * 8 / 7), IMAGENET_STATISTICS)
    firsts = [path for name_of_class in classes for path in _images_below(root / "train" / name_of_class)[:1]]
    if not firsts:
        raise ValueError(f"{root / 'train'} holds no images ({', '.join(EXTENSIONS)})")
    looked = [_look(path) for path in firsts]
    channels = 1 if all(grey for _, grey in looked) else 3
    height, width = (image_size, image_size) if image_size else looked[0][0][::-1]
    files = ImageFiles(name, classes, *where, (channels, height, width), image_size)
    if len(files) * channels * height * width > MEMORY_LIMIT:
        return files
    images = torch.empty(len(files), channels, height, width, dtype=torch.uint8)
    pixels = images.numpy()  # an assignment costs half of a tensor's

    def fill(index: int) -> None:
        pixels[index] = files.read_one(index, None).numpy()

    for _ in _parallel(fill, range(len(files))):
        pass
    return Images(name, classes, images, files.labels)


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: needed is {folder.name}/<class>/*.jpg in {folder.parent}")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} holds no class folders: needed is {folder.name}/<class>/*.jpg in {folder.parent}")
    if folder.name == "train" and len(names) == 1:
        raise ValueError(f"{folder} holds one class only, {names[0]!r}: needed are two or more")
    return names


def _images_below(folder: Path) -> list[Path]:
    """Pictures at any depth, also behind links; a link to a folder above itself is not followed."""
    found: list[Path] = []

    def walk(where: str, above: frozenset[tuple[int, int]]) -> None:
        status = os.stat(where)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(where) as entries:
            for entry in entries:
                if entry.is_dir():
                    walk(entry.path, above | {here})
                elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                    if not entry.is_file() and os.path.exists(entry.path):  # reading it might wait for ever
                        raise ValueError(f"image {entry.path} is a pipe, a socket or a device, no file: remove it")
                    found.append(Path(entry.path))

    if folder.is_dir():
        walk(os.fspath(folder), frozenset())
    return sorted(found)


def _look(path: Path) -> tuple[tuple[int, int], bool]:
    """Size (w, h) and whether grey, from a picture's header."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.size, picture.mode in ("1", "L")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _decode(path: Path, channels: int) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode == "F" or picture.mode.startswith("I"):
                raise ValueError(f"image {path} has pixels of more than 8 bits (mode {picture.mode}): convert it to 8 bits")
            if channels == 1 and picture.mode not in ("1", "L"):
                raise ValueError(f"image {path} is coloured (mode {picture.mode}) where the first ones are grey: make them alike")
            return picture.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"image {path} cannot be read ({' '.join(str(error).split())}): repair or remove it"


def _centre(picture: Image.Image, resize: int, size: tuple[int, int]) -> Image.Image:
    """Shorter side to `resize` pixels, then the middle `size` (h, w), as torchvision's Resize and CenterCrop."""
    from torchvision.transforms import v2

    return v2.functional.center_crop(v2.functional.resize(picture, [resize]), list(size))


def _to_tensor(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def _parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[function(item) for item in items]` on all cores; the first error ends it."""
    with ThreadPoolExecutor() as pool:
        chunk = 64
        parts = [items[start : start + chunk] for start in range(0, len(items), chunk)]
        futures = [pool.submit(lambda part: [function(item) for item in part], part) for part in parts]
        try:
            return [result for future in futures for result in future.result()]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _measured(chunks: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation per channel, exact: from counts of the 256 values. A constant channel gets deviation 1."""
    counts = torch.zeros(0, 256, dtype=torch.int64)
    for chunk in chunks:
        found = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in chunk.unbind(1)])
        counts = counts + found if len(counts) else found
    share = counts.double() / counts.sum(1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ value
    std = (share * (value - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())
