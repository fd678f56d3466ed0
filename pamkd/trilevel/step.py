"""The tri-level PAMKD step as a fixed schedule of forward and backward passes.

Sec. 3 of the paper. Stages I and II are the weight updates themselves (V continues from V', W from W'), so the
hypergradient needs no virtual steps. With u_k = dL(W'_k, A_k; val)/dW'_k and Phi = sum_k xi_k <dO/dW_k, u_k>:

    dJ/dA =   sum_k dL(W'_k, A_k; val)/dA                          direct
            - dPhi/dA                                              through W' (training loss, student embeddings)
            - dPhi/dl . dl/dA - dPhi/ds . ds/dA                    through the teachers' losses l and knowledge s
            + xi_V d2L(V, A; tr)/dAdV . v,  v = dPhi/dV'           through V'

Derivatives of Phi are central differences of first-order gradients of O at W +- step * u / ||u||, read off at the
architecture, at l (K numbers) and at s (what the teachers publish): these small vectors are all that couples learners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pamkd.spaces.supernet import Output
from pamkd.trilevel.passes import Batch, Network, Passes
from pamkd.trilevel.sgd import SGD

DEFAULT_FD_STEP = 1e-2  # DARTS: perturbations have this norm


class Transfer(Protocol):
    """How a better learner teaches: what it publishes about a batch, and how well a student agrees with it."""

    def draw(self, batch_size: int, seed: int, device: torch.device) -> Any:
        """What is sampled anew for each step (groups of rows, say) and passed to the other two as `context`."""

    def publish(self, output: Output, context: Any) -> Tensor:
        """What a teacher tells about the validation batch, differentiable; one tensor of a fixed shape."""

    def loss(self, published: Tensor, output: Output, context: Any) -> Tensor:
        """published [K, ...] of all learners, the student's output -> [K], the student's loss against each teacher."""

    def twice_differentiable(self) -> Transfer:
        """The same transfer over operations whose backward pass can be differentiated again."""


@dataclass
class Learner:
    """A network, its architecture parameters, and two weight sets, each a flat vector [num_weights] with its momentum buffer."""

    network: Network  # as it is in this step: schedules and draws included
    alphas: Tensor
    v: Tensor
    w: Tensor
    v_momentum: Tensor
    w_momentum: Tensor

    @classmethod
    def create(cls, network: Network, alphas: Tensor, v: Tensor, w: Tensor) -> Learner:
        return cls(network, alphas.requires_grad_(), v, w, torch.zeros_like(v), torch.zeros_like(w))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if name != "network"}


@dataclass(frozen=True)
class Measurement:
    """What stage II knows of all learners: V' on the validation batch. The graph of each forward pass is kept."""

    losses: list[Tensor]  # K scalars with graph, L(V'_k, A_k; val)
    published: list[Tensor]  # K tensors with graph, what learner k would teach
    weights: list[Tensor]  # K vectors V'_k, leaves of those graphs


@dataclass(frozen=True)
class Update:
    """A weight update of one learner: the vector it started from, and d(new weights)/d(gradient) = -step_size."""

    before: Tensor
    step_size: Tensor  # lr times the clipping coefficient


