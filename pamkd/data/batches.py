"""Batches of a dataset, each a function of (seed, stream, epoch, step) alone: starting anywhere is exact and costs nothing."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pamkd.data.augment import Augment
from pamkd.data.datasets import ImageFiles, Images
from pamkd.data.randomness import derived_seed, generator
from pamkd.distributed import WHOLE, Columns

Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # of a batch of images [n, c, h, w]


class Batches:
    """Batches (images [n, c, h, w], labels int64 [n]) on `device` of a map-style dataset of (image, label).

    `dataset` is an `ImageDataset` or any other with `__len__` and `__getitem__`, whose images are tensors [c, h, w] or [h, w],
    NumPy arrays [h, w, c], [c, h, w] or [h, w], or PIL images. `indices` selects from it (None: everything). uint8 images arrive
    at `augment(images, generator)` as they are; without an augmentation they are divided by 255, and floating ones left alone.

    The order of epoch e is drawn from (seed, stream, e), the augmentation of its step s from (seed, stream, e, s). Transforms of the
    user's dataset that draw from the global generators of PyTorch, NumPy or Python get (seed, stream, e, position) as seed, whatever the
    number of `workers`, the processes that read items of datasets that are not in memory.

    Where `columns` split batches, images are this column's part of each batch, labels those of the whole. A part alone is read, and
    augmented with the random numbers of the whole; only an augmentation of the user's own, which may mix images, sees whole batches.

    Raises ValueError for an empty dataset, a batch size below 1, one larger than the data with `drop_last`, and on reading for
    images of unlike shapes or unusable types and for labels that are not below `classes`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: Tensor | Sequence[int] | None,
        batch_size: int,
        *,
        seed: int,
        stream: str,
        classes: int | None = None,
        augment: Augmentation | None = None,
        device: str | torch.device = "cpu",
        workers: int = 0,
        drop_last: bool = True,
        shuffle: bool = True,
        columns: Columns = WHOLE,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"the {stream} dataset is a {type(dataset).__name__}: needed is a map-style one, with __len__ and __getitem__")
        if indices is not None and isinstance(dataset, (Images, ImageFiles)):
            dataset, indices = dataset.subset(indices), None
        self._indices = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        count = len(self._indices)
        if count == 0:
            raise ValueError(f"the {stream} dataset is empty: needed is at least one image")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: needed is 1 or more")
        if drop_last and batch_size > count:
            raise ValueError(f"batch_size is {batch_size} and the {stream} dataset has {count} images: needed is {count} at most")
        if workers < 0:
            raise ValueError(f"workers is {workers}: needed is 0 or more")
        if isinstance(augment, Augment) and augment.resized_crop and not isinstance(dataset, ImageFiles):
            raise ValueError(f"resized_crop needs a dataset read from files, such as imagenet; {stream} is a {type(dataset).__name__}")
        self._dataset, self._augment, self._device = dataset, augment, torch.device(device)
        self._seed, self._stream, self._classes = seed, stream, classes
        self._size, self._workers, self._shuffle, self._columns = batch_size, workers, shuffle, columns
        self._steps = count // batch_size if drop_last else -(-count // batch_size)
        self._idle: list[_Loader] = []  # whose workers wait for the next epoch

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._steps

    def epoch(self, epoch: int, start_step: int = 0, stride: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `stride`-th batch of an epoch from `start_step` on; none when it equals `len(self)`.

        Raises ValueError for a start beyond that, and as the class says.
        """
        if not 0 <= start_step <= self._steps:
            raise ValueError(f"start_step is {start_step}: an epoch of the {self._stream} dataset has {self._steps} steps")
        order = self._indices
        if self._shuffle:
            order = order[torch.randperm(len(order), generator=generator(self._seed, self._stream, "order", epoch))]
        steps, columns, dataset, augment = range(start_step, self._steps, stride), self._columns, self._dataset, self._augment
        early = augment is None or isinstance(augment, Augment)
        places = torch.arange(len(order)).split(self._size)
        places = [columns.part(places[step]) if early else places[step] for step in steps]
        read = (dataset.read(order[at]) for at in places) if isinstance(dataset, Images) else self._read_items(order, places, epoch)
        for step, (images, labels) in zip(steps, read, strict=True):
            if self._classes is not None and labels.max() >= self._classes:
                raise ValueError(
                    f"a label of the {self._stream} dataset is {labels.max()}: needed is a number below {self._classes}, the classes"
                )
            images, labels = (part.to(self._device, non_blocking=True) for part in (images, labels))
            random = generator(self._seed, self._stream, "augment", epoch, step)
            if isinstance(augment, Augment):
                images = augment(images, random, columns)
            elif augment is not None:
                images = columns.part(augment(images, random))
            elif images.dtype == torch.uint8:
                images = images.float().div_(255)
            yield images, columns.group.all_gather(labels).flatten() if early else labels

    def forever(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch after epoch, after the first `start` batches of the whole stream."""
        epoch, step = divmod(start, self._steps)
        while True:
            yield from self.epoch(epoch, step)
            epoch, step = epoch + 1, 0

    def _read_items(self, order: Tensor, places: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        keys = []
        for batch in places:
            seeds = (derived_seed(self._seed, self._stream, "item", epoch, place) for place in batch.tolist())
            keys.append(list(zip(order[batch].tolist(), seeds, strict=True)))
        # Two epochs that are read at the same time have a loader each; one that is left early takes its unread batches with it.
        loader = self._idle.pop() if self._idle else _Loader(_Items(self._dataset, self._augment), self._workers, self._device)
        try:
            for batch in loader.read(keys):
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            self._idle.append(loader)


def number_of_classes(dataset: Dataset[Any], classes: int | None) -> int:
    """`classes`, or the number that the dataset itself names. Raises ValueError where neither says it."""
    if classes is not None:
        return classes
    if not hasattr(dataset, "classes"):
        raise ValueError("the training dataset has no attribute `classes`: pass run(..., classes=NUMBER)")
    return len(dataset.classes)


class _Loader:
    """A DataLoader whose workers outlive an epoch: each `read` gives it the keys of its batches."""

    def __init__(self, items: _Items, workers: int, device: torch.device) -> None:
        self._keys: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            items,
            batch_sampler=self._keys,
            collate_fn=_stack,
            generator=torch.Generator(),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
        )

    def read(self, keys: list[list[tuple[int, int]]]) -> Iterator[Any]:
        self._keys[:] = keys
        return iter(self._loader)


class _Items(Dataset["tuple[int, Tensor, int] | ValueError"]):
    """Items of a dataset under the keys (index, seed). A ValueError is returned: raised in a worker it would arrive as a traceback."""

    def __init__(self, dataset: Dataset[Any], augment: Any) -> None:
        self.dataset = dataset
        self.crop = augment.picture if isinstance(augment, Augment) and augment.resized_crop else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor, int] | ValueError:
        index, seed = key
        try:
            with _seeded(seed):
                if isinstance(self.dataset, ImageFiles):
                    return index, self.dataset.read_one(index, self.crop), int(self.dataset.labels[index])
                return index, *_checked(self.dataset[index], index)
        except ValueError as error:
            return error


