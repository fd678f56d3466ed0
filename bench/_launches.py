"""What the launches of our kernels move and compute, for `bench.roofline`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from bench._harness import CHIPS
from pamkd.ops import disturbed_cell_cuda, mixed_cell_cuda, relu_conv_norm_cuda
from pamkd.ops._library import IMPLEMENTATIONS
from pamkd.ops.mixed_cell_plan import WEIGHTED, Branch, plan_of
from pamkd.reference.cell_spec import CellSpec

MODULES = {"mixed_cell": mixed_cell_cuda, "disturbed_cell": disturbed_cell_cuda, "relu_conv_norm": relu_conv_norm_cuda}
# What computes an operation on CUDA, by its name in the library.
ON_CUDA: dict[str, Callable[..., Any]] = {
    f"pamkd::{name}_{way}": getattr(module, way) for name, module in MODULES.items() for way in ("forward", "backward")
}


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Meta tensors are given to the operations of `ON_CUDA`, not to the compositions that take their place off the GPU."""
    with ExitStack() as stack:
        for name in MODULES:
            stack.enter_context(mock.patch.dict(IMPLEMENTATIONS[name], meta="traced"))
        yield


@dataclass
class Count:
    launches: int = 0
    bytes: int = 0
    products: int = 0  # operations of matrix products and convolutions over all channels
    others: int = 0
    by_operation: Counter = field(default_factory=Counter)  # bytes
    launches_of: Counter = field(default_factory=Counter)

    def add(self, name: str, bytes: int, *, products: int = 0, others: int = 0) -> None:
        self.launches, self.bytes = self.launches + 1, self.bytes + bytes
        self.products, self.others = self.products + products, self.others + others
        self.by_operation[name] += bytes
        self.launches_of[name] += 1

    def seconds(self, device: str, products: float) -> float:
        """A lower bound, with so many operations of products per second."""
        memory, others, *_ = CHIPS[device]
        return max(self.bytes / memory, self.products / products + self.others / others)


def total(parts: Iterable[tuple[int, Count]]) -> Count:
    """The sums of counts, each so many times; not by operation."""
    parts = list(parts)
    return Count(*(sum(times * getattr(count, name) for times, count in parts) for name in ("launches", "bytes", "products", "others")))


def size(value: object) -> int:
    """Bytes of the tensors in a result or an argument; an expanded tensor is as large as its memory."""
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tree_leaves(value) if isinstance(t, Tensor))


def branches_of(operation: str, arguments: tuple) -> list[Branch]:
    """The rows of the table that an operation's kernels read."""
    if "cell" in operation:
        code = next(x for x in arguments if isinstance(x, list) and x and isinstance(x[0], int))
        return plan_of(CellSpec.decode(code)).branches
    x, depthwise, pointwise = arguments[operation.endswith("backward") :][:3]
    stride, dilation = (x for x in arguments if isinstance(x, int))
    return [relu_conv_norm_cuda.branch_of(x, depthwise, pointwise, stride, dilation)]


