"""`relu_conv_norm` on a GPU: the Triton kernels of a cell's node over a table of one branch.

What a depthwise convolution sends back to x is CUDA C++ (`stencils_input`). Kept for backward are x, means and deviations alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pamkd.ops.mixed_cell_cuda import accumulated, kernels
from pamkd.ops.mixed_cell_plan import Branch


def branch_of(x: Tensor, depthwise: Tensor | None, pointwise: Tensor, stride: int, dilation: int) -> Branch:
    """The layer as a branch from state 0; its weights are the depthwise ones, if there are any, then P."""
    c, channels = x.shape[-3], pointwise.shape[-4]
    window = {} if depthwise is None else {"size": depthwise.shape[-1], "taps": 0}
    first = 0 if depthwise is None else c * depthwise.shape[-1] ** 2
    return Branch(0, 0, **window, dilation=dilation, stride=stride, pointwise=first, end_row=channels, map=0)


@functools.lru_cache(maxsize=256)
def _table(row: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([row], dtype=torch.int32, device=device)


def sizes(x: Tensor, pointwise: Tensor, stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the result, channels last, and of the statistics (mean, 1 / deviation, variance)."""
    sets, (images, _, h, w), channels = x.shape[0] if x.dim() == 5 else 1, x.shape[-4:], pointwise.shape[-4]
    return (sets, images, (h + stride - 1) // stride, (w + stride - 1) // stride, channels), (3, sets, 1, channels)


def rows_of(x: Tensor) -> Tensor:
    """[n, c, h, w] or [L, n, c, h, w] -> [L, n, h, w, c]."""
    return (x if x.dim() == 5 else x[None]).movedim(2, -1).contiguous()


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """[L, n, h, w, c] as a view of as many dimensions as `like` has."""
    maps = rows.movedim(-1, 2)
    return maps if like.dim() == 5 else maps[0]


def of_channels(values: Tensor, sets: int) -> Tensor:
    """[channels] or [L, channels] as numbers for rows [L, n, h, w, channels]."""
    return values.reshape(sets, 1, 1, 1, -1)


def flat(depthwise: Tensor | None, pointwise: Tensor, sets: int) -> Tensor:
    """Both convolutions' weights, [L, P]."""
    last = pointwise.reshape(sets, -1)
    return last.contiguous() if depthwise is None else torch.cat([depthwise.reshape(sets, -1), last], 1)


def forward(
    x: Tensor, depthwise: Tensor | None, pointwise: Tensor, weight: Tensor | None, bias: Tensor | None,
    stride: int, dilation: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """pamkd::relu_conv_norm_forward: the result; nothing; the statistics."""
    node_mixture, (shape, of_statistics) = kernels("node_mixture"), sizes(x, pointwise, stride)
    rows, sets, c, channels = rows_of(x), shape[0], x.shape[-3], shape[-1]
    table = _table(tuple(vars(branch_of(x, depthwise, pointwise, stride, dilation)).values()), x.device)
    y, statistics = rows.new_empty(shape), rows.new_empty(of_statistics, dtype=accumulated(x.dtype))
    weights, maps = flat(depthwise, pointwise, sets), node_mixture.Maps(rows, rows, y, y)
    node_mixture.node_mixture(table, 0, 1, 1, maps, c, channels, weights, weights.new_empty(sets, 0), eps, statistics, y, channels)
    if weight is not None:
        y *= of_channels(weight, sets)
    if bias is not None:
        y += of_channels(bias, sets)
    return maps_of(y, x), x.new_empty(0), statistics


def backward(
    grad: Tensor, x: Tensor, depthwise: Tensor | None, pointwise: Tensor, weight: Tensor | None, z: Tensor, statistics: Tensor,
    stride: int, dilation: int, need: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """pamkd::relu_conv_norm_backward."""
    rows, of_y, c, channels = rows_of(x), rows_of(grad), x.shape[-3], pointwise.shape[-4]
    sets, branch = len(rows), branch_of(x, depthwise, pointwise, stride, dilation)
    weights, maps = flat(depthwise, pointwise, sets), kernels("node_mixture").Maps(rows, rows, of_y, of_y)
    of_map = rows.new_empty(1, *of_y.shape[:-1], c)
    run = kernels("node_mixture_backward").Backward(
        _table(tuple(vars(branch).values()), x.device), maps, c, channels, weights, weights.new_empty(sets, 0), statistics, of_map,
        0 if depthwise is None else branch.size**2,
    )  # fmt: skip
    run.add_up(0, 1, 1, of_y, channels)
    shape = (*x.shape[:-4], channels)
    of_weight = run.sums[1].sum((1, 2)).view(shape).to(x.dtype) if need[3] else x.new_empty(0)
    of_bias = run.sums[0].sum((1, 2)).view(shape).to(x.dtype) if need[4] else x.new_empty(0)
    if weight is not None:  # with g of the result, that of the normalised map is weight g: so are its sums
        run.sums *= weight.reshape(sets, 1, 1, -1)
        of_y = of_y * of_channels(weight, sets)
    of_x, of_depthwise, of_pointwise = (x.new_empty(0) for _ in range(3))
    if any(need[:3]):
        run.write_maps(0, 1, 1, 1, of_y, channels)
    if need[1] or need[2]:
        of_weights = run.weights_gradient()
        if depthwise is None:
            of_pointwise = of_weights.view(pointwise.shape)
        else:
            of_taps, of_product = of_weights.split([weights.shape[1] - channels * c, channels * c], 1)
            of_depthwise = of_taps.reshape(depthwise.shape).clone() if need[1] else of_depthwise
            of_pointwise = of_product.reshape(pointwise.shape).clone() if need[2] else of_pointwise
    if need[0]:
        of_rows = of_map[0]
        if depthwise is not None:
            of_rows = torch.empty_like(rows)
            torch.ops.pamkd.stencils_input(of_map, rows, weights, [branch.size], [dilation], [0], stride, False, False, False, of_rows)
        of_x = maps_of(of_rows, x)
    return of_x, of_depthwise, of_pointwise, of_weight, of_bias