@dataclass
class Hypergradient:
    """The gradient of each learner's architecture, term by term; `total()` is what the optimiser sees."""

    direct: list[Tensor]
    through_w: list[Tensor] = field(default_factory=list)
    through_teacher: list[Tensor] = field(default_factory=list)
    through_v: list[Tensor] = field(default_factory=list)

    def total(self) -> list[Tensor]:
        terms = [term for term in (self.direct, self.through_w, self.through_teacher, self.through_v) if term]
        return [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def pairwise_gaps(losses: Tensor) -> Tensor:
    """h(d_kj) = max(0, l_k - l_j) of Eq. (6): row k, column j; positive where j did better and may teach k. losses [K]."""
    return torch.relu(losses[:, None] - losses[None, :])


class TriLevelStep:
    """The parts of one step over K learners; a method calls them in its own order."""

    def __init__(self, passes: Passes, transfer: Transfer, *, weight: float, sgd: SGD, fd_step: float = DEFAULT_FD_STEP) -> None:
        self.passes, self.transfer, self.weight, self.sgd, self.fd_step = passes, transfer, weight, sgd, fd_step

    def train_v(self, learner: Learner, train: Batch, lr: float) -> tuple[Tensor, Update]:
        """Stage I, Eq. (8): V <- V'. Returns the training loss."""
        return self._train(learner, "v", train, lr, None)

    def measure(self, learners: Sequence[Learner], valid: Batch, context: Any) -> Measurement:
        """V' on the validation batch: losses and what each learner could teach, graphs kept for the hypergradient."""
        losses, published, weights = [], [], []
        for learner in learners:
            v = learner.v.detach().requires_grad_()
            loss, output = self.passes.forward("v_valid", learner, v, valid)
            losses.append(loss)
            published.append(self.transfer.publish(output, context))
            weights.append(v)
        return Measurement(losses, published, weights)

    def distillation(
        self, k: int, learner: Learner, w: Tensor, valid: Batch, losses: Tensor, published: Tensor, context: Any, name: str
    ) -> Tensor:
        """lambda * sum_j h(d_kj) G_kj of Eq. (4), (6), (7): what better learners add to the loss of student k."""
        _, output = self.passes.forward(name, learner, w, valid)
        return self.weight * (pairwise_gaps(losses)[k] * self.transfer.loss(published, output, context)).sum()

    def train_w(
        self, learner: Learner, train: Batch, lr: float, distillation: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Update]:
        """Stage II, Eq. (9): W <- W'. `distillation(w)` is the loss that better learners add. Returns the training loss."""
        return self._train(learner, "w", train, lr, distillation)

    def validate_w(self, learners: Sequence[Learner], valid: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Stage III: losses and accuracies of W' on the validation batch, u_k = dL/dW'_k, and the direct term dL/dA_k."""
        losses, accuracy, u, direct = [], [], [], []
        for learner in learners:
            w = learner.w.detach().requires_grad_()
            loss, output = self.passes.forward("w_valid", learner, w, valid)
            grad_w, grad_alphas = self.passes.backward("w_valid", [loss], [w, learner.alphas])
            losses.append(loss.detach())
            accuracy.append(accuracy_of(output, valid))
            u.append(grad_w)
            direct.append(grad_alphas)
        return losses, accuracy, u, direct

    def hypergradient(
        self,
        learners: Sequence[Learner],
        train: Batch,
        valid: Batch,
        measured: Measurement | None,
        students: Sequence[int],
        v_updates: Sequence[Update],
        w_updates: Sequence[Update],
        u: Sequence[Tensor],
        direct: Sequence[Tensor],
        context: Any,
    ) -> Hypergradient:
        """The second-order terms by central differences; `students` are the learners that somebody taught in this step
        (none, and no measurement, with K = 1)."""
        result = Hypergradient(list(direct))
        if students:
            losses = torch.stack([loss.detach() for loss in measured.losses]).requires_grad_()
            published = torch.stack([p.detach() for p in measured.published]).requires_grad_()
            loss_cotangent, published_cotangent = torch.zeros_like(losses), torch.zeros_like(published)
        for k, (learner, update) in enumerate(zip(learners, w_updates, strict=True)):
            inputs = [learner.alphas, losses, published] if k in students else [learner.alphas]

            def gradients(w: Tensor, k=k, learner=learner, inputs=inputs) -> list[Tensor]:
                loss, _ = self.passes.forward("w_train_perturbed", learner, w, train)
                grads = list(self.passes.backward("w_train_perturbed", [loss], inputs[:1]))
                if k in students:
                    taught = self.distillation(k, learner, w, valid, losses, published, context, "w_valid_perturbed")
                    taught_grads = self.passes.backward("w_valid_perturbed", [taught], inputs)
                    grads = [grads[0] + taught_grads[0], *taught_grads[1:]]
                return grads

            through, *coupling = self._difference(gradients, update.before, u[k], inputs)
            result.through_w.append(-update.step_size * through)
            if coupling:
                loss_cotangent += update.step_size * coupling[0]
                published_cotangent += update.step_size * coupling[1]
        if not students:
            return result
        for k, (learner, update) in enumerate(zip(learners, v_updates, strict=True)):
            v, through = self.passes.backward(
                "v_valid",
                [measured.losses[k], measured.published[k]],
                [measured.weights[k], learner.alphas],
                [loss_cotangent[k], published_cotangent[k]],
            )
            result.through_teacher.append(-through)

            def gradient(weights: Tensor, learner=learner) -> list[Tensor]:
                loss, _ = self.passes.forward("v_train_perturbed", learner, weights, train)
                return list(self.passes.backward("v_train_perturbed", [loss], [learner.alphas]))

            (through,) = self._difference(gradient, update.before, v, [learner.alphas])
            result.through_v.append(update.step_size * through)
        return result

    def _train(
        self, learner: Learner, name: str, train: Batch, lr: float, distillation: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Update]:
        before = getattr(learner, name)
        weights = before.detach().requires_grad_()
        loss, _ = self.passes.forward(f"{name}_train", learner, weights, train)
        (grad,) = self.passes.backward(f"{name}_train", [loss], [weights])
        if distillation is not None:
            grad = grad + self.passes.backward("w_valid_student", [distillation(weights)], [weights])[0]
        new, momentum, coefficient = self.sgd.update(before, getattr(learner, f"{name}_momentum"), grad, lr)
        setattr(learner, name, new)
        setattr(learner, f"{name}_momentum", momentum)
        return loss.detach(), Update(before, lr * coefficient)

    def _difference(
        self, gradients: Callable[[Tensor], list[Tensor]], point: Tensor, direction: Tensor, like: Sequence[Tensor]
    ) -> list[Tensor]:
        """[gradients(point + e * direction) - gradients(point - e * direction)] / 2e, e = fd_step / ||direction||.

        Perturbs copies: the weights themselves are never written. A zero direction has derivative zero.
        """
        norm = torch.linalg.vector_norm(direction)
        if norm == 0:
            return [torch.zeros_like(x) for x in like]
        eps = self.fd_step / norm
        plus, minus = (gradients(torch.addcmul(point, direction, sign * eps)) for sign in (1, -1))
        return [(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)]


def accuracy_of(output: Output, batch: Batch) -> Tensor:
    return (output.logits.detach().argmax(1) == batch.labels).float().mean()
