"""Cream of the crop, "Cream" (Peng et al., NeurIPS 2020): good paths of one supernet teach others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.methods.method import SupernetLearner
from pamkd.methods.one_set import OneSet
from pamkd.methods.paths import along, draw_path, path_cost
from pamkd.trilevel.passes import Batch

ACCURACY_LEAD = 0.05  # with which a path enters the board whatever it costs
SMOOTHING = 0.1  # of labels
META_CLIP = 1.0


@dataclass
class Cream(OneSet):
    """CE(mixed supernet) + weight / 2 [rho SCE(q_b, z_a) + (2 - rho) CE(z_a)]: paths a, drawn anew, and b, of a board, share W.

    The board keeps the `board_size` best paths by accuracy on their training batch, each with `board_images` images and its
    teacher's predictions q on them. A linear meta network M looks at softmax(z_a) - q on those images; b = argmax M and
    rho = sigmoid(-M_b). Every `meta_every` steps M learns from what a step of W along rho SCE on the batch's first images
    does to CE on the next ones. Before epoch `cream_start` (None: 20 / 120 of all, as Peng et al.) and while the board is empty
    a path learns from labels alone, with `weight`. Paths do not depend on the architecture parameters, which follow the mixed supernet as
    in DARTS; Peng et al. have no mixed supernet, so the weight is this library's.
    """

    weight: float = 1.0
    board_size: int = 10
    board_images: int = 4
    meta_every: int = 60
    meta_lr: float = 1e-4
    cream_start: int | None = None

    learners = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._open, self._steps = True, 0
        self._board: list[dict[str, Tensor]] = []

    def start(self, learners: Sequence[SupernetLearner]) -> None:
        size = self.board_images * learners[0].network.classes
        random = torch.Generator().manual_seed(self.seed)
        self._board, self._steps = [], 0
        self._meta = ((2 * torch.rand(size + 1, generator=random) - 1) / math.sqrt(size)).to(learners[0].w)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self._open = epoch >= (round(20 / 120 * epochs) if self.cream_start is None else self.cream_start)

    def added_gradients(self, learners: Sequence[SupernetLearner], train: Batch, *, lr: float, seed: int) -> list[Tensor]:
        learner = learners[0]
        path = draw_path(learner.network, learner.alphas.detach(), torch.Generator().manual_seed(seed % 2**63))
        w = learner.w.detach().requires_grad_()
        logits = self._logits("path", learner, w, path, train.images)
        loss = F.cross_entropy(logits, train.labels, label_smoothing=SMOOTHING)
        soft = logits.detach().softmax(1)
        self._steps += 1
        if self._open and self._board:
            features = self._features(learner, path)
            score, b = (features @ self._meta[:-1] + self._meta[-1]).max(0)
            rho, teacher = torch.sigmoid(-score).item(), self._board[b]["path"]
            with torch.no_grad():
                soft = self._logits("teacher", learner, w, teacher, train.images).softmax(1)
            loss = 0.5 * (rho * F.cross_entropy(logits, soft) + (2 - rho) * loss)
            if self._steps % self.meta_every == 0:
                self._train_meta(learner, path, soft, train, rho, features[b], lr)
        ((grad,),) = self.passes.backward("path", [learner], [[self.weight * loss]], [[w]])
        if self._open:
            self._admit(learner, path, logits.detach(), soft, train)
        return [grad]

    def _logits(self, name: str, learner: SupernetLearner, w: Tensor, path: Tensor, images: Tensor) -> Tensor:
        self.passes.forwards[name] += 1
        return along(learner.network, path).forward(w, learner.alphas.detach(), images).logits

    @torch.no_grad()
    def _features(self, learner: SupernetLearner, path: Tensor) -> Tensor:
        """[entries of the board, board_images * classes]: what M sees."""
        images, soft = (torch.cat([entry[name] for entry in self._board]) for name in ("images", "soft"))
        return (self._logits("board", learner, learner.w, path, images).softmax(1) - soft).view(len(self._board), -1)

    def _train_meta(
        self, learner: SupernetLearner, path: Tensor, soft: Tensor, train: Batch, rho: float, features: Tensor, lr: float
    ) -> None:
        """dCE(W - lr rho g) / dM = -lr <dCE/dW', g> drho/dM with g = dSCE/dW: two first-order gradients."""
        first, second = (slice(i * self.board_images, (i + 1) * self.board_images) for i in (0, 1))
        w = learner.w.detach().requires_grad_()
        loss = F.cross_entropy(self._logits("meta", learner, w, path, train.images[first]), soft[first])
        ((g,),) = self.passes.backward("meta", [learner], [[loss]], [[w]])
        w = (learner.w - lr * rho * g).detach().requires_grad_()
        loss = F.cross_entropy(self._logits("meta", learner, w, path, train.images[second]), train.labels[second])
        ((after,),) = self.passes.backward("meta", [learner], [[loss]], [[w]])
        grad = lr * (after @ g) * rho * (1 - rho) * torch.cat([features, features.new_ones(1)])
        self._meta = self._meta - self.meta_lr * grad * (META_CLIP / (grad.norm() + 1e-6)).clamp(max=1.0)

    def _admit(self, learner: SupernetLearner, path: Tensor, logits: Tensor, soft: Tensor, train: Batch) -> None:
        """Take the path where there is room, where it is much better than the worst, or better and cheaper."""
        accuracy = (logits.argmax(1) == train.labels).double().mean()
        cost = torch.tensor(float(path_cost(learner.network, path)), device=accuracy.device)  # as that of entries from a checkpoint
        if len(self._board) == self.board_size:
            worst = self._board[-1]
            lead = accuracy - worst["accuracy"]
            if not (lead > ACCURACY_LEAD or (lead > 0 and cost < worst["cost"])):
                return
            self._board.pop()
        images, soft = train.images[: self.board_images], soft[: self.board_images]
        self._board.append({"path": path, "accuracy": accuracy, "cost": cost, "images": images, "soft": soft})
        self._board.sort(key=lambda entry: -entry["accuracy"].item())

    def state(self) -> dict[str, Tensor]:
        state = super().state() | {"meta": self._meta, "steps": torch.tensor(self._steps)}
        names = self._board[0] if self._board else ()
        return state | {f"board.{name}": torch.stack([entry[name] for entry in self._board]) for name in names}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self._steps = int(state["steps"])
        self._meta = state["meta"]
        parts = {name.removeprefix("board."): value.unbind() for name, value in state.items() if name.startswith("board.")}
        self._board = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
