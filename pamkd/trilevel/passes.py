"""The network passes that a search step is made of, counted by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
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
    """Images and their labels, of one column of processes or of all."""

    images: Tensor  # [n, c, h, w]
    labels: Tensor  # [n], int64


class Network(Protocol):
    """What the tri-level step needs of a supernet."""

    def forward(self, weights: Tensor, alphas: Tensor, images: Tensor) -> Output:
        """Of one network, or with weights [m, num_weights] and alphas [m, ...] of m that stack: every output is then [m, ...]."""

    def stacks_with(self, other: object) -> bool:
        """Whether this network and another one are computed by one call of `forward`."""

    def twice_differentiable(self) -> Network:
        """The same network over operations whose backward pass can be differentiated again."""


PERTURBED = "_perturbed"  # ends the names of passes that central differences are made of


class Pass(NamedTuple):
    """What a learner's forward and backward pass gave, without graph."""

    terms: list[Tensor]  # scalars whose sum was differentiated
    output: Output
    grads: tuple[Tensor, ...]


def own_loss(i: int, loss: Tensor, output: Output) -> list[Tensor]:
    return [loss]


class Passes:
    """Runs passes of one kind of several learners; `forwards` and `backwards` count them by name, for each learner; `watch` sees NaN.

    `static`: every step makes the same passes and reads nothing from the device, as a CUDA graph needs; else passes that would
    change nothing are left out. `stacked`: learners whose networks stack make their passes in one call of the network, whose
    activations then lie in memory together; else one after another. `precision`: the dtype of activations and their gradients, None
    for that of the weights. Perturbed passes keep the weights' own: a central difference has no digits to spare.
    """

    def __init__(self, *, static: bool = False, stacked: bool = False, precision: torch.dtype | None = None) -> None:
        self.forwards: Counter[str] = Counter()
        self.backwards: Counter[str] = Counter()
        self.static, self.stacked, self.precision = static, stacked, precision
        self.watch = Watch(later=static)

    def stack(self, learners: Sequence[Learner]) -> bool:
        """Whether these learners' passes are one call of a network."""
        return self.stacked and len(learners) > 1 and all(learners[0].network.stacks_with(learner.network) for learner in learners)

    def run(
        self,
        name: str,
        learners: Sequence[Learner],
        weights: Sequence[Tensor],
        batch: Batch,
        inputs: Sequence[Sequence[Tensor]],
        terms: Callable[[int, Tensor, Output], list[Tensor]] = own_loss,
    ) -> list[Pass]:
        """Forward and backward passes of learners with these weights: gradients of the sum of terms(i, loss, output) by `inputs[i]`.

        `inputs` of different learners are different tensors. Raises as `forward` and `backward`.
        """
        ran = []
        for group in [range(len(learners))] if self.stack(learners) else [[i] for i in range(len(learners))]:
            some = [learners[i] for i in group]
            losses, outputs = self.forward(name, some, [weights[i] for i in group], batch)
            summed = [terms(*found) for found in zip(group, losses, outputs, strict=True)]
            grads = self.backward(name, some, summed, [inputs[i] for i in group])
            for found, output, grad in zip(summed, outputs, grads, strict=True):
                ran.append(Pass([term.detach() for term in found], type(output)(*(part.detach() for part in output)), grad))
        return ran

    def forward(self, name: str, learners: Sequence[Learner], weights: Sequence[Tensor], batch: Batch) -> tuple[list[Tensor], list[Output]]:
        """Mean cross-entropies of the learners' networks with these weights on the batch, and their outputs, in the weights' dtype.

        Raises Diverged when a loss is not finite or too large (on the CPU; else the step does).
        """
        self.forwards[name] += len(learners)
        dtype = weights[0].dtype
        computed = dtype if self.precision is None or name.endswith(PERTURBED) else self.precision
        weights, images = [w.to(computed) for w in weights], batch.images.to(computed)
        if self.stack(learners):
            alphas = torch.stack([learner.alphas for learner in learners])
            stacked = learners[0].network.forward(torch.stack(weights), alphas, images)
            outputs = [type(stacked)(*parts) for parts in zip(*stacked, strict=True)]
        else:
            outputs = [learner.network.forward(w, learner.alphas, images) for learner, w in zip(learners, weights, strict=True)]
        outputs = [type(output)(*(part.to(dtype) for part in output)) for output in outputs]
        losses = [F.cross_entropy(output.logits, batch.labels) for output in outputs]
        for learner, loss in zip(learners, losses, strict=True):
            self.watch.loss(loss, learner.number, f"pass {name}")
        if self.watch.later and batch.images.device.type == "cpu":  # a lost step goes on; operations on the CPU refuse what is not finite
            outputs = [type(output)(*(part.nan_to_num(0, 0, 0) for part in output)) for output in outputs]
        return losses, outputs

    def backward(
        self,
        name: str,
        learners: Sequence[Learner],
        outputs: Sequence[Sequence[Tensor]],
        inputs: Sequence[Sequence[Tensor]],
        cotangents: Sequence[Sequence[Tensor | None]] | None = None,
    ) -> list[tuple[Tensor, ...]]:
        """Gradients of each learner's outputs (with cotangents where they are no scalars); zeros where nothing depends on an input.

        Raises Diverged when one is not finite (on the CPU; else the step does).
        """
        self.backwards[name] += len(learners)
        cotangents = cotangents or [[None] * len(some) for some in outputs]
        if self.stack(learners):  # one graph
            flat = iter(_grad(list(chain(*outputs)), list(chain(*inputs)), list(chain(*cotangents))))
            grads = [tuple(islice(flat, len(some))) for some in inputs]
        else:
            grads = [_grad(*lists) for lists in zip(outputs, inputs, cotangents, strict=True)]
        for learner, grad in zip(learners, grads, strict=True):
            self.watch.term(grad, "gradient", learner.number, f"pass {name}")
        return grads


def _grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, materialize_grads=True)


@torch.no_grad()
def predictions(
    learners: Sequence[Learner], weights: Literal["v", "w"], batches: Iterable[tuple[Tensor, Tensor]], rows: Rows
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [K, n, classes] of all learners' weights of that name, and labels, batch by batch; not counted as passes."""
    for images, labels in batches:
        yield rows.gather([[k.network.forward(getattr(k, weights), k.alphas, images).logits] for k in learners])[0], labels
