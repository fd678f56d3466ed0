"""ImageNet16-120 from files in the published form."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from pamkd.data import load_dataset
from pamkd.data.imagenet16 import TEST, TRAIN


@pytest.fixture
def root(tmp_path):
    """Seven pictures in each file, the label of picture i of file f being 20 i + f; protocol 2, as the published files."""
    random = np.random.default_rng(0)
    for number, name in enumerate((*TRAIN, *TEST), 1):
        data = random.integers(0, 256, (7, 768), dtype=np.uint8)
        content = {"data": data, "labels": [20 * i + number for i in range(7)], "mean": data.mean(0)}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def test_its_first_classes_are_kept(root):
    train, test = load_dataset("imagenet16-120", root), load_dataset("imagenet16-120", root, train=False)
    assert (len(train), len(test), train.image_shape, len(train.classes)) == (60, 6, (3, 16, 16), 120)
    assert train.labels[:7].tolist() == [0, 20, 40, 60, 80, 100, 1] and test.labels.tolist() == [10, 30, 50, 70, 90, 110]
    pixels = pickle.loads((root / TRAIN[1]).read_bytes())["data"][2].reshape(3, 16, 16)
    assert torch.equal(train[8][0], torch.from_numpy(pixels)) and train[8][1] == 41
    assert train.mean == pytest.approx((0.481098, 0.457490, 0.407882), abs=1e-6)


class Code:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "there is no file .*train_data_batch_3: needed are train_data_batch_1 to train_data_batch_10"),
        (b"\x80", ValueError, "train_data_batch_3 is no file of ImageNet16"),
        (pickle.dumps({"labels": [1]}), ValueError, "train_data_batch_3 is no file of ImageNet16: KeyError"),
        (pickle.dumps({"data": np.zeros((1, 768), np.uint8), "labels": Code()}), ValueError, "it asks for (posix|nt).getcwd"),
        (pickle.dumps({"data": np.zeros((1, 700), np.uint8), "labels": [1]}), ValueError, "cannot reshape array of size 700"),
        (
            pickle.dumps({"data": np.zeros((2, 768), np.uint8), "labels": [3, 0]}),
            ValueError,
            "ImageNet16: .*a label is 0; the first",
        ),
    ],
)
def test_other_files(root, content, error, message):
    (root / TRAIN[2]).unlink()
    if content is not None:
        (root / TRAIN[2]).write_bytes(content)
    with pytest.raises(error, match=message):
        load_dataset("imagenet16-120", root)
