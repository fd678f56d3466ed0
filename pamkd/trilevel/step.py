"""The tri-level PAMKD step as a fixed schedule of forward and backward passes.

Sec. 3 of the paper. Stages I and II are the weight updates themselves (V continues from V', W from W'), so the
hypergradient needs no virtual steps. With u_k = dL(W'_k, A_k; val)/dW'_k and Phi = sum_k xi_k <dO/dW_k, u_k>:

    dJ/dA =   sum_k dL(W'_k, A_k; val)/dA                          direct
            - dPhi/dA                                              through W' (training loss, student embeddings)
            - dPhi/dl . dl/dA - dPhi/ds . ds/dA                    through the teachers' losses l and knowledge s
            + xi_V d2L(V, A; tr)/dAdV . v,  v = dPhi/dV'           through V'

Derivatives of Phi are central differences of first-order gradients of O at W +- step * u / ||u||, read off at the
architecture, at l (K numbers) and at s (what the teachers publish): these small vectors are all that couples learners, and
all that travels between processes where learners live on several (`Rows`). Lists of learners hold those of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows
from pamkd.spaces.supernet import Output
from pamkd.trilevel.difference import DEFAULT_FD_STEP, central_difference
from pamkd.trilevel.passes import PERTURBED, Batch, Network, Passes
from pamkd.trilevel.sgd import SGD

AnyLearner = TypeVar("AnyLearner", bound="Learner")


class Transfer(Protocol):
    """How one learner teaches another: what it publishes about a batch, and how well a student agrees with it."""

    def draw(self, batch: Batch, seed: int) -> Any:
        """What is sampled anew for each step (groups of rows, say) and passed to the other two as `context`."""

    def publish(self, output: Output, weights: Tensor, context: Any) -> Tensor:
        """What a teacher with these weights tells about the batch, differentiable; one tensor of a fixed shape."""

    def loss(self, published: Tensor, output: Output, weights: Tensor, context: Any) -> Tensor:
        """published [K, ...] of all learners, the student's output and weights -> [K], its loss against each teacher."""

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
    number: int = 0  # its place among all learners

    @classmethod
    def create(cls: type[AnyLearner], network: Network, alphas: Tensor, v: Tensor, w: Tensor, number: int = 0) -> AnyLearner:
        return cls(network, alphas.requires_grad_(), v, w, torch.zeros_like(v), torch.zeros_like(w), number)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Measurement:
    """What stage II knows of its learners: V' on the batch on which they teach. The graph of each forward pass is kept."""

    losses: list[Tensor]  # scalars with graph, L(V'_k, A_k; batch)
    published: list[Tensor]  # tensors with graph, what learner k would teach
    weights: list[Tensor]  # vectors V'_k, leaves of those graphs


@dataclass(frozen=True)
class Lesson:
    """What all learners measured, as constants, or as leaves at which the hypergradient reads off what they are worth."""

    losses: Tensor  # [K]
    published: Tensor  # [K, ...]
    context: Any

    @classmethod
    def of(cls, measured: Measurement, context: Any, rows: Rows = ALL_HERE) -> Lesson:
        parts = zip(measured.losses, measured.published, strict=True)
        losses, published = rows.gather([(loss.detach(), told.detach()) for loss, told in parts])
        return cls(losses, published, context)

    def leaves(self) -> Lesson:
        return Lesson(self.losses.detach().requires_grad_(), self.published.detach().requires_grad_(), self.context)


@dataclass(frozen=True)
class Update:
    """A weight update of one learner: the vector it started from, and d(new weights)/d(gradient) = -step_size."""

    before: Tensor
    step_size: Tensor  # lr times the clipping coefficient


@dataclass
class Hypergradient:
    """The gradient of the architectures of the learners here, term by term; `total()` is what the optimiser sees."""

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


def everybody(losses: Tensor) -> Tensor:
    """Weights 1 / (K - 1): each learner is taught by all others, however well they do. losses [K] -> [K, K]."""
    count = len(losses)
    return (1 - torch.eye(count, dtype=losses.dtype, device=losses.device)) / max(1, count - 1)


