"""The network passes that a search step is made of, counted by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.distributed import Rows
from pamkd.spaces.supernet import Output
from pamkd.trilevel.finite import Watch

if TYPE_CHECKING:
    from pamkd.trilevel.step import Learner


class Batch(NamedTuple):
    images: Tensor  # [n, c, h, w]
    labels: Tensor  # [n], int64


class Network(Protocol):
    """What the tri-level step needs of a supernet."""

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output: ...

    def twice_differentiable(self) -> Network: ...


PERTURBED = "_perturbed"  # ends the names of passes that central differences are made of


class Passes:
    """Runs forward and backward passes of learners' networks; `forwards` and `backwards` count them by name, `watch` sees NaN.

    `static`: every step makes the same passes and reads nothing from the device, as a CUDA graph needs; else passes that would
    change nothing are left out. `precision`: the dtype of activations and their gradients, None for that of the weights.
    Perturbed passes keep the weights' own: a central difference has no digits to spare.
    """

    def __init__(self, *, static: bool = False, precision: torch.dtype | None = None) -> None:
        self.forwards: Counter[str] = Counter()
        self.backwards: Counter[str] = Counter()
        self.static, self.precision = static, precision
        self.watch = Watch(later=static)

    def forward(self, name: str, learner: Learner, weights: Tensor, batch: Batch) -> tuple[Tensor, Output]:
        """Mean cross-entropy of the learner's network with these weights on the batch, and the network's output, in the weights' dtype.

        Raises Diverged when the loss is not finite or too large (on the CPU; else the step does).
        """
        self.forwards[name] += 1
        computed = weights.dtype if self.precision is None or name.endswith(PERTURBED) else self.precision
        output = learner.network.forward(weights.to(computed), learner.alphas, batch.images.to(computed))
        output = type(output)(*(part.to(weights.dtype) for part in output))
        loss = F.cross_entropy(output.logits, batch.labels)
        self.watch.loss(loss, learner.number, f"pass {name}")
        if self.watch.later and loss.device.type == "cpu":  # a lost step goes on, and operations on the CPU refuse what is not finite
            output = type(output)(*(part.nan_to_num(0, 0, 0) for part in output))
        return loss, output

    def backward(
        self,
        name: str,
        learner: Learner,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients of the outputs (with cotangents where they are no scalars); zeros where nothing depends on an input.

        Raises Diverged when one is not finite (on the CPU; else the step does).
        """
        self.backwards[name] += 1
        grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
        grads = tuple(torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, inputs, strict=True))
        self.watch.term(grads, "gradient", learner.number, f"pass {name}")
        return grads


@torch.no_grad()
def predictions(
    learners: Sequence[Learner], weights: Literal["v", "w"], batches: Iterable[tuple[Tensor, Tensor]], rows: Rows
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [K, n, classes] of all learners' weights of that name, and labels, batch by batch; not counted as passes."""
    for images, labels in batches:
        yield rows.gather([[k.network.forward(getattr(k, weights), k.alphas, images).logits] for k in learners])[0], labels
