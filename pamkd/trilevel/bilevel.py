"""The step of methods with one weight set per learner: the weights of all learners together, then their architectures.

    O(W, A)  = sum_k L(W_k, A_k; tr) + sum_k D_k(y_1, ..., y_K; t),   y_k = outputs of learner k, t = targets, constants
    W'_k     = W_k - xi_k dO/dW_k
    J(A)     = objective(outputs of W'_1, ..., W'_K; val)
    dJ/dA    = direct - d/dA sum_k xi_k <dO/dW_k, u_k>,   u_k = dJ/dW'_k

The learners meet in their outputs alone, so D is differentiated at outputs cut off from the networks, and each network is
passed through once, with the cotangents that D gives its output. What D takes as target is a constant in the weight step
and in the hypergradient.

Learners may live on several processes (`Rows`): lists of learners and their vectors hold those that are here; outputs, D and
its cotangents are those of all K, computed alike everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows
from pamkd.spaces.supernet import Output
from pamkd.trilevel.difference import DEFAULT_FD_STEP, central_difference
from pamkd.trilevel.passes import PERTURBED, Batch, Passes
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner, Update, accuracy_of


class Exchange(Protocol):
    """What learners with one weight set do to each other. Outputs are stacked: logits [K, n, classes], embedding [K, n, d]."""

    @property
    def teaches_on(self) -> Literal["train", "valid"]:
        """The batch on which D is taken."""

    @property
    def shared(self) -> int:
        """So many leading weights are one tensor for all learners."""

    @property
    def modules(self) -> Tensor:
        """Weights of the method's own modules, a leaf that D may read; trained with W."""

    def targets(self, outputs: Output, batch: Batch, seed: int) -> Any:
        """t: what is taught, from outputs without graph, and what is drawn for the step."""

    def loss(self, outputs: Output, batch: Batch, targets: Any) -> Tensor:
        """[K], D_k."""

    def objective(self, outputs: Output, batch: Batch) -> Tensor:
        """J, a scalar."""

    def twice_differentiable(self) -> Exchange:
        """The same over operations whose backward pass can be differentiated again."""


@dataclass(frozen=True)
class WeightStep:
    """What the weight step did: losses, D, the targets, an update for each learner, and the gradient of the modules."""

    losses: list[Tensor]
    taught: Tensor  # [K]
    outputs: Output  # stacked, without graph
    targets: Any
    updates: list[Update]
    modules_grad: Tensor


@dataclass(frozen=True)
class _Side:
    """All learners here at some weights: where they are, or at one end of a difference."""

    learners: Sequence[Learner]
    weights: Sequence[Tensor]
    inputs: Sequence[Tensor]  # one of each learner, by which O is differentiated


@dataclass(frozen=True)
class _Gradients:
    losses: list[Tensor]
    taught: Tensor
    outputs: Output
    targets: Any
    modules: Tensor
    grads: list[Tensor]


