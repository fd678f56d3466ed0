"""Neural architecture search with performance-aware mutual knowledge distillation."""

from typing import TYPE_CHECKING, Any

from pamkd import _ext as _ext  # registers the operations' kernels
from pamkd.version import __version__ as __version__

if TYPE_CHECKING:
    from pamkd.runs.config import SearchConfig
    from pamkd.runs.search import Search, SearchResult

__all__ = ["Search", "SearchConfig", "SearchResult", "__version__"]


def __getattr__(name: str) -> Any:
    """The search is loaded when it is first used: whoever wants the operations alone does not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'pamkd' has no attribute {name!r}")
    from pamkd.runs import search

    globals()[name] = getattr(search, name)
    return globals()[name]
