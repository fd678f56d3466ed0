"""What changes while an evaluation runs: the network of a seed, its optimiser, and the sums of an epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.data import Batches, derived_seed, generator
from pamkd.distributed import Mesh
from pamkd.runs.errors import CheckpointError
from pamkd.runs.evaluate_config import EvaluateConfig
from pamkd.runs.options import FREE, first_difference, fixed
from pamkd.spaces.architecture import Architecture, network_of
from pamkd.spaces.evaluation_network import EvaluationOutput, share_batches
from pamkd.trilevel.finite import Diverged


class EvaluationState:
    """Everything that changes while an evaluation runs, and thus everything that a checkpoint holds."""

    FREE = (*FREE, "run", "genotype")  # the architecture is compared instead

    def __init__(self, config: EvaluateConfig, genotype: Architecture, options: dict[str, Any], mesh: Mesh) -> None:
        self.config, self.genotype, self.options, self.mesh = config, genotype, options, mesh
        self.place = 0  # among the seeds
        self.errors: list[float] = []  # of the seeds that are done
        self._start()

    def _start(self) -> None:
        """A fresh network by PyTorch's defaults, as a function of the seed; the global generator is not disturbed."""
        config, seed = self.config, self.config.seeds[self.place]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "evaluation network"))
            self.network = network_of(self.genotype, **self.options).to(config.device)
        share_batches(self.network, self.mesh.columns)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            fused=config.device.startswith(("cpu", "cuda")),
        )
        self.epoch = 0
        self._clear()

    def _clear(self) -> None:
        self.step = self.correct = self.images = 0
        self.loss_sum = self.seconds = 0.0

    def train(self, images: Tensor, labels: Tensor) -> float:
        """One step. Raises Diverged before a weight changes when the loss or the gradient is not finite."""
        config, seed = self.config, self.config.seeds[self.place]
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.epoch)
        drop_path = config.drop_path * self.epoch / config.epochs
        output = self.network.train()(images, drop_path, generator(seed, "drop-path", self.epoch, self.step))
        (logits,), auxiliary = self.mesh.columns.gather(output.logits), output.auxiliary
        output = EvaluationOutput(logits, None if auxiliary is None else self.mesh.columns.gather(auxiliary)[0])
        loss = F.cross_entropy(output.logits, labels, label_smoothing=config.label_smoothing)
        total = loss
        if output.auxiliary is not None:
            total = loss + config.auxiliary * F.cross_entropy(output.auxiliary, labels, label_smoothing=config.label_smoothing)
        value = self._finite("training loss", total)
        self.optimizer.zero_grad()
        total.backward()
        self._sum_columns()
        self._finite("norm of the gradient", torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip or math.inf))
        self.optimizer.step()
        self.step += 1
        self.images += len(labels)
        self.loss_sum += loss.item() * len(labels)
        self.correct += int((output.logits.argmax(1) == labels).sum())
        return value

    def _finite(self, term: str, value: Tensor) -> float:
        number = value.item()
        if not math.isfinite(number):
            where = f"with seed {self.config.seeds[self.place]} in epoch {self.epoch + 1} step {self.step}"
            raise Diverged(f"the {term} is {number} {where}: lower the learning rate or the clipping norm")
        return number

    @torch.no_grad()
    def _sum_columns(self) -> None:
        """The gradient of the whole batch, and the mean of the running statistics, in one collective."""
        group = self.mesh.columns.group
        if group.size == 1:
            return
        grads = [value.grad for value in self.network.parameters() if value.grad is not None]
        statistics = [value for value in self.network.buffers() if value.is_floating_point()]
        parts = [*grads, *(value / group.size for value in statistics)]
        flat = group.all_reduce(torch.cat([part.reshape(-1) for part in parts]))
        for place, value in zip([*grads, *statistics], flat.split([part.numel() for part in parts]), strict=True):
            place.copy_(value.view(place.shape))

    @torch.no_grad()
    def test(self, batches: Batches) -> dict[str, float]:
        """Mean loss, share of errors, and share of labels beyond the five likeliest; columns take whole batches in turn.

        Raises Diverged when the loss is not finite.
        """
        loss, wrong, beyond, count, seed, columns = 0.0, 0, 0, 0, self.config.seeds[self.place], self.mesh.columns.group
        self.network.eval()
        for i, (images, labels) in enumerate(batches.epoch(0, min(columns.rank, len(batches)), columns.size)):
            logits = self.network(images, generator=generator(seed, "test", columns.rank + i * columns.size)).logits
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            wrong += int((logits.argmax(1) != labels).sum())
            five = logits.topk(min(5, logits.shape[1]), 1).indices
            beyond += int((five != labels[:, None]).all(1).sum())
            count += len(labels)
        sums = torch.tensor([loss, wrong, beyond, count], dtype=torch.float64)
        loss, wrong, beyond, count = columns.all_reduce(sums).tolist()
        if not math.isfinite(loss):
            raise Diverged(f"the test loss is {loss} with seed {seed} after epoch {self.epoch + 1}: lower the learning rate")
        return {"test_loss": loss / count, "test_error": wrong / count, "test_error_top5": beyond / count}

    def row(self, tested: dict[str, float]) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "epoch",
            "seed": config.seeds[self.place],
            "epoch": self.epoch,
            "train_loss": self.loss_sum / self.images,
            "train_error": 1 - self.correct / self.images,
            **tested,
            "lr": config.learning_rate(self.epoch),
            "drop_path": config.drop_path * self.epoch / config.epochs,
            "seconds": self.seconds,
            "images_per_s": self.images / self.seconds,
        }

    def next_epoch(self, test_error: float) -> None:
        self.epoch += 1
        self._clear()
        if self.epoch == self.config.epochs:
            self.errors.append(test_error)

    def next_seed(self) -> None:
        self.place += 1
        if self.place < len(self.config.seeds):
            self._start()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, value in self.network.named_parameters():
            if value in self.optimizer.state:
                tensors[f"momentum.{name}"] = self.optimizer.state[value]["momentum_buffer"]
        counts = {name: getattr(self, name) for name in ("place", "errors", "epoch", "step", "images", "correct", "loss_sum", "seconds")}
        return tensors, {"state": counts, "config": fixed(self.config, self.FREE) | {"architecture": self.genotype.to_json()}}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        if "state" not in meta:
            raise CheckpointError("the checkpoint is of a search, not of an evaluation: give the folder of an evaluation (--out)")
        saved, architecture = meta["config"], self.genotype.to_json()
        different = first_difference(self.config, saved, self.FREE)
        if saved.get("architecture") != architecture:
            different = "architecture", saved.get("architecture"), architecture
        if different is not None:
            name, was, value = different
            raise CheckpointError(f"the checkpoint was written with {name} {was!r}, not {value!r}: resume with the same options")
        place = meta["state"]["place"]
        if 0 < place < len(self.config.seeds):
            self.place = place
            self._start()
        for name, value in meta["state"].items():
            setattr(self, name, value)
        self.network.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("network.")})
        for name, value in self.network.named_parameters():
            if f"momentum.{name}" in tensors:
                self.optimizer.state[value]["momentum_buffer"] = tensors[f"momentum.{name}"].to(value.device)
