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

if TYPE_CHECKING:
    from pamkd.trilevel.step import Learner


class Batch(NamedTuple):
    images: Tensor  # [n, c, h, w]
    labels: Tensor  # [n], int64


class Diverged(RuntimeError):
    """A loss became NaN or infinite."""


class Network(Protocol):
    """What the tri-level step needs of a supernet."""

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output: ...

    def twice_differentiable(self) -> Network: ...


class Passes:
    """Runs forward and backward passes of learners' networks; `forwards` and `backwards` count them by name."""

    def __init__(self) -> None:
        self.forwards: Counter[str] = Counter()
        self.backwards: Counter[str] = Counter()

    def forward(self, name: str, learner: Learner, weights: Tensor, batch: Batch) -> tuple[Tensor, Output]:
        """Mean cross-entropy of the learner's network with these weights on the batch, and the network's output.

        Raises Diverged when the loss is not finite.
        """
        self.forwards[name] += 1
        output = learner.network.forward(weights, learner.alphas, batch.images)
        loss = F.cross_entropy(output.logits, batch.labels)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss of pass {name} is {loss.item()}: the search diverged; lower the learning rate or the clipping norm")
        return loss, output

    def backward(
        self, name: str, outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, ...]:
        """Gradients of the outputs (with cotangents where they are no scalars); zeros where nothing depends on an input."""
        self.backwards[name] += 1
        grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
        return tuple(torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, inputs, strict=True))


@torch.no_grad()
def predictions(
    learners: Sequence[Learner], weights: Literal["v", "w"], batches: Iterable[tuple[Tensor, Tensor]], rows: Rows
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [K, n, classes] of all learners' weights of that name, and labels, batch by batch; not counted as passes."""
    for images, labels in batches:
        yield rows.gather([[k.network.forward(getattr(k, weights), k.alphas, images).logits] for k in learners])[0], labels
