"""The arithmetic that a run asks of PyTorch, and its end: the caller's own settings come back."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

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
    """`config.threads` threads, TF32 products only where `config.tf32`, algorithms that give the same bits each time where
    `config.deterministic`, and a numbered GPU as the current one. Raises OptionError where the device is not here."""
    check_device(config.device)
    # Type checkers do not see all attributes of these.
    matmul, cudnn, filling = cast("tuple[Any, ...]", (torch.backends.cuda.matmul, torch.backends.cudnn, torch.utils.deterministic))
    tf32 = {part: part.fp32_precision for part in (matmul, cudnn.conv, cudnn.rnn)}  # the older names raise where these were set alone
    threads = torch.get_num_threads()
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
    device = torch.device(config.device)
    numbered = device.type == "cuda" and device.index is not None
    try:
        with torch.cuda.device(device) if numbered else nullcontext():  # for streams, graphs and kernels that ask for the current one
            yield
    finally:
        torch.set_num_threads(threads)
        matmul.allow_tf32, cudnn.allow_tf32 = tf32[matmul] == "tf32", tf32[cudnn.conv] == "tf32"
        for part, precision in tf32.items():
            part.fp32_precision = precision
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        filling.fill_uninitialized_memory = fill


def with_numerics(run: Callable[Concatenate[Any, Parameters], Result]) -> Callable[Concatenate[Any, Parameters], Result]:
    """A method that runs under the `numerics` of its object's `config`."""

    @functools.wraps(run)
    def wrapped(self: Any, /, *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        with numerics(self.config):
            return run(self, *arguments, **options)

    return wrapped
