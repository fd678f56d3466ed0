"""Neural architecture search with performance-aware mutual knowledge distillation."""

from typing import Any

from pamkd import _ext as _ext  # registers the operations' kernels
from pamkd.version import __version__ as __version__

__all__ = ["Search", "SearchConfig", "SearchResult", "__version__"]


def __getattr__(name: str) -> Any:
    """The search is loaded when it is first used: whoever wants the operations alone does not wait for it."""
    if name in ("Search", "SearchResult"):
        from pamkd.runs import search

        return getattr(search, name)
    if name == "SearchConfig":
        from pamkd.runs.config import SearchConfig

        return SearchConfig
    raise AttributeError(f"module 'pamkd' has no attribute {name!r}")
