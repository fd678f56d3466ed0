"""What a dataset's training and test pictures go through, from the options that a search and an evaluation share."""

from __future__ import annotations

from pamkd.data import Augment, ImageDataset
from pamkd.runs.options import FolderOptions


def augmentations(options: FolderOptions, dataset: ImageDataset, *, color_jitter: bool = False) -> tuple[Augment, Augment]:
    """For training, and for measuring. Where options leave it open: crops and flips, but neither for digits and no padding for imagenet."""
    digits, imagenet = options.dataset == "digits", options.dataset == "imagenet"
    padding = options.crop_padding if options.crop_padding is not None else 0 if digits or imagenet else dataset.image_shape[1] // 8
    flip = options.flip if options.flip is not None else not digits
    pictures = {"resized_crop": imagenet, "color_jitter": color_jitter and imagenet}
    train = Augment(dataset.mean, dataset.std, padding=padding, flip=flip, cutout=options.cutout, **pictures)
    return train, Augment(dataset.mean, dataset.std)
