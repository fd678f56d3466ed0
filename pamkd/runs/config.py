"""The options of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
import yaml

from pamkd.methods import METHODS
from pamkd.runs.errors import OptionError
from pamkd.runs.method import OPTIONS, readers
from pamkd.runs.options import RunOptions
from pamkd.spaces import SPACES
from pamkd.transfer import TRANSFERS
from pamkd.transfer.ensemble import Rule

OneOfSpaces = Annotated[str, tyro.conf.arg(help=f"Search space: {', '.join(SPACES)} (docs/spaces.md).")]


@dataclass(frozen=True)
class SearchConfig(RunOptions):
    """Search an architecture with mutually teaching learners."""

    space: OneOfSpaces = "darts"
    space_options: tuple[str, ...] = ()
    """What a space takes of its own, as name=value: `partial=2 stem=imagenet` (docs/spaces.md)."""
    method: Annotated[str, tyro.conf.arg(help=f"How learners teach each other: {', '.join(METHODS)} (docs/methods.md).")] = "pamkd"
    learners: int = 2
    """K, a leader of okddip included. With 1 nobody teaches: plain DARTS."""
    order: Literal["first", "second"] = "second"
    """Hypergradient: first order keeps the direct term only."""
    hypergradient: Literal["finite", "exact"] = "finite"
    """Second-order terms by finite differences of gradients, or by double backward (slower, much more memory)."""
    fd_step: float = 1e-2
    """Norm of the finite-difference perturbation; DARTS and the paper take 0.01 (see docs/hypergradient.md)."""
    epochs: int = 50
    """Epochs of the whole search, warm-up included."""
    warmup_v_epochs: int = 0
    """First epochs of each stage in which only V is trained. (Most spaces have one stage.)"""
    warmup_w_epochs: int = 0
    """Epochs after those in which V and W are trained and the architectures stand still."""
    batch_size: int = 64
    """Images per training and per validation batch."""
    channels: int = 16
    """Channels of the supernet's first cell."""
    cells: int = 8
    """Cells of the supernet."""
    distill_weight: Annotated[float | None, tyro.conf.arg(name="lambda")] = None
    """lambda, the weight of what is taught; default: the method's own (pamkd 0.5, others 1)."""
    temperature: float | None = None
    """Softens predictions that are taught; default: 1 (kdcl, 2nd-kdcl 2; okddip, one, afd 3; transfer ps 0.1)."""
    kdcl_rule: Rule | None = None
    """How the learners of kdcl and 2nd-kdcl form their teacher; default: minlogit."""
    okddip_leader: bool | None = None
    """Whether the last learner of okddip is a leader, which learns from the others and is retained; default: yes (3 learners or more)."""
    ramp_epochs: int | None = None
    """Epochs over which okddip and one turn distillation up; default: 80 / 300 of all."""
    adversarial_lr: float | None = None
    """Learning rate of afd's discriminators and of what they teach the encoders; default: 2e-5."""
    adversarial_decay: float | None = None
    """Weight decay of the same; default: 0.1."""
    cream_start: int | None = None
    """Epoch from which paths of cream teach; default: a sixth of all."""
    board_size: int | None = None
    """Paths on cream's board; default: 10."""
    board_images: int | None = None
    """Images that cream keeps with each of them; default: 4."""
    meta_every: int | None = None
    """Steps between two updates of cream's meta network; default: 60."""
    meta_lr: float | None = None
    """Learning rate of cream's meta network; default: 1e-4."""
    transfer: Annotated[
        str | None, tyro.conf.arg(help=f"What a better learner of pamkd or no-1st teaches: {', '.join(TRANSFERS)}; default: grs.")
    ] = None
    epsilon: float | None = None
    """Margin of the similarity hinge, Eq. (7); default: 0.01."""
    group_size: int | None = None
    """R, images per group; default: 5."""
    group_pairs: int | None = None
    """Pairs of groups (or triplets, or pairs of images) drawn in each step; default, or 0: the batch size."""
    group_reduction: Literal["sum", "mean"] | None = None
    """Over the pairs of groups: the paper sums, the default; the mean makes lambda independent of their number."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of activations in the passes of V, W and A. Weights, statistics, losses and the passes of finite differences stay float32."""
    cuda_graphs: bool = False
    """Capture each step as one CUDA graph (docs/gpu.md)."""
    stacked: bool | None = None
    """Make passes of one kind, those of all learners and both of a central difference, in one call of the network: fewer launches, more
    memory (docs/gpu.md). Default: on a GPU, in spaces whose passes draw nothing."""
    lr: float = 0.025
    """Learning rate of V and W at the start; falls to `lr_min` along a cosine."""
    lr_min: float = 0.001
    """Learning rate at the end."""
    lr_warmup_epochs: int = 0
    """First epochs in which the learning rate rises along a line."""
    momentum: float = 0.9
    """Of the SGD for V and W."""
    nesterov: bool = False
    """Nesterov's momentum in the SGD for V and W."""
    weight_decay: float = 3e-4
    """Of V and W."""
    clip: float = 5.0
    """Largest gradient norm of one learner's V or W; 0: no clipping."""
    arch_lr: float = 3e-4
    """Learning rate of Adam (betas 0.5, 0.999) for the architectures."""
    arch_weight_decay: float = 1e-3
    """Of the architectures."""
    arch_clip: float = 0.0
    """Largest gradient norm of one learner's architecture; 0: no clipping."""
    on_divergence: Literal["stop", "skip"] = "stop"
    """Where a number of a step is NaN, infinite or a loss above 10000: end, or go on as if the step had not been. Both keep the step
    in `divergence.safetensors`, which `pamkd replay` takes again."""
    eigenvalue_every: int = 0
    """Epochs between two measurements of the dominant eigenvalue of the architectures' Hessian; 0: none."""
    stop_on_collapse: bool = False
    """End the search where it collapses (many skip connections, no entropy left, a rising eigenvalue) and keep the last good genotype."""
    train_portion: float = 0.5
    """Share of the training set that trains weights; the rest validates and trains architectures. (imagenet: 10 % and 2.5 %.)"""
    seed: int = 0
    """Everything random is a function of it."""
    learner_rows: int | None = None
    """Under torchrun: rows of the mesh of processes, among which the learners are dealt out; the columns of a row share their
    batches. Default: as keeps the processes busy (docs/scaling.md)."""
    log_every: int = 10
    """Steps between two rows of step metrics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need = self.require
        need(self.space in SPACES, "space", f"one of {', '.join(SPACES)}")
        need(self.learners >= 1, "learners", "1 or more")
        need(self.epochs >= 1, "epochs", "1 or more")
        need(self.warmup_v_epochs >= 0, "warmup_v_epochs", "0 or more")
        need(self.warmup_w_epochs >= 0, "warmup_w_epochs", "0 or more")
        need(self.warmup_v_epochs + self.warmup_w_epochs < self.epochs, "epochs", "more epochs than both warm-ups take together")
        need(all("=" in word for word in self.space_options), "space_options", "words such as partial=2")
        need(self.eigenvalue_every >= 0, "eigenvalue_every", "0 (none) or more")
        need(0 <= self.lr_warmup_epochs < self.epochs, "lr_warmup_epochs", "0 or more and below the number of epochs")
        need(self.lr > 0, "lr", "a positive number")
        need(0 <= self.momentum < 1, "momentum", "0 or more and below 1")
        for option in ("lr_min", "weight_decay", "arch_lr", "arch_weight_decay"):
            need(getattr(self, option) >= 0, option, "0 or more")
        for option in ("clip", "arch_clip"):
            need(getattr(self, option) >= 0, option, "0 (no clipping) or more")
        for option in ("batch_size", "log_every"):
            need(getattr(self, option) >= 1, option, "1 or more")
        need(abs(self.seed) < 2**62, "seed", "a number of less than 63 bits")
        need(self.fd_step > 0, "fd_step", "a positive number")
        need(self.learner_rows is None or self.learner_rows >= 1, "learner_rows", "1 or more")
        self._check_method()
        self._check_graphs()
        need(0 < self.train_portion < 1, "train_portion", "a number between 0 and 1")
        fixed = self.dataset == "imagenet"
        need(not fixed or self.train_portion == 0.5, "train_portion", "no value of your own with imagenet, whose shares are 10 % and 2.5 %")

    def _check_method(self) -> None:
        need = self.require
        need(self.method in METHODS, "method", f"one of {', '.join(METHODS)}")
        need(self.transfer is None or self.transfer in TRANSFERS, "transfer", f"one of {', '.join(TRANSFERS)}")
        kind, read = METHODS[self.method], readers(self.method, self.transfer)
        for option in OPTIONS:
            who = self.method + (f" with transfer {self.transfer}" if self.transfer and "transfer" in read else "")
            need(getattr(self, option) is None or option in read, option, f"None, as method {who} does not read it")
        fewest, most = kind.learners
        need(fewest <= self.learners <= most, "learners", f"{fewest if fewest == most else f'{fewest} or more'} for method {self.method}")
        need(kind.two_sets or self.warmup_v_epochs == 0, "warmup_v_epochs", f"0: method {self.method} has no weights V")
        alone = self.method == "okddip" and self.okddip_leader is not False and self.learners < 3
        need(not alone, "learners", "3 or more for okddip with a leader, whose peer would be its own teacher (or --okddip-leader False)")
        for option in ("board_size", "board_images", "meta_every"):
            need(getattr(self, option) is None or getattr(self, option) >= 1, option, "1 or more")
        images = 4 if self.board_images is None else self.board_images
        need(self.method != "cream" or 2 * images <= self.batch_size, "batch_size", f"at least 2 * board_images = {2 * images}")
        need((self.cream_start or 0) >= 0, "cream_start", "0 or more")
        need((self.meta_lr or 0) >= 0, "meta_lr", "0 or more")
        need((self.ramp_epochs or 0) >= 0, "ramp_epochs", "0 or more")
        need((self.adversarial_lr or 0) >= 0, "adversarial_lr", "0 or more")
        need((self.adversarial_decay or 0) >= 0, "adversarial_decay", "0 or more")
        need((self.distill_weight or 0) >= 0, "distill_weight", "0 or more")
        need(self.temperature is None or self.temperature > 0, "temperature", "a positive number")
        need((self.epsilon or 0) >= 0, "epsilon", "0 or more")
        need((self.group_pairs or 0) >= 0, "group_pairs", "0 (the batch size) or more")
        group = 5 if self.group_size is None else self.group_size
        need(group >= 2, "group_size", "2 or more images per group")
        grouped = "group_size" in read and self.learners > 1
        need(not grouped or 2 * group <= self.batch_size, "batch_size", f"at least 2 * group_size = {2 * group}")

    def _check_graphs(self) -> None:
        if not self.cuda_graphs:
            return
        need, graphs = self.require, "with --cuda-graphs"
        need(self.device.startswith("cuda"), "device", f"cuda {graphs}: a CPU has no launches to save")
        with_two = ", ".join(name for name, kind in METHODS.items() if kind.two_sets)
        need(METHODS[self.method].two_sets, "method", f"one of {with_two} {graphs}")
        need(self.hypergradient == "finite", "hypergradient", f"finite {graphs}")
        need(self.kdcl_rule != "linear" or self.learners == 2, "kdcl_rule", f"another one {graphs}: its search ends where numbers say so")

    def options_of_the_space(self) -> dict[str, Any]:
        """What `space_options` mean, each value as YAML. Raises OptionError where one is none."""
        try:
            return {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in self.space_options)}
        except yaml.YAMLError as error:
            why = " ".join(str(error).split())
            raise OptionError(f"space_options are {list(self.space_options)}: needed are values such as 2 or [6,4] ({why})") from error

    @property
    def stacks(self) -> bool:
        """Whether passes of networks that stack are made at once."""
        return self.device.startswith("cuda") if self.stacked is None else self.stacked

    @property
    def stacked_passes(self) -> int:
        """So many passes are made at once at most, where all learners are here and their networks stack."""
        ends = 2 if self.order == "second" and self.hypergradient == "finite" else 1
        return ends * self.learners if self.stacks else 1

    def phase(self, epoch: int) -> Literal["warmup-v", "warmup-w", "search"]:
        """The phase of an epoch of a stage."""
        if epoch < self.warmup_v_epochs:
            return "warmup-v"
        return "warmup-w" if epoch < self.warmup_v_epochs + self.warmup_w_epochs else "search"
