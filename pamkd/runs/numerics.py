"""The arithmetic that a run asks of PyTorch, and its end: the caller's own settings come back."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from pamkd.runs.errors import OptionError
from pamkd.runs.options import FolderOptions

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def check_device(name: str) -> None:
    """Raises OptionError where PyTorch does not know the device or does not find it here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device is {name!r}: needed is cpu, cuda, cuda:1 or another device of PyTorch") from error
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        found = f"{count or 'no'} CUDA device{'' if count == 1 else 's'}"
        raise OptionError(f"device is {name!r}: PyTorch {torch.__version__} finds {found} here; take another --device, such as cpu")


@contextmanager
def numerics(config: FolderOptions) -> Iterator[None]:
    """`config.threads` threads, TF32 products only where `config.tf32`, and algorithms that give the same bits each time where
    `config.deterministic`. Raises OptionError where the device is not here."""
    check_device(config.device)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    filling: Any = torch.utils.deterministic  # whose attribute type checkers do not see
    threads, tf32 = torch.get_num_threads(), (matmul.allow_tf32, cudnn.allow_tf32)
    strict, warn, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filling.fill_uninitialized_memory,
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    matmul.allow_tf32 = cudnn.allow_tf32 = config.tf32
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        filling.fill_uninitialized_memory = False  # what nobody reads need not be filled
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        matmul.allow_tf32, cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        filling.fill_uninitialized_memory = fill


def with_numerics(run: Callable[Concatenate[Any, Parameters], Result]) -> Callable[Concatenate[Any, Parameters], Result]:
    """A method that runs under the `numerics` of its object's `config`."""

    @functools.wraps(run)
    def wrapped(self: Any, /, *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        with numerics(self.config):
            return run(self, *arguments, **options)

    return wrapped
