"""Networks as files: weights in safetensors under the published names, the genotype as JSON, the computation as ONNX."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pamkd.runs import checkpoint
from pamkd.runs.errors import CheckpointError, MissingExtra
from pamkd.runs.logs import write_json
from pamkd.spaces.architecture import Network, architecture_from_json, network_of


@dataclass(frozen=True)
class ExportConfig:
    """Write weights, genotype and ONNX of an evaluated network."""

    run: Path
    """Run folder of a search that was evaluated, or the folder of an evaluation."""
    seed: int | None = None
    """Which of the evaluation's networks; default: that of the first seed."""
    out: Path | None = None
    """Folder for weights.safetensors, genotype.json and network.json; default: export/ in the evaluation's folder."""
    onnx: Path | None = None
    """Also write an ONNX file: normalised images [n, c, h, w] to logits [n, classes], any n."""


def export(config: ExportConfig) -> Network:
    """`pamkd export`: write the files and print where they are. Raises ValueError where there is no evaluated network."""
    if config.onnx is not None:
        _need_onnx()
    folder = (
        config.run if (config.run / "result.json").is_file() and not (config.run / "evaluation").is_dir() else config.run / "evaluation"
    )
    if not (folder / "result.json").is_file():
        raise ValueError(f"there is no finished evaluation in {config.run}: make one with pamkd evaluate --run {config.run}")
    seeds = json.loads((folder / "result.json").read_text()).get("seeds", [])
    if not seeds:
        raise ValueError(f"{config.run} holds a search that was not evaluated: do that with pamkd evaluate --run {config.run}")
    seed = seeds[0] if config.seed is None else config.seed
    if seed not in seeds:
        raise ValueError(f"seed is {seed}: {folder} holds networks of the seeds {', '.join(map(str, seeds))}")
    network, facts = load_network(folder / weights_name(seed))
    out = config.out or folder / "export"
    save_network(out / "weights.safetensors", network, facts)
    write_json(out / "genotype.json", network.genotype.to_json())
    write_json(out / "network.json", {"options": network.options} | facts)
    print(f"weights: {out / 'weights.safetensors'}  genotype: {out / 'genotype.json'}  classes, mean, std: {out / 'network.json'}")
    if config.onnx is not None:
        write_onnx(network, tuple(facts["image"]), config.onnx)
        print(f"ONNX: {config.onnx}")
    return network


def weights_name(seed: int) -> str:
    return f"weights-{seed}.safetensors"


def save_network(path: Path, network: Network, facts: dict[str, Any]) -> None:
    """Write the weights, and beside them in the file's header what it takes to build the network, and `facts` (JSON)."""
    meta = {"genotype": network.genotype.to_json(), "options": network.options, "facts": facts}
    checkpoint.save(path, network.state_dict(), meta)


def load_network(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """The network, in evaluation mode on the CPU, and the facts of a file that `save_network` wrote.

    Raises CheckpointError when the file is absent, damaged or none of those.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: it is written by pamkd evaluate")
    tensors, meta = checkpoint.load(path)
    if "options" not in meta:
        raise CheckpointError(f"{path} is a checkpoint of a run in progress: give a file of weights written by pamkd evaluate or export")
    network = network_of(architecture_from_json(meta["genotype"]), **meta["options"])
    network.load_state_dict(tensors)
    return network.eval(), meta["facts"]


def write_onnx(network: Network, image: tuple[int, int, int], path: Path) -> None:
    """The network in evaluation as ONNX: input `images` [batch, *image], output `logits` [batch, classes]; batch is free.

    The file is replaced in one step. Raises MissingExtra without the packages of the extra `onnx`.
    """
    _need_onnx()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        program = torch.onnx.export(
            _Logits(network).eval(),
            (torch.zeros(2, *image),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        assert program is not None  # with dynamo it is one
        program.save(temporary, external_data=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Logits(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"ONNX export needs the package {error.name}: pip install 'pamkd[onnx]'") from error
