"""The tri-level PAMKD step as a fixed schedule of forward and backward passes.

Sec. 3 of the paper. Stages I and II are the weight updates themselves (V continues from V', W from W'), so the
hypergradient needs no virtual steps. With u_k = dL(W'_k, A_k; val)/dW'_k and Phi = sum_k xi_k <dO/dW_k, u_k>:

    dJ/dA =   sum_k dL(W'_k, A_k; val)/dA                          direct
            - dPhi/dA                                              through W' (training loss, student embeddings)
            - dPhi/dl . dl/dA - dPhi/ds . ds/dA                    through the teachers' losses l and knowledge s
            + xi_V d2L(V, A; tr)/dAdV . v,  v = dPhi/dV'           through V'

Derivatives of Phi are central differences of first-order gradients of O at W +- step * u / ||u||, read off at the
architecture, at l (K numbers) and at s (what the teachers publish): these small vectors are all that couples learners, and
all that travels between processes where learners live on several (`Rows`). Lists of learners hold those of this process, and
passes of one kind are asked for together, those of all learners and both ends of a difference: `Passes` may make them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
        """A learner at its start, with momentum of zero; `alphas` becomes a leaf that requires gradients, v and w are [num_weights]."""
        return cls(network, alphas.requires_grad_(), v, w, torch.zeros_like(v), torch.zeros_like(w), number)

    def apart(self) -> Learner:
        """This learner with its architecture as a leaf of its own: derivatives by it are those of one pass among several."""
        return replace(self, alphas=self.alphas.detach().requires_grad_())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything of it that a checkpoint holds, by name."""
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

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.losses, self.published

    def leaves(self) -> Lesson:
        """The same numbers as leaves that require gradients."""
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
        """The sum of the terms that the step has, for each learner of the shape of its alphas."""
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

    def train_v(self, learners: Sequence[Learner], train: Batch, lr: float) -> tuple[list[Tensor], list[Update]]:
        """Stage I, Eq. (8): V <- V'. Returns the training losses and the updates."""
        weights = [learner.v.detach().requires_grad_() for learner in learners]
        ran = self.passes.run("v_train", learners, weights, train, [[v] for v in weights])
        updates = []
        for learner, done in zip(learners, ran, strict=True):
            before = learner.v
            learner.v, learner.v_momentum, coefficient = self.sgd.update(before, learner.v_momentum, done.grads[0], lr)
            self.passes.watch.term([learner.v], "updated V", learner.number, "pass v_train")
            updates.append(Update(before, lr * coefficient))
        return [done.terms[0] for done in ran], updates

    def measure(self, learners: Sequence[Learner], train: Batch, valid: Batch, context: Any) -> Measurement:
        """V' on the batch on which they teach: losses and what each learner could teach, graphs kept for the hypergradient."""
        batch = train if self.teaching.batch == "train" else valid
        weights = [learner.v.detach().requires_grad_() for learner in learners]
        losses, outputs = self.passes.forward("v_teach", learners, weights, batch)
        published = [self.teaching.transfer.publish(output, v, context) for output, v in zip(outputs, weights, strict=True)]
        return Measurement(losses, published, weights)

    def train_w(
        self, learners: Sequence[Learner], train: Batch, valid: Batch, lesson: Lesson | None, students: Sequence[int], lr: float
    ) -> tuple[list[Tensor], list[Tensor], list[Update]]:
        """Stage II, Eq. (9): W <- W', taught by `lesson` those of all K learners that are `students`.

        Returns the training losses, what the lesson added to them, and the updates.
        """
        weights = [learner.w.detach().requires_grad_() for learner in learners]
        here = self.rows.indices(len(learners))
        lessons = [lesson if k in students else None for k in here]
        losses, taught, grads = self._stage_two(here, learners, weights, train, valid, lessons, [[w] for w in weights], "")
        updates = []
        for learner, (grad,) in zip(learners, grads, strict=True):
            before = learner.w
            learner.w, learner.w_momentum, coefficient = self.sgd.update(before, learner.w_momentum, grad, lr)
            self.passes.watch.term([learner.w], "updated W", learner.number, "pass w_train")
            updates.append(Update(before, lr * coefficient))
        return losses, taught, updates

    def validate_w(self, learners: Sequence[Learner], valid: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Stage III: losses and accuracies of W' on the validation batch, u_k = dL/dW'_k, and the direct term dL/dA_k."""
        weights = [learner.w.detach().requires_grad_() for learner in learners]
        inputs = [[w, learner.alphas] for w, learner in zip(weights, learners, strict=True)]
        ran = self.passes.run("w_valid", learners, weights, valid, inputs)
        u, direct = zip(*(done.grads for done in ran), strict=True)
        return [done.terms[0] for done in ran], [accuracy_of(done.output, valid) for done in ran], list(u), list(direct)

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
        here = self.rows.indices(len(learners))

        def by_w(points: list[Tensor]) -> list[tuple[Tensor, ...]]:
            who, twins = [*here, *here], [learner.apart() for learner in (*learners, *learners)]  # + of all, then - of all
            lessons = [lesson.leaves() if lesson is not None and k in students else None for k in who]
            inputs = [[twin.alphas, *(own.tensors if own else ())] for twin, own in zip(twins, lessons, strict=True)]
            return self._stage_two(who, twins, points, train, valid, lessons, inputs, PERTURBED)[2]

        result = Hypergradient(list(direct))
        if lesson is not None and students:
            loss_cotangent, published_cotangent = torch.zeros_like(lesson.losses), torch.zeros_like(lesson.published)
        found = central_difference(by_w, [update.before for update in w_updates], u, self.fd_step)
        for update, (through, *coupling) in zip(w_updates, found, strict=True):
            result.through_w.append(-update.step_size * through)
            if coupling:
                loss_cotangent += update.step_size * coupling[0]
                published_cotangent += update.step_size * coupling[1]
        if measured is None or not students:
            return result

        loss_cotangent, published_cotangent = self.rows.total([loss_cotangent, published_cotangent])
        outputs = list(zip(measured.losses, measured.published, strict=True))
        inputs = [[v, learner.alphas] for v, learner in zip(measured.weights, learners, strict=True)]
        cotangents = [(loss_cotangent[k], published_cotangent[k]) for k in here]
        v, through_teacher = zip(*self.passes.backward("v_teach", learners, outputs, inputs, cotangents), strict=True)
        result.through_teacher = [-through for through in through_teacher]

        def by_v(points: list[Tensor]) -> list[tuple[Tensor, ...]]:
            twins = [learner.apart() for learner in (*learners, *learners)]
            ran = self.passes.run("v_train" + PERTURBED, twins, points, train, [[twin.alphas] for twin in twins])
            return [done.grads for done in ran]

        found = central_difference(by_v, [update.before for update in v_updates], v, self.fd_step)
        result.through_v = [update.step_size * through for update, (through,) in zip(v_updates, found, strict=True)]
        return result

    def _stage_two(
        self,
        who: Sequence[int],
        learners: Sequence[Learner],
        weights: Sequence[Tensor],
        train: Batch,
        valid: Batch,
        lessons: Sequence[Lesson | None],
        inputs: Sequence[Sequence[Tensor]],
        suffix: str,
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, ...]]]:
        """Training losses and lessons of learners at these weights (Eq. 4), and the gradients of each one's sum by its `inputs`.

        who[i] is the place of learners[i] among all K, lessons[i] what it is taught, inputs[i][0] its weights or its architecture; further
        inputs belong to the lesson. Teaching on the training batch shares its pass.
        """
        shared = self.teaching.batch == "train"
        taught_by = {i: lesson for i, lesson in enumerate(lessons) if lesson is not None}
        students = list(taught_by)

        def taught(i: int, output: Output, name: str) -> Tensor:
            return self._taught(who[i], learners[i], weights[i], output, taught_by[i], name + suffix)

        def train_terms(i: int, loss: Tensor, output: Output) -> list[Tensor]:
            return [loss, taught(i, output, "w_train")] if shared and i in taught_by else [loss]

        def taught_terms(j: int, loss: Tensor, output: Output) -> list[Tensor]:
            return [taught(students[j], output, "w_taught")]

        by = inputs if shared else [some[:1] for some in inputs]
        ran = self.passes.run("w_train" + suffix, learners, weights, train, by, train_terms)
        terms, grads = [done.terms for done in ran], [done.grads for done in ran]
        if not shared:
            those, at, by = [learners[i] for i in students], [weights[i] for i in students], [inputs[i] for i in students]
            for i, done in zip(students, self.passes.run("w_taught" + suffix, those, at, valid, by, taught_terms), strict=True):
                terms[i] = terms[i] + done.terms
                grads[i] = (grads[i][0] + done.grads[0], *done.grads[1:])
        return [loss for loss, *_ in terms], [sum(rest, torch.zeros_like(loss)) for loss, *rest in terms], grads

    def _taught(self, k: int, learner: Learner, weights: Tensor, output: Output, lesson: Lesson, name: str) -> Tensor:
        """lambda * sum_j h(d_kj) G_kj of Eq. (4), (6), (7): what its teachers add to the loss of student k."""
        against = self.teaching.transfer.loss(lesson.published, output, weights, lesson.context)
        taught = self.teaching.weight * (self.teaching.scrutiny(lesson.losses)[k] * against).sum()
        self.passes.watch.term([taught], "distillation loss", learner.number, f"pass {name}")
        return taught


def accuracy_of(output: Output, batch: Batch) -> Tensor:
    """The share of the batch whose largest logit is the label's, a scalar."""
    return (output.logits.detach().argmax(1) == batch.labels).float().mean()
