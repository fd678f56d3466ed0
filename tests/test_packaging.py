"""What is shipped: the sdist builds, and the wheel works in an environment that never saw the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.timeout(900)
def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pamkd/_C.so", "pamkd/kernels/__init__.py", "pamkd/py.typed", "pamkd/ops/__init__.py"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "pamkd").rglob("*.py") if "kernels" not in path.parts} <= names
    assert not [name for name in names if name.split("/")[0] in ("kernels", "tests", "bench", "csrc")]

    run(sys.executable, "-m", "venv", "--without-pip", "clean", cwd=tmp_path)
    python = tmp_path / "clean" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # PyTorch and the other dependencies are borrowed; an editable pamkd does not come along, because .pth files of a
    # folder that was itself added by a .pth file are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import torch, pamkd, pamkd.kernels, pamkd._host; from pamkd.ops import grs_loss\n"
        "e = torch.randn(8, 3); g = torch.arange(8).view(2, 4); print(pamkd.__file__); print(grs_loss(e, e, g[:1], g[1:]).item())"
    )
    where, loss = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(site) and float(loss) >= 0
    assert "usage: pamkd" in run(tmp_path / "clean" / "bin" / "pamkd", "--help", cwd=tmp_path)
