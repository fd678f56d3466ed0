"""Datasets, their split into halves, augmentation, and batches that are a function of (seed, stream, epoch, step) alone."""

from pamkd.data.augment import Augment
from pamkd.data.batches import Augmentation, Batches, number_of_classes
from pamkd.data.datasets import ImageDataset, ImageFiles, Images, load_dataset
from pamkd.data.randomness import derived_seed, generator
from pamkd.data.split import IMAGENET_SHARES, halves

__all__ = [
    "IMAGENET_SHARES",
    "Augment",
    "Augmentation",
    "Batches",
    "ImageDataset",
    "ImageFiles",
    "Images",
    "derived_seed",
    "generator",
    "halves",
    "load_dataset",
    "number_of_classes",
]
