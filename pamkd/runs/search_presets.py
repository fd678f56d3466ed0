"""Searches with the settings of the papers; docs/spaces.md tells what differs from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pamkd.runs.config import SearchConfig

_CIFAR10 = SearchConfig(dataset="cifar10", data=Path("data"), crop_padding=4)
_FIRST = replace(_CIFAR10, order="first")
_PCDARTS = replace(_FIRST, space="pcdarts", batch_size=256, lr=0.1, lr_min=0.0, arch_lr=6e-4, warmup_w_epochs=15)
# lambda 1 is the paper's for P-DARTS; 25 epochs in each of three stages, in the first 10 of which architectures stand still.
_PDARTS = replace(
    _FIRST,
    space="pdarts",
    cells=5,
    epochs=75,
    batch_size=96,
    lr_min=0.0,
    arch_lr=6e-4,
    arch_clip=5.0,
    warmup_w_epochs=10,
    distill_weight=1.0,
)
_PRDARTS = replace(_FIRST, space="prdarts", cells=6, epochs=200, batch_size=250, weight_decay=5e-4, nesterov=True)
_DRNAS = replace(
    _FIRST,
    space="drnas",
    channels=36,
    cells=20,
    lr=0.1,
    lr_min=0.0,
    arch_lr=6e-4,
    warmup_w_epochs=10,
    space_options=("partials=[6,4]", "keep=[4]"),
)
_NASBENCH = replace(_FIRST, space="nasbench201", cells=5, weight_decay=5e-4, nesterov=True)
_NASBENCH_DRNAS = replace(_FIRST, space="drnas-nasbench201", cells=5, epochs=100)
_NASBENCH_PROGRESSIVE = replace(_NASBENCH_DRNAS, warmup_w_epochs=10, space_options=("partials=[4,2]", "keep=[3]"))
_IMAGENET = replace(
    _FIRST, dataset="imagenet", crop_padding=None, batch_size=1024, lr=0.5, lr_min=0.0, lr_warmup_epochs=5, arch_lr=6e-3, arch_clip=5.0
)


def _on_cifar100(config: SearchConfig, **changes: Any) -> SearchConfig:
    return replace(config, dataset="cifar100", **changes)


PRESETS: dict[str, SearchConfig] = {
    # Paper, Sec. 4.2, over the settings of DARTS: lambda 0.5, R = 5, epsilon 0.01, 50 epochs, halves of 25,000.
    "darts-cifar10": _CIFAR10,
    "darts-cifar100": _on_cifar100(_CIFAR10),
    "darts1st-cifar10": _FIRST,
    "darts1st-cifar100": _on_cifar100(_FIRST),
    "pdarts-cifar10": replace(_PDARTS, space_options=("dropout=[0.0,0.4,0.7]",)),
    "pdarts-cifar100": _on_cifar100(_PDARTS, space_options=("dropout=[0.1,0.2,0.3]",)),
    "pcdarts-cifar10": _PCDARTS,
    "pcdarts-cifar100": _on_cifar100(_PCDARTS, distill_weight=0.1),
    "pcdarts-imagenet": replace(_IMAGENET, space="pcdarts", space_options=("partial=2", "stem=imagenet"), warmup_w_epochs=35),
    "prdarts-cifar10": _PRDARTS,
    "prdarts-cifar100": _on_cifar100(_PRDARTS),
    "drnas-cifar10": _DRNAS,
    "drnas-cifar100": _on_cifar100(_DRNAS),
    "drnas-imagenet": replace(
        _IMAGENET,
        space="drnas",
        channels=48,
        cells=14,
        batch_size=512,
        warmup_w_epochs=10,
        space_options=("partials=[6,3]", "keep=[4]", "stem=imagenet"),
    ),
    "nasbench201-cifar10": _NASBENCH,
    "nasbench201-cifar100": _on_cifar100(_NASBENCH),
    "nasbench201-imagenet16-120": replace(_NASBENCH, dataset="imagenet16-120", crop_padding=2),
    "drnas-nasbench201-cifar10": _NASBENCH_DRNAS,
    "drnas-nasbench201-cifar100": _on_cifar100(_NASBENCH_DRNAS),
    "drnas-nasbench201-imagenet16-120": replace(_NASBENCH_DRNAS, dataset="imagenet16-120", crop_padding=2),
    "drnas-nasbench201-progressive-cifar10": _NASBENCH_PROGRESSIVE,
    "drnas-nasbench201-progressive-cifar100": _on_cifar100(_NASBENCH_PROGRESSIVE),
    "drnas-nasbench201-progressive-imagenet16-120": replace(_NASBENCH_PROGRESSIVE, dataset="imagenet16-120", crop_padding=2),
    # Without drop-path they have no cutout either.
    **{f"{space}-cifar10": replace(_CIFAR10, space=space) for space in ("s1", "s2", "s3", "s4")},
    **{f"{space}-cifar100": _on_cifar100(_CIFAR10, space=space) for space in ("s1", "s2", "s3", "s4")},
    "darts-minus-cifar10": replace(_FIRST, space="darts-minus"),
    "darts-minus-cifar100": _on_cifar100(_FIRST, space="darts-minus"),
    "demo": SearchConfig(epochs=10, channels=4, cells=3, batch_size=64, arch_lr=6e-3, lr=0.05),
}
