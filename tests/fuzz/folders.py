"""Folders of pictures as people have them: each is read, or one sentence names the file or folder that is wrong.

Run by tests/fuzz/test_in_children.py.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pamkd.data import Batches, load_dataset
from tests.fuzz.child import examples, trace

pytestmark = pytest.mark.filterwarnings("ignore")
MODES = ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F")
SIZES = ((9, 12), (1, 1), (1, 30), (64, 3))
NAMES = (
    "a.png",
    "b.jpg",
    "katze.gif",
    "猫 🐈.png",
    "x\ny.png",
    ".hidden.png",
    "no extension",
    "UPPER.PNG",
    "z.tiff",
    "w.webp",
    "q.bmp",
    "p.ppm",
)


def write(path: Path, mode: str, size: tuple[int, int], frames: int) -> None:
    """A picture, in the format of its extension where that can hold the mode."""
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).convert("L").convert(mode) if mode in ("I;16", "I", "F", "1", "LA") else Image.fromarray(noise)
    try:
        picture = picture.convert(mode)
        picture.save(path, **({"save_all": True, "append_images": [picture.rotate(90)] * (frames - 1)} if frames > 1 else {}))
    except (OSError, ValueError, KeyError):
        path.write_bytes(noise.tobytes())


def spoil(path: Path, how: str, where: int) -> None:
    data = path.read_bytes() if path.is_file() else b""
    if how == "cut":
        path.write_bytes(data[: where % (len(data) + 1)])
    elif how == "flipped" and data:
        at = where % len(data)
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    elif how == "folder":
        path.unlink(missing_ok=True)
        path.mkdir()
    elif how == "loop":
        path.unlink(missing_ok=True)
        path.symlink_to(path.name)
    elif how == "parent loop":
        path.unlink(missing_ok=True)
        path.symlink_to(path.parent, target_is_directory=True)
    elif how == "gone":
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere.png")
    elif how == "unreadable":
        path.chmod(0)
        if os.access(path, os.R_OK):  # the superuser's; of this file nobody can read the first byte
            path.unlink()
            path.symlink_to("/proc/self/mem")
    elif how == "pipe":
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")


pictures = st.lists(
    st.tuples(
        st.sampled_from(
            ["train/cat", "train/dog", "train/dog/deeper", "test/cat", "test/horse", "val/dog", "train", "train/.git", "train/ß"]
        ),
        st.sampled_from(NAMES),
        st.sampled_from(MODES),
        st.sampled_from(SIZES),
        st.sampled_from([1, 1, 1, 3]),
        st.sampled_from(["", "", "", "cut", "flipped", "folder", "loop", "parent loop", "gone", "unreadable", "pipe", "empty"]),
        st.integers(0, 2000),
    ),
    max_size=6,
)


@examples(100)
@given(pictures, st.sampled_from([None, 1, 8]), st.booleans(), st.booleans(), st.booleans())
def test_any_folder_is_read_or_named(files, image_size, train, lazy, whole):
    with tempfile.TemporaryDirectory() as folder:
        try_folder(Path(folder) / "ordner", files, image_size, train, lazy, whole)


def try_folder(root: Path, files: list[tuple], image_size: int | None, train: bool, lazy: bool, whole: bool) -> None:
    for folder, name, mode, size, frames, how, where in (*files, *(HALVES if whole else ())):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.is_dir() or path.is_fifo():
            continue
        write(path, mode, size, frames)
        spoil(path, how, where)
    trace((files, image_size, train, lazy, whole))
    with pytest.MonkeyPatch.context() as patch:
        if lazy:
            patch.setattr("pamkd.data.datasets.MEMORY_LIMIT", 0)
        try:
            data = load_dataset("folder", root, train=train, image_size=image_size)
            batches = list(Batches(data, None, 2, seed=0, stream="train", drop_last=False).epoch(0))
            assert len(data.mean) == data.image_shape[0]
        except (ValueError, OSError) as error:
            assert "\n" not in str(error).replace("x\ny.png", "") and os.fspath(root) in str(error), error
            return
    assert sum(len(labels) for _, labels in batches) == len(data) > 0
    assert all(images.shape[1:] == data.image_shape and labels.max() < len(data.classes) for images, labels in batches)


# Two classes of two sound pictures each.
HALVES = [
    (f"{part}/{name}", f"{i}.png", "RGB", (9, 12), 1, "", 0) for part in ("train", "test") for name in ("cat", "dog") for i in range(2)
]


def test_a_picture_of_a_hundred_million_pixels(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (10_000, 10_000)).save(tmp_path / "train" / name / "large.png")
    assert load_dataset("folder", tmp_path, image_size=8).image_shape == (1, 8, 8)


def test_thousands_of_classes(tmp_path):
    for i in range(300):
        (tmp_path / "train" / f"class {i:04}").mkdir(parents=True)
        Image.new("L", (2, 2), i % 256).save(tmp_path / "train" / f"class {i:04}" / "x.png")
    assert len(load_dataset("folder", tmp_path).classes) == 300


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "train").write_text("no folder")
    with pytest.raises(OSError, match="train"):
        load_dataset("folder", tmp_path)
    with pytest.raises(OSError, match="there is no folder"):
        load_dataset("folder", tmp_path / "train")
