"""Imports go one way through the layers, and importing the package is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pamkd"

# A module may import from its own layer and from those to the right of it in a chain; `data`, `distributed` and `version` stand aside.
MAY_IMPORT = {
    "reference": set(),
    "distributed": set(),
    "ops": {"reference", "kernels", "_ext"},
    "spaces": {"ops", "reference", "data", "distributed"},
    "data": {"_host", "distributed"},
    "trilevel": {"spaces", "ops", "distributed"},
    "transfer": {"trilevel", "spaces", "ops", "reference", "data", "distributed"},
    "methods": {"transfer", "trilevel", "spaces", "reference", "distributed"},
    "runs": {"methods", "transfer", "trilevel", "spaces", "data", "distributed", "version"},
    "reproduce": {"report", "runs", "methods", "transfer", "trilevel", "spaces", "data"},
    "sweep": {"reproduce", "report", "runs"},
    "report": {"runs", "spaces", "version"},
    "doctor": {"ops", "_ext", "_host", "version"},
    "cli": {"runs", "report", "reproduce", "sweep", "doctor", "trilevel", "distributed", "version"},
    "_ext": {"ops"},
    "__init__": {"_ext", "runs", "version"},
    "__main__": {"cli"},
    "version": set(),
}


def imported(path: Path) -> set[str]:
    """First components below `pamkd` of everything that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("pamkd.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer in MAY_IMPORT, f"give the new layer {layer} its place in MAY_IMPORT"
    assert imported(path) - {layer} <= MAY_IMPORT[layer]


def test_kernels_never_import_the_package():
    for path in (PACKAGE.parent / "kernels").rglob("*.py"):
        assert imported(path) <= {"kernels"}, path


def test_third_party_imports_are_declared():
    """All but Triton, which comes with PyTorch where it can be used, and whose lack is a sentence."""
    declared = set(re.findall(r'"([\w-]+)>=', (PACKAGE.parent / "pyproject.toml").read_text()))
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "nas_201_api": "nas-bench-201"}
    found = set()
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    found -= {"pamkd", "triton", *sys.stdlib_module_names}
    assert {names.get(name, name) for name in found} <= declared


def test_import_is_light():
    """No command-line, plotting or dataset library is loaded, and no device is probed, by `import pamkd`."""
    code = (
        "import torch, sys; torch.cuda.is_available = torch.cuda.device_count = lambda: sys.exit('probed a device')\n"
        "import pamkd, pamkd.ops\n"
        "heavy = ('tyro', 'matplotlib', 'sklearn', 'torchvision', 'triton', 'rich', 'tensorboard')\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
