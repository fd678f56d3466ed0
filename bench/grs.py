"""GRS forward and backward: `pamkd.ops.grs_loss` against two eager formulations and torch.compile of the better one.

Before anything is timed gradients must agree, in float64: of two cosines that differ by less than float32 can tell, rounding decides which
is the smaller, and so which rows a gradient goes to.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench._harness import Bench, sgemm_rate
from pamkd.ops import grs_loss

CASES = [(64, 256, 64, 5), (256, 256, 4096, 5), (1024, 512, 65536, 5), (4096, 2048, 4096, 8)]
EPS = 0.01
Loss = Callable[[Tensor, Tensor], Tensor]


def hinge(teacher: Tensor, student: Tensor) -> Tensor:
    t, s = teacher[0] - teacher[1], student[0] - student[1]
    return (torch.relu(EPS - t * s) * (t != 0)).sum()


def gather_then_bmm(teacher: Tensor, student: Tensor, groups: Tensor) -> Tensor:
    """Each group's rows are gathered, and its cosines are a batched matrix product."""
    upper = torch.triu_indices(groups.shape[-1], groups.shape[-1], 1, device=groups.device)

    def similarity(e: Tensor) -> Tensor:
        rows = F.normalize(e, dim=-1, eps=1e-8)[groups]  # [2, P, R, D]
        return (rows @ rows.mT)[..., upper[0], upper[1]].amin(-1)

    return hinge(similarity(teacher), similarity(student))


def gram_then_index(teacher: Tensor, student: Tensor, groups: Tensor) -> Tensor:
    """All cosines are one matrix product, and each group looks its own up."""
    upper = torch.triu_indices(groups.shape[-1], groups.shape[-1], 1, device=groups.device)

    def similarity(e: Tensor) -> Tensor:
        unit = F.normalize(e, dim=-1, eps=1e-8)
        return (unit @ unit.T)[groups[..., upper[0]], groups[..., upper[1]]].amin(-1)

    return hinge(similarity(teacher), similarity(student))


def operations(n: int, d: int, pairs: int, r: int) -> int:
    """Of the matrix products that the cheaper way cannot do without: cosines forward, one pair's backward."""
    cosines = min(n * n, 2 * pairs * r * (r - 1) // 2)
    return 2 * 2 * d * (cosines + 2 * 2 * pairs)


def moved(n: int, d: int, pairs: int, r: int) -> int:
    """Bytes that have to be: both embeddings, read forward and backward, both gradients, and the groups."""
    return 6 * n * d * 4 + 2 * pairs * r * 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile-limit", type=float, default=120, help="seconds after which no further case is compiled; 0: none is")
    bench = Bench("grs", parser, rounds=15, gpu=True)
    if bench.device.type == "cpu":
        rate = sgemm_rate()
        print(f"sgemm: {rate / 1e9:.0f} GFLOP/s on {bench.options.threads} threads")
    compiling = 0.0
    for n, d, pairs, r in CASES:
        random = torch.Generator().manual_seed(0)
        teacher, student = (torch.randn(n, d, generator=random).to(bench.device).requires_grad_() for _ in range(2))
        groups = torch.rand(pairs, n, generator=random).topk(2 * r).indices.view(pairs, 2, r).transpose(0, 1).contiguous()
        groups = groups.to(bench.device)
        x, y = groups.contiguous()

        leaves = teacher, student

        def both(function: Loss, leaves: tuple[Tensor, Tensor] = leaves) -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(*leaves), leaves)

        def loss(teacher: Tensor, student: Tensor, x=x, y=y) -> Tensor:
            return grs_loss(teacher, student, x, y, EPS)

        losses: dict[str, Loss] = {
            function.__name__.replace("_", " "): partial(function, groups=groups) for function in (gather_then_bmm, gram_then_index)
        }
        exact = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
        for name, peer in losses.items():
            for one, other in zip(both(loss, exact), both(peer, exact), strict=True):
                bench.require_close(name, one, other, rtol=1e-8)
        ours, peers = partial(both, loss), {name: partial(both, peer) for name, peer in losses.items()}
        if compiling < bench.options.compile_limit:
            speed = {}
            for name, peer in peers.items():
                start = time.perf_counter()
                peer()
                speed[name] = time.perf_counter() - start
            better = min(speed, key=speed.__getitem__)
            compiled = torch.compile(globals()[better.replace(" ", "_")], fullgraph=True)
            peer = partial(both, partial(compiled, groups=groups))
            start = time.perf_counter()
            peer()
            took = time.perf_counter() - start
            compiling += took
            peers[f"torch.compile {better}"] = peer
            print(f"torch.compile of {better} took {took:.1f} s")
        case, size, read = f"N={n} D={d} pairs={pairs} R={r}", operations(n, d, pairs, r), moved(n, d, pairs, r)
        if bench.device.type == "cpu":
            bench.time(case, ours, peers, floor=size / rate)
        else:
            bench.time_on_gpu(case, ours, peers, read, size)
    bench.finish()


if __name__ == "__main__":
    main()
