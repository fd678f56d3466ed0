"""No distillation: K independent searches, of which the best is kept."""

from __future__ import annotations

from dataclasses import dataclass

from pamkd.methods.one_set import OneSet


@dataclass
class Plain(OneSet):
    """CE_k. With one learner, DARTS."""
