"""What kernels and launchers share: the precision of matrix products, the limits of a grid, numbers passed by value."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

MAX_GRID = 65535  # of the second and third dimension of a CUDA grid
REGISTERS = 255  # of a thread: left to itself, ptxas spills a few rather than have fewer blocks at a time


@triton.jit
def number(x, dtype: tl.constexpr):
    """A parameter annotated float64 as a block of one number of the type that is computed in: it must not widen what it meets."""
    return (tl.zeros((1,), tl.float64) + x).to(dtype)


@triton.jit
def widened(x):
    """bfloat16 and float16 as float32, in which they are computed; float32 and float64 as they are."""
    return x.to(tl.float32 if x.dtype.primitive_bitwidth == 16 else x.dtype)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. (Triton's own, which kernels may call too, takes the host 8 microseconds.)"""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def computed(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def row_columns(dtype: torch.dtype) -> int:
    """Columns that a tile of rows takes at a time, so that each thread reads 16 bytes."""
    return 32 if dtype.itemsize == 2 else 16


def dot_precision(dtype: torch.dtype, computed: torch.dtype | None = None) -> str:
    """`input_precision` of `tl.dot` of inputs of a dtype, converted to `computed` where that is given.

    float32 products take three TF32 passes, which keep its accuracy, or one where the program allows TF32
    (`torch.set_float32_matmul_precision("high")`, `torch.backends.cuda.matmul.fp32_precision`) or the numbers came from a dtype that
    is no finer.
    """
    if (computed or dtype) != torch.float32:
        return "ieee"
    # Not `allow_tf32`, which raises where a program has set the precision by its newer name.
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def check_grid(operation: str, first: int, **others: int) -> None:
    """Raise where a grid with so many programs along its first dimension and the others, by name, is too large to launch.

    Triton's launcher multiplies the dimensions in 32 bits, and launches nothing where the product is not positive.
    """
    for name, programs in others.items():
        if programs > MAX_GRID:
            raise ValueError(f"{operation}: {name} takes {programs} programs, CUDA allows {MAX_GRID}; split the call along it")
    total = first * math.prod(others.values())
    if total >= 2**31:
        raise ValueError(f"{operation}: {total} programs; a launch may have 2^31 - 1: split the call")