class Launches:
    """Counts the launches that an operation makes with tensors that have no memory."""

    def __init__(self, count: Count) -> None:
        self.count = count

    @contextmanager
    def of(self, operation: str, arguments: tuple) -> Iterator[None]:
        """Within, Triton's launches are counted and not made."""
        branches, run = branches_of(operation, arguments), JITFunction.run

        def counted(kernel: JITFunction, *values: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
            given = dict(zip(kernel.arg_names, values, strict=False)) | options
            name = kernel.fn.__name__
            getattr(self, name)(name, Launch(given, grid, branches))

        JITFunction.run = counted
        try:
            yield
        finally:
            JITFunction.run = run

    def statistics_kernel(self, name: str, launch: Launch) -> None:
        branches = launch.branches(launch.grid[1] // launch.tiles, 1)
        normed = [branch for branch in branches if branch.norm]
        sums = launch.partial(2 * len(branches))
        self.count.add(name, launch.states(normed) + launch.weights(normed) + sums, **launch.maps(normed))

    def mixture_kernel(self, name: str, launch: Launch) -> None:
        groups = launch.grid[1] // launch.tiles
        branches = launch.branches(groups, launch["each"])
        moved = launch.states(branches) + launch.weights(branches) + launch.partial(2 * len(branches)) + groups * launch.output
        self.count.add(name, moved, **launch.maps(branches))

    def sums_kernel(self, name: str, launch: Launch) -> None:
        count = launch.grid[1] // launch.tiles
        branches = launch.branches(count, 1)
        moved = launch.states(branches) + launch.weights(branches) + launch.partial(2 * count) + count // launch["each"] * launch.output
        self.count.add(name, moved, **launch.maps(branches))

    def maps_kernel(self, name: str, launch: Launch) -> None:
        count = launch.grid[1] // math.ceil(launch["c"] / launch["TILE"])
        groups = count // launch["convolutions"]
        branches = launch.branches(groups, launch["each"], launch["convolutions"])
        moved = launch.states(branches) + launch.weights(branches) + launch.partial(2 * count) + groups * launch.output
        moved += launch.pieces(branches) + count * launch.map
        tiles = math.ceil(launch["c"] / launch["TILE"])
        again = 1 if launch["SINGLE"] else tiles  # z, by every program of several
        products = (again + 2) * launch.products(branches)  # z, dd and dP
        samples = 1 if launch["SINGLE"] else 1 + tiles * math.ceil(launch["k"] / launch["ROWS"])  # of d: of its own channels, and for z
        others = samples * launch.stencils(branches)
        others += 2 * sum(branch.size**2 for branch in branches if branch.taps >= 0) * launch.map // launch.element
        self.count.add(name, moved, products=products, others=others)

    def shared_kernel(self, name: str, launch: Launch) -> None:
        kinds = [launch[bound] for bound in ("begin", "means", "identities", "end")]
        targets = min(kinds[3] - kinds[0], launch["grad_ptr"].shape[-1] // launch["c"])
        moved = targets * launch.map + launch.partial(2 * (kinds[3] - kinds[0]))
        if launch["POOLS"]:
            moved += launch["images"] * launch["height"] * launch["width"] * launch["c"] * launch.sets * launch.element + 2 * launch.map
        if kinds[2] < kinds[3]:
            moved += (1 + launch["add"]) * launch.map
        self.count.add(name, moved, others=(18 + 3 * (kinds[3] - kinds[0])) * launch.map // launch.element)

    def weights_kernel(self, name: str, launch: Launch) -> None:
        self.count.add(name, launch.pieces(launch.all_branches) + size(launch["out_ptr"]), others=launch.pieces(launch.all_branches) // 4)

    def mix_kernel(self, name: str, launch: Launch) -> None:
        self.count.add(name, size([launch["sums_ptr"]]) // 2 + size(launch["out_ptr"]), others=launch["sums_ptr"].numel() // 2)

    def stencils_input(
        self, grad: Tensor, x: Tensor, weights: Tensor, kernels: list[int], dilations: list[int], offsets: list[int], stride: int,
        pools: bool, paired: bool, add: bool, dx: Tensor,
    ) -> None:  # fmt: skip
        state, c = x.numel() * x.element_size(), x.shape[-1]
        taps = sum(k * k for k in kernels)
        moved = grad.numel() * grad.element_size() + (2 + add) * state + taps * c * len(weights) * weights.element_size()
        self.count.add("stencils_input", moved, others=grad[0].numel() * (2 * taps + 18 * pools))


class Launch:
    """The arguments of a launch, and the sizes that they stand for; c channels in, k out."""

    def __init__(self, given: dict[str, Any], grid: tuple[int, ...], branches: list[Branch]) -> None:
        self.given, self.grid, self.all_branches = given, grid, branches
        if "TILE" in given and "s0_ptr" in given:
            self.sets, self.element = grid[2], given["s0_ptr"].element_size()
            self.pixels = self.sets * given["images"] * given["to_height"] * given["to_width"]
            self.k = given.get("k", given["c"])
            self.tiles = math.ceil(self.k / given["TILE"])
            self.map, self.output = (self.pixels * channels * self.element for channels in (given["c"], self.k))

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def branches(self, groups: int, each: int, taken: int | None = None) -> list[Branch]:
        """Of `groups` times `each` branches from the first on, the first `taken` of each group."""
        first = self["first"]
        return [b for group in range(groups) for b in self.all_branches[first + group * each :][:each][:taken]]

    def states(self, branches: list[Branch]) -> int:
        """Every state that is read, once."""
        state = self["images"] * self["height"] * self["width"] * self["c"] * self.sets * self.element
        read = {(branch.state, branch.index) for branch in branches if branch.size}  # all but noise
        return sum(state if place < 2 else self.map for place, _ in read)

    def weights(self, branches: list[Branch]) -> int:
        numbers = sum((b.end_row - b.first_row) * self["c"] + (b.taps >= 0) * b.size**2 * self["c"] for b in branches)
        return numbers * self.sets * self.element

    def partial(self, sums: int) -> int:
        """Sums of channels over chunks."""
        chunks = self.given.get("chunks", self.grid[0])
        return sums * self.sets * chunks * self.k * 4

    def pieces(self, branches: list[Branch]) -> int:
        """Sums of the gradients of weights over chunks."""
        sets, chunks = self["pieces_ptr"].shape[0], self["pieces_ptr"].shape[2]
        used = sum(self["k"] * self["c"] * b.convolution + (b.taps >= 0) * b.size**2 * self["c"] for b in branches)
        return used * sets * chunks * 4

    def maps(self, branches: list[Branch]) -> dict[str, int]:
        """Operations of computing d and z of every branch; d again for every tile of z."""
        return {"products": self.products(branches), "others": self.tiles * self.stencils(branches)}

    def stencils(self, branches: list[Branch]) -> int:
        """Operations of computing d of every branch once."""
        return sum((2 if branch.kind == WEIGHTED else 1) * branch.size**2 for branch in branches) * self.pixels * self["c"]

    def products(self, branches: list[Branch]) -> int:
        """Operations of one product with P of every branch."""
        return sum(branch.convolution for branch in branches) * 2 * self.pixels * self["c"] * self.k
