"""What is shipped: the sdist builds, and the wheel works, types included, in an environment that never saw the source tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What the pages take as given, and a few lines that hold only where the public functions have the types that they should have.
PROGRAM = """
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pamkd.data import Augmentation
from pamkd.runs.evaluate import Evaluation
from pamkd.spaces.genotype import Genotype
from pamkd.trilevel.passes import Network

train: Dataset[tuple[Tensor, int]]
valid: Dataset[tuple[Tensor, int]]
images: Tensor
task_loss: Tensor
teacher_embedding: Tensor
student_embedding: Tensor
groups_x: Tensor
groups_y: Tensor

{blocks}

found: pamkd.SearchResult = search.run(train, valid, classes=10)
weights_of_a_learner: Tensor = found.learners[0].w
sizes: tuple[int, int] = (found.learners[0].network.num_weights, found.learner)
augment: Augmentation = lambda images, generator: images.flip(3)
error: float = Evaluation(epochs=1).run(found.genotype, train, valid, augment=augment).mean
network: Network = supernet
text: str = supernet.genotype(alphas).describe()
genotype: Genotype = supernet.genotype(alphas)
wrong: int = grs_loss(teacher_embedding, student_embedding, groups_x, groups_y)  # type: ignore[assignment]
search.run(train)  # type: ignore[call-arg]
search.run(train, valid, augment=3)  # type: ignore[arg-type]
"""


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # would lead back to the source tree
    environment["PAMKD_CUDA"] = "OFF"  # packs like the other modules, and takes long to compile
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the unpacked sdist, as an installer without a wheel does it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
        assert {"CMakeLists.txt", "pyproject.toml", "csrc/cpu/level.h", "kernels/__init__.py", "LICENSE", "README.md"} <= names
        assert not [name for name in names if name.endswith((".so", ".pyc"))]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, archive, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment in which the wheel is installed and nothing else; the dependencies are borrowed."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", ".", cwd=folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # An editable pamkd does not come along, because .pth files of a folder that was itself added by a .pth file are not read.
    (purelib(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def purelib(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=python.parent).strip())


@pytest.mark.timeout(900)
def test_wheel_works_in_a_clean_environment(wheel, python, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pamkd/_C.so", "pamkd/kernels/__init__.py", "pamkd/py.typed", "pamkd/_host.pyi", "pamkd/ops/__init__.py"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "pamkd").rglob("*.py") if "kernels" not in path.parts} <= names
    assert not [name for name in names if name.split("/")[0] in ("kernels", "tests", "bench", "csrc")]

    code = (
        "import torch, pamkd, pamkd.kernels, pamkd._host; from pamkd.ops import grs_loss\n"
        "e = torch.randn(8, 3); g = torch.arange(8).view(2, 4); print(pamkd.__file__); print(grs_loss(e, e, g[:1], g[1:]).item())"
    )
    where, loss = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(purelib(python)) and float(loss) >= 0
    assert "usage: pamkd" in run(python.with_name("pamkd"), "--help", cwd=tmp_path)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)


@pytest.mark.timeout(900)
def test_programs_of_the_pages_pass_strict_type_checking(python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(blocks="\n".join([*blocks("README.md"), *blocks("docs/library.md")])))
    own = "\n".join([*blocks("docs/spaces.md"), *blocks("docs/methods.md")])
    (tmp_path / "own.py").write_text(f"# mypy: allow-untyped-defs, allow-untyped-calls\n{own}")
    options = ["--strict", "--config-file", "", "--cache-dir", ROOT / "build" / "typing", "--python-executable", python]
    run(sys.executable, "-m", "mypy", *options, "program.py", "own.py", cwd=tmp_path)
