"""The data of a search: a training set cut in two, augmented as its dataset needs. The test set is not read."""

from __future__ import annotations

from typing import Any, NamedTuple

from pamkd.data import IMAGENET_SHARES, Augment, ImageDataset, halves, load_dataset
from pamkd.runs.augmentation import augmentations
from pamkd.runs.options import FolderOptions


class SearchData(NamedTuple):
    """Both halves of a training set, and what is done with their pictures."""

    train: ImageDataset  # trains weights
    valid: ImageDataset  # validates, and trains architectures
    augment: Augment
    plain: Augment
    facts: dict[str, Any]  # for the manifest


def load_halves(config: FolderOptions, seed: int, train_portion: float) -> SearchData:
    """The training set of the options, cut by the seed: `train_portion` of it trains weights. Raises as `load_dataset`."""
    dataset = load_dataset(config.dataset, config.data, train=True, image_size=config.image_size, download=config.download)
    train, valid = halves(dataset.labels, seed, IMAGENET_SHARES if config.dataset == "imagenet" else train_portion)
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
