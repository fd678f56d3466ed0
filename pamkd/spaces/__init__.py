"""Search spaces by name."""

from __future__ import annotations

from pamkd.spaces.darts import Darts
from pamkd.spaces.supernet import Supernet

SPACES: dict[str, type[Supernet]] = {"darts": Darts}
