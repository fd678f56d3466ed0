"""A search or an evaluation on several processes: a mesh of learners (rows) and parts of their batches (columns)."""

from __future__ import annotations

from pamkd.distributed.columns import WHOLE, Columns
from pamkd.distributed.mesh import Mesh, is_main_process, open_mesh, started_with_others
from pamkd.distributed.rows import ALL_HERE, Rows

__all__ = ["ALL_HERE", "WHOLE", "Columns", "Mesh", "Rows", "is_main_process", "open_mesh", "started_with_others"]
