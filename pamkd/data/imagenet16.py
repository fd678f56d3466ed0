"""The files of ImageNet16 (Chrabaszcz et al. 2017), of whose first 120 classes NAS-Bench-201 makes ImageNet16-120."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSES = 120
SIZE = 16
STATISTICS = (122.68 / 255, 116.66 / 255, 104.01 / 255), (63.22 / 255, 61.26 / 255, 65.09 / 255)
TRAIN, TEST = tuple(f"train_data_batch_{i}" for i in range(1, 11)), ("val_data",)


def read_imagenet16(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 3, 16, 16] and labels [n] from 0 of the training or the test files in `root`.

    Raises FileNotFoundError when one is missing, ValueError when it holds anything else; both name it.
    """
    images, labels = [], []
    for path in (root / name for name in (TRAIN if train else TEST)):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: needed are {TRAIN[0]} to {TRAIN[-1]} and {TEST[0]} of ImageNet16")
        try:
            with path.open("rb") as file:
                content = _Arrays(file, encoding="latin1").load()
            pixels, numbers = content["data"].reshape(-1, 3, SIZE, SIZE), np.asarray(content["labels"], dtype=np.int64)
            if numbers.size and numbers.min() < 1:
                raise ValueError(f"a label is {numbers.min()}; the first one is 1")
            kept = numbers <= CLASSES
            images.append(torch.from_numpy(pixels[kept]))
            labels.append(torch.from_numpy(numbers[kept] - 1))
        except Exception as error:  # whatever a damaged pickle leads to
            raise ValueError(f"{path} is no file of ImageNet16: {error!r}") from error
    return torch.cat(images), torch.cat(labels)


class _Arrays(pickle.Unpickler):
    """Reads containers, numbers and NumPy arrays, and executes nothing else."""

    ALLOWED = frozenset((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")) | {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
