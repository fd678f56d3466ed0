"""What every method is: one step over all learners, and what the search may ask of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pamkd.distributed import ALL_HERE, Rows
from pamkd.spaces.supernet import Supernet
from pamkd.trilevel.difference import DEFAULT_FD_STEP
from pamkd.trilevel.passes import Batch, Passes
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Learner

Phase = Literal["warmup-v", "warmup-w", "search"]
Order = Literal["first", "second"]


@dataclass
class SupernetLearner(Learner):
    """A learner of a search, whose network is the supernet of a space."""

    network: Supernet


@dataclass(frozen=True)
class StepReport:
    """What happened in one step; K entries each, NaN where the method, the phase or K = 1 leaves a number out."""

    train_loss: list[float]  # of W, before its update
    train_loss_v: list[float]  # of V, before its update
    valid_loss: list[float]  # of W'
    valid_accuracy: list[float]  # of W'
    valid_loss_v: list[float]  # of V': who may teach
    distill_loss: list[float]  # what others added to the loss of W
    flow: list[list[float]]  # row k was taught by column j with this weight


@dataclass(frozen=True)
class StepTensors:
    """A `StepReport` on the device: an entry for each learner that is here and, for the flow, [K, K]; None where all are left out."""

    train_loss: Tensor | None = None
    train_loss_v: Tensor | None = None
    valid_loss: Tensor | None = None
    valid_accuracy: Tensor | None = None
    valid_loss_v: Tensor | None = None
    distill_loss: Tensor | None = None
    flow: Tensor | None = None  # None: nobody was taught

    def read(self, here: int, rows: Rows = ALL_HERE) -> StepReport:
        """Of all learners, `here` of which are here. Waits for the device, once."""
        learners = rows.count(here)
        there = {name: value.double() for name, value in vars(self).items() if value is not None}
        names = [name for name in there if name != "flow"]
        there |= zip(names, rows.gather([list(values) for values in zip(*(there[name] for name in names), strict=True)]), strict=True)
        numbers = iter(torch.cat([value.flatten() for value in there.values()]).tolist())
        nothing = {name: [math.nan] * learners for name in vars(self)} | {"flow": [0.0] * learners**2}
        lists: dict[str, Any] = {name: [next(numbers) for _ in entries] if name in there else entries for name, entries in nothing.items()}
        lists["flow"] = [lists["flow"][k * learners : (k + 1) * learners] for k in range(learners)]
        return StepReport(**lists)


@dataclass
class Method:
    """K learners' steps. The fields that a subclass adds are its options. Lists of learners hold those that `rows` has here.

    `order` "first" leaves out all terms of the hypergradient but the direct one (Darts1st); `exact` takes the
    second-order terms by double backward instead of finite differences. `seed` starts the method's own networks.
    """

    _: KW_ONLY
    passes: Passes = field(default_factory=Passes)
    sgd: SGD = field(default_factory=SGD)
    fd_step: float = DEFAULT_FD_STEP
    order: Order = "second"
    exact: bool = False
    seed: int = 0
    rows: Rows = field(default_factory=Rows)

    two_sets: ClassVar[bool] = False  # learners have V and W
    learners: ClassVar[tuple[int, float]] = (1, math.inf)  # fewest and most

    def step(
        self, learners: Sequence[SupernetLearner], train: Batch, valid: Batch, *, lr: float, phase: Phase, seed: int
    ) -> tuple[StepReport, list[Tensor] | None]:
        """Updates the weights of every learner; returns the hypergradient of each architecture in the phase "search".

        Raises Diverged when a number of the step is not finite; learners may then have half of the updates.
        """
        drawn = self.draw(train, valid, phase=phase, learners=self.rows.count(len(learners)), seed=seed)
        found, hypergradient = self.take(learners, train, valid, lr=lr, phase=phase, drawn=drawn)
        report = found.read(len(learners), self.rows)  # the step's last exchange with other processes, which they all make
        self.passes.watch.take().check()
        return report, hypergradient

    def draw(self, train: Batch, valid: Batch, *, phase: Phase, learners: int, seed: int) -> Any:
        """What a step draws on the host: here the seed itself, for draws within the step."""
        return seed

    def take(
        self, learners: Sequence[SupernetLearner], train: Batch, valid: Batch, *, lr: float, phase: Phase, drawn: Any
    ) -> tuple[StepTensors, list[Tensor] | None]:
        """A step that has drawn already. With static passes it reads nothing from the device."""
        raise NotImplementedError

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        """Called with fresh learners, at the start of a search and of each of its stages."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, also before one that is resumed in its middle."""

    def measure(self, learners: Sequence[SupernetLearner], valid: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Called at the start of each epoch; `valid()` yields the whole validation set, once."""

    def summary(self, learners: Sequence[SupernetLearner], valid: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> dict[str, Any]:
        """What the method says of the learners when the search is over, as JSON."""
        return {}

    def retained(self, valid_loss: Sequence[float]) -> int:
        """The learner whose architecture is kept: the one with the lowest validation loss (Sec. 4.2)."""
        return min(range(len(valid_loss)), key=valid_loss.__getitem__)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold besides the learners."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, on the device of the learners."""
