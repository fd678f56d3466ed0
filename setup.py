"""Package list and the call of CMake; CMakeLists.txt describes the build, pyproject.toml the metadata."""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Both modules come from one CMake build; the second extension is listed so that the wheel carries it."""

    def get_ext_filename(self, name: str) -> str:
        if name.endswith("_C"):  # operations contain no Python symbols: no interpreter tag
            return name.replace(".", os.sep) + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, ext: Extension) -> None:
        if not ext.name.endswith("_C"):
            return  # built together with _C
        try:
            import pybind11
            import torch
            from torch.utils import cpp_extension
        except ImportError as error:
            raise SystemExit(
                f"pamkd is built against the PyTorch that you run, and {error.name} is not installed: "
                "pip install torch pybind11 ninja, then pip install --no-build-isolation ."
            ) from error
        # One folder for in-place builds, editable installs and wheels, so that each compiles only what changed.
        sanitize = os.getenv("PAMKD_SANITIZE", "")
        build = ROOT / "build" / ("cmake-sanitize" if sanitize else f"cmake-{sys.implementation.cache_tag}")
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            "-GNinja",
            f"-DPAMKD_OUTPUT={Path(self.get_ext_fullpath(ext.name)).resolve().parent}",
            f"-DPAMKD_TORCH_INCLUDE={';'.join(cpp_extension.include_paths())}",
            f"-DPAMKD_TORCH_LIB={';'.join(cpp_extension.library_paths())}",
            f"-DPAMKD_TORCH_VERSION={torch.__version__}",
            f"-DPAMKD_TORCH_CUDA={torch.version.cuda or ''}",
            f"-DPAMKD_CUDA={os.getenv('PAMKD_CUDA', 'AUTO')}",
            f"-DPAMKD_SANITIZE={sanitize}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        try:
            subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *arguments])
            subprocess.check_call(["cmake", "--build", str(build)])
        except FileNotFoundError as error:
            raise SystemExit("pamkd is built with CMake 3.24 or later, which is not on PATH: pip install cmake ninja") from error


setup(
    version=re.search(r'__version__ = "(.+)"', (ROOT / "pamkd/version.py").read_text())[1],
    packages=[*find_packages(include=["pamkd", "pamkd.*"]), "pamkd.kernels"],
    package_dir={"pamkd.kernels": "kernels"},
    ext_modules=[Extension("pamkd._C", []), Extension("pamkd._host", [])],
    cmdclass={"build_ext": CMakeBuild},
)