class BiLevelStep:
    """The parts of one step over K learners with one weight set each."""

    def __init__(self, passes: Passes, *, sgd: SGD, fd_step: float = DEFAULT_FD_STEP, rows: Rows = ALL_HERE) -> None:
        self.passes, self.sgd, self.fd_step, self.rows = passes, sgd, fd_step, rows

    def train(
        self,
        learners: Sequence[Learner],
        train: Batch,
        valid: Batch,
        exchange: Exchange,
        *,
        lr: float,
        seed: int,
        added: Sequence[Tensor] | None = None,
    ) -> WeightStep:
        """W <- W' for all learners. `added` are gradients of further losses that do not depend on the architectures."""

        def targets_of(outputs: Output, batch: Batch) -> Any:
            return exchange.targets(outputs, batch, seed)

        weights = [learner.w.detach().requires_grad_() for learner in learners]
        (found,) = self._gradients([_Side(learners, weights, weights)], train, valid, exchange, targets_of, "")
        grads = found.grads if added is None else [grad + more for grad, more in zip(found.grads, added, strict=True)]
        grads = tied(grads, exchange.shared, self.rows)
        updates = []
        for learner, grad, norm in zip(learners, grads, norms(grads, exchange.shared, self.rows), strict=True):
            before = learner.w
            learner.w, learner.w_momentum, coefficient = self.sgd.update(before, learner.w_momentum, grad, lr, norm=norm)
            self.passes.watch.term([learner.w], "updated W", learner.number, "pass w_train")
            updates.append(Update(before, lr * coefficient))
        losses = [loss.detach() for loss in found.losses]
        return WeightStep(losses, found.taught.detach(), found.outputs, found.targets, updates, found.modules)

    def validate(
        self, learners: Sequence[Learner], valid: Batch, exchange: Exchange
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Losses and accuracies of W' on the validation batch, u_k = dJ/dW'_k, and the direct term dJ/dA_k."""
        weights = [learner.w.detach().requires_grad_() for learner in learners]
        losses, outputs = self.passes.forward("w_valid", learners, weights, valid)
        leaves = cut(outputs, self.rows)
        cotangents = torch.autograd.grad(exchange.objective(leaves, valid), leaves, allow_unused=True)
        inputs = [[w, learner.alphas] for w, learner in zip(weights, learners, strict=True)]
        sent = self._sent(outputs, cotangents)
        u, direct = zip(*self._backward("w_valid", learners, [[] for _ in losses], sent, inputs), strict=True)
        return [loss.detach() for loss in losses], [accuracy_of(output, valid) for output in outputs], list(u), list(direct)

    def hypergradient(
        self,
        learners: Sequence[Learner],
        train: Batch,
        valid: Batch,
        exchange: Exchange,
        done: WeightStep,
        u: Sequence[Tensor],
        direct: Sequence[Tensor],
    ) -> list[Tensor]:
        """dJ/dA_k: the direct term and, by one central difference over all learners together, the one through W'."""
        before = [update.before for update in done.updates]
        directions = [update.step_size * vector for update, vector in zip(done.updates, tied(u, exchange.shared, self.rows), strict=True)]

        def side(end: Tensor) -> _Side:
            twins = [learner.apart() for learner in learners]
            return _Side(twins, end.split([len(w) for w in before]), [twin.alphas for twin in twins])

        def gradients(ends: list[Tensor]) -> list[list[Tensor]]:
            sides = [side(end) for end in ends]
            at_once = [sides] if self.passes.stack(learners) else [[one] for one in sides]
            found = (self._gradients(some, train, valid, exchange, lambda *seen: done.targets, PERTURBED) for some in at_once)
            return [one.grads for some in found for one in some]

        (through,) = central_difference(gradients, [torch.cat(before)], [torch.cat(directions)], self.fd_step, self.rows)
        return [term - other for term, other in zip(direct, through, strict=True)]

    def _gradients(
        self,
        sides: Sequence[_Side],
        train: Batch,
        valid: Batch,
        exchange: Exchange,
        targets_of: Callable[[Output, Batch], Any],
        suffix: str,
    ) -> list[_Gradients]:
        """dO/d inputs_k on each side, with the targets that `targets_of(outputs, batch)` gives. All passes of a kind are made together."""
        learners, weights, inputs = ([x for side in sides for x in getattr(side, name)] for name in ("learners", "weights", "inputs"))
        given = [[x] for x in inputs]
        name, batch = "w_train" + suffix, train
        losses, outputs = self.passes.forward(name, learners, weights, train)
        own, grads = [[loss] for loss in losses], [torch.zeros_like(x) for x in inputs]
        if exchange.teaches_on == "valid":
            grads = [grad for (grad,) in self.passes.backward(name, learners, own, given)]
            name, batch = "w_taught" + suffix, valid
            _, outputs = self.passes.forward(name, learners, weights, valid)
            own = [[] for _ in losses]
        sent: list[list[tuple[Tensor, Tensor]]] = []
        found: list[tuple[list[Tensor], Tensor, Output, Any, Tensor]] = []
        count = len(learners) // len(sides)
        for first in range(0, len(learners), count):
            here = outputs[first : first + count]
            leaves = cut(here, self.rows)
            seen = type(leaves)(*(part.detach() for part in leaves))
            targets = targets_of(seen, batch)
            taught = exchange.loss(leaves, batch, targets)
            cotangents: Sequence[Tensor | None] = [None] * len(leaves)
            modules = torch.zeros_like(exchange.modules)
            if taught.requires_grad:
                *cotangents, of_modules = torch.autograd.grad(taught.sum(), [*leaves, exchange.modules], allow_unused=True)
                modules = modules if of_modules is None else of_modules
            sent += self._sent(here, cotangents)
            found.append((losses[first : first + count], taught, seen, targets, modules))
        more = self._backward(name, learners, own, sent, given)
        grads = [grad + other for grad, (other,) in zip(grads, more, strict=True)]
        return [_Gradients(*parts, grads[i * count : (i + 1) * count]) for i, parts in enumerate(found)]

    def _sent(self, outputs: Sequence[Output], cotangents: Sequence[Tensor | None]) -> list[list[tuple[Tensor, Tensor]]]:
        """For each learner here its outputs with what D or J sends back through them: cotangents [K, ...]."""
        return [
            [(part, c[k]) for part, c in zip(output, cotangents, strict=True) if c is not None and part.requires_grad]
            for k, output in zip(self.rows.indices(len(outputs)), outputs, strict=True)
        ]

    def _backward(
        self,
        name: str,
        learners: Sequence[Learner],
        own: Sequence[list[Tensor]],
        sent: Sequence[list[tuple[Tensor, Tensor]]],
        inputs: Sequence[Sequence[Tensor]],
    ) -> list[tuple[Tensor, ...]]:
        """Gradients of learners' own losses and of their outputs with what was sent back through them."""
        outputs = [[*losses, *(part for part, _ in pairs)] for losses, pairs in zip(own, sent, strict=True)]
        cotangents = [[*(None for _ in losses), *(c for _, c in pairs)] for losses, pairs in zip(own, sent, strict=True)]
        return self.passes.backward(name, learners, outputs, inputs, cotangents)


def cut(outputs: Sequence[Output], rows: Rows) -> Output:
    """Outputs of all K learners stacked into leaves."""
    return type(outputs[0])(*(part.requires_grad_() for part in rows.gather([[part.detach() for part in parts] for parts in outputs])))


def tied(vectors: Sequence[Tensor], shared: int, rows: Rows = ALL_HERE) -> list[Tensor]:
    """Vectors whose first `shared` entries are the sum over all: derivatives by a tensor that all learners share."""
    if not shared:
        return list(vectors)
    (total,) = rows.total([torch.stack([vector[:shared] for vector in vectors]).sum(0)])
    return [torch.cat([total, vector[shared:]]) for vector in vectors]


def norms(grads: Sequence[Tensor], shared: int, rows: Rows = ALL_HERE) -> list[Tensor]:
    """The norm that each learner's gradient is clipped by: its own, or that of all weights where learners share some."""
    if not shared:
        return [torch.linalg.vector_norm(grad) for grad in grads]
    (apart,) = rows.gather([[torch.linalg.vector_norm(grad[shared:])] for grad in grads])
    together = torch.linalg.vector_norm(grads[0][:shared])
    return [torch.linalg.vector_norm(torch.cat([together[None], apart]))] * len(grads)
