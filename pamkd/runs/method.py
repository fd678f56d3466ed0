"""From a search's options to its method."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from pamkd.distributed import ALL_HERE, Rows
from pamkd.methods import METHODS
from pamkd.methods.method import Method
from pamkd.transfer import TRANSFERS
from pamkd.trilevel.passes import Passes
from pamkd.trilevel.sgd import SGD

# Options of a search that belong to its method or transfer, under the names that these have for them.
OPTIONS = {
    "distill_weight": "weight",
    "temperature": "temperature",
    "kdcl_rule": "rule",
    "okddip_leader": "leader",
    "ramp_epochs": "ramp_epochs",
    "adversarial_lr": "adversarial_lr",
    "adversarial_decay": "adversarial_decay",
    "cream_start": "cream_start",
    "board_size": "board_size",
    "board_images": "board_images",
    "meta_every": "meta_every",
    "meta_lr": "meta_lr",
    "transfer": "transfer",
    "epsilon": "epsilon",
    "group_size": "group_size",
    "group_pairs": "pairs",
    "group_reduction": "reduction",
}


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()


SHARED = _fields(Method)


def readers(method: str, transfer: str | None) -> set[str]:
    """The options of `OPTIONS` that this method, or the transfer inside it, reads."""
    names = _fields(METHODS[method]) - SHARED
    if "transfer" in names:
        names |= _fields(TRANSFERS[transfer or "grs"])
    return {option for option, name in OPTIONS.items() if name in names}


def method_of(config: Any, rows: Rows = ALL_HERE) -> Method:
    """The method of a `SearchConfig`, for the learners of these rows; options that are None keep the method's own defaults."""
    given = {name: getattr(config, option) for option, name in OPTIONS.items() if getattr(config, option) is not None}
    kind = METHODS[config.method]
    options = _of(kind, given)
    if "transfer" in _fields(kind):
        transfer = TRANSFERS[config.transfer or "grs"]
        options["transfer"] = transfer(**_of(transfer, given))
    return kind(
        passes=Passes(
            static=config.cuda_graphs,
            stacked=config.stacks,
            precision=torch.bfloat16 if config.precision == "bfloat16" else None,
        ),
        sgd=SGD(config.momentum, config.weight_decay, config.clip, config.nesterov),
        fd_step=config.fd_step,
        order=config.order,
        exact=config.hypergradient == "exact",
        seed=config.seed,
        rows=rows,
        **options,
    )


def _of(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in _fields(kind) and name != "transfer"}
