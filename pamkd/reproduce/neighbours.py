"""Figure 2, right: the nearest neighbours of test images under embeddings learned with GRS and with pseudo-labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.data import Augment, Batches, generator, load_dataset
from pamkd.data.datasets import ImageDataset
from pamkd.reproduce.statistics import mean_std, paired
from pamkd.reproduce.units import Unit
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.folder import CHECKPOINT
from pamkd.runs.search import build_supernet
from pamkd.runs.search_state import SearchState

NEIGHBOURS, QUERIES, ZOOM, GAP = 4, 8, 4, 6


def compare_neighbours(units: Sequence[Unit], path: Path) -> list[str]:
    """Write `path` (PNG) for the first seed of which the rows grs and pl are done, and say how often neighbours are of one class."""
    found: dict[str, dict[int, Unit]] = {"grs": {}, "pl": {}}
    for unit in units:
        name = unit.row.key.split("/")[1]
        if name in found and unit.done:
            found[name][unit.seed] = unit
    seeds = sorted(set(found["grs"]) & set(found["pl"]))
    if not seeds:
        return []
    config = found["grs"][seeds[0]].search
    test = load_dataset(config.dataset, config.data, train=False, image_size=config.image_size)
    shares: dict[str, dict[int, float]] = {"grs": {}, "pl": {}}
    for seed in seeds:
        nearest = {name: nearest_rows(embed(found[name][seed].search, test), NEIGHBOURS) for name in found}
        for name, rows in nearest.items():
            shares[name][seed] = 100 * (test.labels[rows] == test.labels[:, None]).float().mean().item()
        if seed == seeds[0]:
            picture_grid(test, nearest, path, seed)
    said = ", ".join(f"{name} {mean_std(list(values.values()))} %" for name, values in shares.items())
    return [
        f"{NEIGHBOURS} nearest test images by cosine of the retained supernet's embedding, of the query's class: {said}; "
        f"grs less pl: {paired(shares['grs'], shares['pl'])}. Pictures: {path.name}."
    ]


@torch.no_grad()
def embed(config: SearchConfig, dataset: ImageDataset) -> Tensor:
    """[n, d]: embeddings of a finished search's retained learner, BatchNorm on each batch's own statistics."""
    state = SearchState(config, build_supernet(config, len(dataset.classes), dataset.image_shape[0]))
    checkpoint.restore(config.folder / CHECKPOINT, state.restore)
    learner = state.learners[json.loads((config.folder / "result.json").read_text())["learner"]]
    plain = Augment(dataset.mean, dataset.std)
    how: dict[str, Any] = {"seed": 0, "stream": "test", "augment": plain, "device": config.device, "drop_last": False, "shuffle": False}
    batches = Batches(dataset, None, config.batch_size, **how)
    return torch.cat([learner.network.forward(learner.w, learner.alphas, images).embedding.cpu() for images, _ in batches.epoch(0)])


def nearest_rows(embedding: Tensor, count: int) -> Tensor:
    """[n, count]: the rows with the largest cosine to each row, itself left out."""
    unit = F.normalize(embedding, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2.0)
    return cosine.topk(count, 1).indices


def picture_grid(dataset: ImageDataset, nearest: Mapping[str, Tensor], path: Path, seed: int) -> None:
    """One row for each query: the query, then its neighbours under each embedding, with gaps between."""
    from PIL import Image

    queries = torch.randperm(len(dataset), generator=generator(seed, "queries"))[:QUERIES]
    _, height, width = dataset.image_shape
    across = 1 + len(nearest) * NEIGHBOURS
    size = (across * width * ZOOM + len(nearest) * GAP, QUERIES * (height * ZOOM + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for line, query in enumerate(queries.tolist()):
        rows = [(0, query)] + [(1 + block, row) for block, found in enumerate(nearest.values()) for row in found[query].tolist()]
        for place, (block, row) in enumerate(rows):
            pixels, _ = dataset[row]
            picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
            where = (place * width * ZOOM + block * GAP, line * (height * ZOOM + GAP))
            sheet.paste(picture.resize((width * ZOOM, height * ZOOM), Image.Resampling.NEAREST), where)
    sheet.save(path)
