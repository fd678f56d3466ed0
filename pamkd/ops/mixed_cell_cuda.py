"""`mixed_cell` on a GPU, forward and backward: Triton kernels over the table of branches, stencils' gradients in CUDA C++.

Every tensor has a leading dimension of weight sets: learners and perturbed copies share the launches. Kept for backward are the nodes,
the first halves of separable convolutions, and means and deviations; all maps between are computed again where they are needed.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pamkd.ops.mixed_cell_bypass import Bypass, shuffled, unshuffled
from pamkd.ops.mixed_cell_plan import Branch, Leaving, Plan, plan_of, tables_of
from pamkd.ops.stencils import MAX_BRANCHES, MAX_IMAGES
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance
from pamkd.reference.mixed_cell import BN_EPS


def kernels(stem: str) -> ModuleType:
    """Imported when first used: Triton is heavy, and may be missing."""
    return importlib.import_module(f"pamkd.kernels.{stem}")


class Inputs(NamedTuple):
    """The operation's tensors with their dimension of weight sets, channels last."""

    s0: Tensor  # [L, n, h, w, c]
    s1: Tensor  # like s0; s0 itself where the cell has one input
    weights: Tensor  # [L, P]
    mix: Tensor  # [L, edges * columns]

    @classmethod
    def of(cls, s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor) -> Inputs:
        first, second = ((s if s.dim() == 5 else s[None]).movedim(2, -1).contiguous() for s in (s0, s0 if s1 is None else s1))
        sets = len(first)
        return cls(first, second, weights.reshape(sets, -1).contiguous(), mix.reshape(sets, -1).contiguous())


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """Of statistics and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sizes(s0: Tensor, spec: CellSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of the nodes, channels last, of the first halves and of the statistics, for s0 [n, c, h, w] or [L, n, c, h, w]."""
    sets, (images, _, h, w) = s0.shape[0] if s0.dim() == 5 else 1, s0.shape[-4:]
    stride, plan = 2 if spec.reduction else 1, plan_of(spec)
    pixels = (sets, images, (h + stride - 1) // stride, (w + stride - 1) // stride)
    statistics = (2, sets, len(plan.branches), spec.op_channels)
    return (*pixels, spec.nodes * spec.channels), (len(plan.seconds), *pixels, spec.op_channels), statistics


def forward(
    s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, code: list[int], keep: bool, disturbance: Disturbance | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """pamkd::mixed_cell_forward: the nodes along the channels; the first halves and statistics, always kept."""
    node_mixture, spec = kernels("node_mixture"), CellSpec.decode(code)
    plan, (table, _, _) = plan_of(spec), tables_of(spec, s0.device)
    given, c = Inputs.of(s0, s1, weights, mix), spec.op_channels
    nodes, halves = (given.s0.new_empty(shape) for shape in sizes(s0, spec)[:2])
    kept = given.s0.new_empty(sizes(s0, spec)[2], dtype=accumulated(s0.dtype))
    maps, draws = node_mixture.Maps(given.s0, given.s1, nodes, halves), draws_of(disturbance, spec)

    def mixed(first: int, each: int, groups: int, y: Tensor, pitch: int) -> None:
        node_mixture.node_mixture(table, first, each, groups, maps, c, c, given.weights, given.mix, BN_EPS, kept, y, pitch, draws)

    for node, entering in enumerate(plan.nodes):
        begin, end = newly_leaving(plan.sources, node, spec)
        if begin < end:
            mixed(begin, 1, end - begin, halves[begin:end], c)
        state = nodes[..., node * spec.channels : (node + 1) * spec.channels]
        if spec.partial == 1:
            mixed(entering.first, entering.count, 1, state, nodes.shape[-1])
        else:
            y = torch.empty_like(state[..., :c], memory_format=torch.contiguous_format)
            mixed(entering.first, entering.count, 1, y, c)
            values = [*(given.s0, given.s1)[: spec.inputs], *nodes.split(spec.channels, -1)]
            past = Bypass(values, given.mix, spec, disturbance).forward(node)
            state.copy_(shuffled(torch.cat([y, past], -1), spec.partial))
    result = nodes.movedim(-1, 2)
    return result if s0.dim() == 5 else result[0], halves, kept


def draws_of(disturbance: Disturbance | None, spec: CellSpec) -> NamedTuple | None:
    """As the kernels take it."""
    return None if disturbance is None else kernels("draws").Draws(*disturbance.encode(), spec.columns)


def newly_leaving(sources: list[Leaving], node: int, spec: CellSpec) -> tuple[int, int]:
    """The first halves that read what is known before this node and was not before the last one."""
    states = sources[: spec.inputs] if node == 0 else sources[spec.inputs + node - 1 : spec.inputs + node]
    return states[0].halves[0], states[-1].halves[1]


def backward(
    grad: Tensor, s0: Tensor, s1: Tensor | None, weights: Tensor, mix: Tensor, nodes: Tensor, halves: Tensor, kept: Tensor,
    code: list[int], need_s0: bool, need_s1: bool, need_weights: bool, need_mix: bool, disturbance: Disturbance | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """pamkd::mixed_cell_backward."""
    spec = CellSpec.decode(code)
    plan, (table, numbers, owners) = plan_of(spec), tables_of(spec, s0.device)
    given, c = Inputs.of(s0, s1, weights, mix), spec.op_channels
    with_sets = nodes if nodes.dim() == 5 else nodes[None]
    nodes = with_sets.movedim(2, -1)
    # The gradients of the nodes, to which later edges add.
    of_nodes = grad.reshape(with_sets.shape).movedim(2, -1).clone(memory_format=torch.contiguous_format)
    of_inputs = [torch.empty_like(s) for s in (given.s0, given.s1)[: spec.inputs]]
    of_maps = halves.new_empty(plan.maps, *halves.shape[1:])
    of_halves = torch.empty_like(halves)
    maps = kernels("node_mixture").Maps(given.s0, given.s1, nodes, halves)
    largest = max((branch.size**2 for branch in plan.branches if branch.taps >= 0), default=0)
    draws = draws_of(disturbance, spec)
    run = kernels("node_mixture_backward").Backward(table, maps, c, c, given.weights, given.mix, kept, of_maps, largest, draws)
    behind, stencil_weights = spec.num_weights, with_single_taps(given.weights, plan, c)
    values = [*(given.s0, given.s1)[: spec.inputs], *nodes.split(spec.channels, -1)]
    bypass = Bypass(values, given.mix, spec, disturbance)
    # What the branches of the nodes gave: with partial channels the nodes' gradients without those that bypassed and unshuffled.
    of_sums = of_nodes if spec.partial == 1 else of_nodes.new_empty(*of_nodes.shape[:-1], spec.nodes * c)
    states = [*of_inputs, *of_nodes.split(spec.channels, -1)]
    if spec.partial > 1:
        for state in of_inputs:
            state[..., c:] = 0
    for node in reversed(range(spec.nodes)):
        entering = plan.nodes[node]
        of_sum = of_sums[..., node * c : (node + 1) * c]
        if spec.partial > 1:
            straight = unshuffled(states[spec.inputs + node], spec.partial)
            of_sum.copy_(straight[..., :c])
            bypass.backward(node, straight[..., c:], states)
        run.node_mixture(entering.first, entering.count, 1, entering.convolutions, of_sum, of_sums.shape[-1])
        begin, end = newly_leaving(plan.sources, node, spec)
        if begin < end:
            seconds = plan.seconds[begin:end]
            behind_sources = plan.maps - len(plan.seconds)
            of_seconds = of_maps[behind_sources + begin : behind_sources + end]
            to_states(of_seconds, halves[begin:end], stencil_weights, behind, seconds, 1, of_halves[begin:end], paired=True)
            run.node_mixture(begin, 1, end - begin, 1, of_halves[begin:end], c)
        for source in range(spec.inputs) if node == 0 else (spec.inputs + node - 1,):
            leaving = plan.sources[source]
            if source < spec.inputs and not (need_s0, need_s1)[source]:
                continue
            into = states[source][..., :c]
            is_node, identities = source >= spec.inputs, leaving.bounds[2] < leaving.bounds[3]
            run.shared(numbers, leaving.bounds, leaving.map + len(leaving.convolutions), of_sums, into, add=is_node)
            if leaving.convolutions or leaving.pools:
                found = of_maps[leaving.map : leaving.map + len(leaving.convolutions) + 2 * leaving.pools]
                to_states(
                    found, values[source][..., :c], stencil_weights, behind, leaving.convolutions, leaving.stride, into,
                    pools=leaving.pools, add=is_node or identities,
                )  # fmt: skip
            elif not is_node and not identities:
                into.zero_()
    of_weights = run.weights_gradient() if need_weights else weights.new_empty(0)
    of_mix = run.mix_gradient(owners) if need_mix else mix.new_empty(0)
    if need_mix and spec.partial > 1:
        of_mix.view(-1, spec.edges, spec.columns)[..., -1] = bypass.of_mix
    shaped = [state.movedim(-1, 2) if s0.dim() == 5 else state[0].movedim(-1, 1) for state in of_inputs]
    of_s0, of_s1 = (shaped[i] if i < len(shaped) and need else s0.new_empty(0) for i, need in enumerate((need_s0, need_s1)))
    return of_s0, of_s1, of_weights.view(weights.shape if need_weights else 0), of_mix.view(mix.shape if need_mix else 0)


@functools.lru_cache(maxsize=32)
def single_taps(c: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """3x3 windows of c channels that read one pixel: the middle, then the one below and right of it. [2 * c * 9]."""
    taps = torch.zeros(2, c, 9)
    taps[0, :, 4] = taps[1, :, 8] = 1
    return taps.flatten().to(device, dtype)


def with_single_taps(weights: Tensor, plan: Plan, c: int) -> Tensor:
    """Weights [L, P] for the gradients of stencils: convolutions of one pixel are 3x3 there, with taps behind all weights."""
    if not any(branch.size == 1 for leaving in plan.sources for branch in leaving.convolutions):
        return weights
    return torch.cat([weights, single_taps(c, weights.dtype, weights.device).expand(len(weights), -1)], 1)


def to_states(
    grad: Tensor, x: Tensor, weights: Tensor, behind: int, branches: list[Branch], stride: int, dx: Tensor,
    *, pools: bool = False, paired: bool = False, add: bool = False,
) -> None:  # fmt: skip
    """What branches send back to their state x [L, n, h, w, c], or with `paired` each to its own x [branches, L, n, h, w, c].

    grad: [branches and pools, L, n, h', w', c]; `behind` is the place of the single taps in the weights.
    """
    c = x.shape[-1]
    at_once = max(1, min(MAX_BRANCHES, MAX_IMAGES // grad.shape[1:3].numel())) if paired else MAX_BRANCHES
    for begin in range(0, max(1, len(branches)), at_once):
        piece, last = branches[begin : begin + at_once], begin + at_once >= len(branches)
        part = slice(begin, begin + len(piece))
        torch.ops.pamkd.stencils_input(
            grad[begin:] if last else grad[part],
            x[part] if paired else x,
            weights,
            [max(branch.size, 3) for branch in piece],
            [branch.dilation for branch in piece],
            [branch.taps if branch.size > 1 else behind + branch.shift * 9 * c for branch in piece],
            stride,
            pools and last,
            paired,
            add or (begin > 0 and not paired),
            dx[part] if paired else dx,
        )
