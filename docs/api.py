"""The API reference as HTML, from docstrings and types: `python docs/api.py FOLDER`. A warning ends it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import typing
import warnings
from pathlib import Path

import pdoc

import pamkd

PACKAGES = ("ops", "reference", "data", "spaces", "transfer", "trilevel", "methods", "runs")


def modules() -> list[str]:
    """The documented modules, which are imported."""
    names = ["pamkd"]
    for package in PACKAGES:
        found = importlib.import_module(f"pamkd.{package}")
        names += [found.__name__, *(module.name for module in pkgutil.walk_packages(found.__path__, f"{found.__name__}."))]
    for name in names:
        importlib.import_module(name)
    for name in pamkd.__all__:
        getattr(pamkd, name)  # loaded when it is first used: pdoc looks for what is there
    return names


def resolve(module: str) -> None:
    """Fields have the types that their own module names, which pdoc would look for in the module of the class that inherits them."""
    for _, kind in inspect.getmembers(sys.modules[module], inspect.isclass):
        if kind.__module__ == module and dataclasses.is_dataclass(kind):
            kind.__init__.__annotations__ |= {name: hint for name, hint in hints(kind).items() if name in kind.__init__.__annotations__}
        elif kind.__module__ == module and hasattr(kind, "_fields"):
            kind.__new__.__annotations__ |= hints(kind)


def hints(kind: type) -> dict[str, typing.Any]:
    return {name: hint for part in reversed(kind.__mro__[:-1]) for name, hint in typing.get_type_hints(part).items()}


if __name__ == "__main__":
    warnings.simplefilter("error")
    names = modules()
    for name in names:
        resolve(name)
    pdoc.render.configure(docformat="google", math=True)
    pdoc.pdoc("pamkd", *(f"pamkd.{package}" for package in PACKAGES), output_directory=Path(sys.argv[1]))