def together(losses: Tensor) -> Tensor:
    """Weights 1 / K: all learners, the student too, form one teacher. losses [K] -> [K, K]."""
    return losses.new_full((len(losses), len(losses)), 1 / len(losses))


@dataclass(frozen=True)
class Teaching:
    """Stage II: a student k adds `weight * sum_j scrutiny(losses)[k, j] * transfer.loss(...)[j]` to its training loss.

    The paper's: scrutiny by the gaps of Eq. (6), on the validation batch, whose labels only the losses read.
    """

    transfer: Transfer
    weight: float
    scrutiny: Callable[[Tensor], Tensor] = pairwise_gaps
    batch: Literal["train", "valid"] = "valid"


class TriLevelStep:
    """The parts of one step over K learners with two weight sets; a method calls them in its own order."""

    def __init__(self, passes: Passes, teaching: Teaching, *, sgd: SGD, fd_step: float = DEFAULT_FD_STEP, rows: Rows = ALL_HERE) -> None:
        self.passes, self.teaching, self.sgd, self.fd_step, self.rows = passes, teaching, sgd, fd_step, rows

    def train_v(self, learner: Learner, train: Batch, lr: float) -> tuple[Tensor, Update]:
        """Stage I, Eq. (8): V <- V'. Returns the training loss."""
        weights = learner.v.detach().requires_grad_()
        loss, _ = self.passes.forward("v_train", learner, weights, train)
        (grad,) = self.passes.backward("v_train", learner, [loss], [weights])
        learner.v, learner.v_momentum, coefficient = self.sgd.update(learner.v, learner.v_momentum, grad, lr)
        self.passes.watch.term([learner.v], "updated V", learner.number, "pass v_train")
        return loss.detach(), Update(weights.detach(), lr * coefficient)

    def measure(self, learners: Sequence[Learner], train: Batch, valid: Batch, context: Any) -> Measurement:
        """V' on the batch on which they teach: losses and what each learner could teach, graphs kept for the hypergradient."""
        losses, published, weights = [], [], []
        batch = train if self.teaching.batch == "train" else valid
        for learner in learners:
            v = learner.v.detach().requires_grad_()
            loss, output = self.passes.forward("v_teach", learner, v, batch)
            losses.append(loss)
            published.append(self.teaching.transfer.publish(output, v, context))
            weights.append(v)
        return Measurement(losses, published, weights)

    def train_w(
        self, k: int, learner: Learner, train: Batch, valid: Batch, lesson: Lesson | None, lr: float
    ) -> tuple[Tensor, Tensor, Update]:
        """Stage II, Eq. (9): W <- W' of learner k, taught by `lesson` (None: by nobody).

        Returns the training loss, what the lesson added to it, and the update.
        """
        weights = learner.w.detach().requires_grad_()
        loss, taught, (grad,) = self._stage_two(k, weights, learner, train, valid, lesson, [weights], "")
        learner.w, learner.w_momentum, coefficient = self.sgd.update(learner.w, learner.w_momentum, grad, lr)
        self.passes.watch.term([learner.w], "updated W", learner.number, "pass w_train")
        return loss.detach(), taught.detach(), Update(weights.detach(), lr * coefficient)

    def validate_w(self, learners: Sequence[Learner], valid: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Stage III: losses and accuracies of W' on the validation batch, u_k = dL/dW'_k, and the direct term dL/dA_k."""
        losses, accuracy, u, direct = [], [], [], []
        for learner in learners:
            w = learner.w.detach().requires_grad_()
            loss, output = self.passes.forward("w_valid", learner, w, valid)
            grad_w, grad_alphas = self.passes.backward("w_valid", learner, [loss], [w, learner.alphas])
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
        lesson: Lesson | None,
        students: Sequence[int],
        v_updates: Sequence[Update],
        w_updates: Sequence[Update],
        u: Sequence[Tensor],
        direct: Sequence[Tensor],
    ) -> Hypergradient:
        """The second-order terms by central differences; `students` are those of all K learners that somebody taught in this
        step (none, and no measurement, with K = 1)."""
        result = Hypergradient(list(direct))
        if lesson is not None and students:
            lesson = lesson.leaves()
            loss_cotangent, published_cotangent = torch.zeros_like(lesson.losses), torch.zeros_like(lesson.published)
        here = self.rows.indices(len(learners))
        for k, learner, update, vector in zip(here, learners, w_updates, u, strict=True):
            taught_by = lesson if k in students else None
            inputs = [learner.alphas, taught_by.losses, taught_by.published] if taught_by else [learner.alphas]

            def gradients(
                point: list[Tensor],
                k: int = k,
                learner: Learner = learner,
                taught_by: Lesson | None = taught_by,
                inputs: list[Tensor] = inputs,
            ) -> list[Tensor]:
                return self._stage_two(k, point[0], learner, train, valid, taught_by, inputs, PERTURBED)[2]

            through, *coupling = central_difference(gradients, [update.before], [vector], self.fd_step)
            result.through_w.append(-update.step_size * through)
            if coupling:
                loss_cotangent += update.step_size * coupling[0]
                published_cotangent += update.step_size * coupling[1]
        if measured is None or not students:
            return result
        loss_cotangent, published_cotangent = self.rows.total([loss_cotangent, published_cotangent])
        for i, (k, learner, update) in enumerate(zip(here, learners, v_updates, strict=True)):
            v, through = self.passes.backward(
                "v_teach",
                learner,
                [measured.losses[i], measured.published[i]],
                [measured.weights[i], learner.alphas],
                [loss_cotangent[k], published_cotangent[k]],
            )
            result.through_teacher.append(-through)

            def gradient(point: list[Tensor], learner: Learner = learner) -> list[Tensor]:
                loss, _ = self.passes.forward("v_train" + PERTURBED, learner, point[0], train)
                return list(self.passes.backward("v_train" + PERTURBED, learner, [loss], [learner.alphas]))

            (through,) = central_difference(gradient, [update.before], [v], self.fd_step)
            result.through_v.append(update.step_size * through)
        return result

    def _stage_two(
        self,
        k: int,
        weights: Tensor,
        learner: Learner,
        train: Batch,
        valid: Batch,
        lesson: Lesson | None,
        inputs: Sequence[Tensor],
        suffix: str,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Training loss and lesson of learner k at these weights (Eq. 4), and the gradients of their sum by `inputs`.

        inputs[0] is its weights or its architecture; further ones belong to the lesson. Teaching on the training batch shares its pass.
        """
        loss, output = self.passes.forward("w_train" + suffix, learner, weights, train)
        if lesson is None:
            return loss, torch.zeros_like(loss), list(self.passes.backward("w_train" + suffix, learner, [loss], inputs[:1]))
        if self.teaching.batch == "train":
            taught = self._taught(k, learner, weights, output, lesson, "w_train" + suffix)
            return loss, taught, list(self.passes.backward("w_train" + suffix, learner, [loss + taught], inputs))
        grads = self.passes.backward("w_train" + suffix, learner, [loss], inputs[:1])
        _, output = self.passes.forward("w_taught" + suffix, learner, weights, valid)
        taught = self._taught(k, learner, weights, output, lesson, "w_taught" + suffix)
        more = self.passes.backward("w_taught" + suffix, learner, [taught], inputs)
        return loss, taught, [grads[0] + more[0], *more[1:]]

    def _taught(self, k: int, learner: Learner, weights: Tensor, output: Output, lesson: Lesson, name: str) -> Tensor:
        """lambda * sum_j h(d_kj) G_kj of Eq. (4), (6), (7): what its teachers add to the loss of student k."""
        against = self.teaching.transfer.loss(lesson.published, output, weights, lesson.context)
        taught = self.teaching.weight * (self.teaching.scrutiny(lesson.losses)[k] * against).sum()
        self.passes.watch.term([taught], "distillation loss", learner.number, f"pass {name}")
        return taught


def accuracy_of(output: Output, batch: Batch) -> Tensor:
    return (output.logits.detach().argmax(1) == batch.labels).float().mean()