def _checked(item: Any, index: int) -> tuple[Tensor, int]:
    """(image [c, h, w], label) of a user's item."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(f"item {index} of the dataset is a {type(item).__name__}: needed is a pair (image, label)")
    image, label = item
    try:
        number = int(label)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or number != label:
        raise ValueError(f"the label of item {index} is {label!r}: needed is a class number, 0 or more")
    return _image_tensor(image, index), number


def _image_tensor(image: Any, index: int) -> Tensor:
    from PIL import Image

    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"the image of item {index} has pixels of more than 8 bits (mode {image.mode}): convert it to 8 bits")
        image = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] in (1, 3):
            image = image.transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        raise ValueError(f"the image of item {index} is a {type(image).__name__}: needed is a tensor, a NumPy array or a PIL image")
    if image.dim() == 2:
        image = image.unsqueeze(0)
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"the image of item {index} has shape {tuple(image.shape)}: needed is [c, h, w] with 1 or 3 channels, or [h, w]")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"the image of item {index} is {image.dtype}: needed is uint8 (0 .. 255) or a floating type (0 .. 1)")
    return image


def _stack(given: list[tuple[int, Tensor, int] | ValueError]) -> tuple[Tensor, Tensor] | ValueError:
    items: list[tuple[int, Tensor, int]] = []
    for item in given:
        if isinstance(item, ValueError):
            return item
        items.append(item)
    first = items[0]
    for index, image, _ in items:
        if image.shape != first[1].shape or image.dtype != first[1].dtype:
            kinds = f"{tuple(image.shape)} {image.dtype}, not {tuple(first[1].shape)} {first[1].dtype} as that of item {first[0]}"
            return ValueError(f"the image of item {index} is {kinds}: needed are images of one shape and dtype")
    return torch.stack([image for _, image, _ in items]), torch.tensor([label for *_, label in items])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of PyTorch (CPU), NumPy and Python seeded, and put back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, a batch system's signal every one of a job; the main one decides when the workers end."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
