"""Search spaces by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pamkd.spaces.darts import Darts
from pamkd.spaces.darts_minus import DartsMinus
from pamkd.spaces.drnas import DrNas, DrNasTopology
from pamkd.spaces.nasbench201 import NasBench201
from pamkd.spaces.pcdarts import PcDarts
from pamkd.spaces.pdarts import PDarts
from pamkd.spaces.prdarts import PrDarts
from pamkd.spaces.robust_darts import RobustDarts
from pamkd.spaces.supernet import Supernet

# Called with `channels`, `cells`, `classes`, `image_channels` and what a space takes of its own.
SPACES: dict[str, Callable[..., Supernet]] = {
    "darts": Darts,
    "darts-minus": DartsMinus,
    "drnas": DrNas,
    "drnas-nasbench201": DrNasTopology,
    "nasbench201": NasBench201,
    "pcdarts": PcDarts,
    "pdarts": PDarts,
    "prdarts": PrDarts,
    "s1": partial(RobustDarts, space="s1"),
    "s2": partial(RobustDarts, space="s2"),
    "s3": partial(RobustDarts, space="s3"),
    "s4": partial(RobustDarts, space="s4"),
}
