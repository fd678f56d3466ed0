"""The data of a search: a training set cut in two, augmented as its dataset needs. The test set is not read."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from pamkd.data import IMAGENET_SHARES, Augment, ImageDataset, halves, load_dataset
from pamkd.runs.augmentation import augmentations


class SearchData(NamedTuple):
    train: ImageDataset  # trains weights
    valid: ImageDataset  # validates, and trains architectures
    augment: Augment
    plain: Augment
    facts: dict[str, Any]  # for the manifest


class DataOptions(Protocol):
    """`RunOptions` with `seed` and `train_portion`."""

    seed: int
    train_portion: float


def load_halves(config: DataOptions) -> SearchData:
    dataset = load_dataset(config.dataset, config.data, train=True, image_size=config.image_size, download=config.download)
    train, valid = halves(dataset.labels, config.seed, IMAGENET_SHARES if config.dataset == "imagenet" else config.train_portion)
    augment, plain = augmentations(config, dataset)
    facts = {
        "dataset": {
            "name": config.dataset,
            "fingerprint": dataset.fingerprint(),
            "classes": list(dataset.classes),
            "train": len(train),
            "valid": len(valid),
            "image": list(dataset.image_shape),
        }
    }
    return SearchData(dataset.subset(train), dataset.subset(valid), augment, plain, facts)
