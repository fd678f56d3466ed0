"""A search as a user of the library runs it: determinism, resumption, what it writes, and what stops it."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
import torch
import yaml

import pamkd
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import CheckpointError, Interrupted, MissingExtra, OptionError
from pamkd.runs.folder import CHECKPOINT, open_folder
from pamkd.runs.options import CONFIG_NAME, read_config
from pamkd.runs.search import Search
from pamkd.trilevel.finite import Diverged
from tests.runs.conftest import Pictures
from tests.runs.interrupted import InterruptedAt

TIMES = ("seconds", "images_per_s")


def state(result):
    return {f"{k}.{name}": tensor for k, learner in enumerate(result.learners) for name, tensor in learner.tensors.items()}


def assert_same(one, other):
    for name, tensor in state(one).items():
        assert torch.equal(tensor, state(other)[name]), name
    assert one.genotype == other.genotype and one.valid_loss == other.valid_loss
    rows = [[{key: value for key, value in row.items() if key not in TIMES} for row in result.history] for result in (one, other)]
    assert rows[0] == rows[1]


def test_five_lines(pictures, tiny):
    train, valid = pictures
    search = pamkd.Search(space="darts", learners=2, **tiny)
    result = search.run(train, valid)
    assert len(result.genotype.normal) == len(result.genotype.reduce) == 8
    assert result.learner == min((0, 1), key=result.valid_loss.__getitem__)
    assert_same(result, pamkd.Search(space="darts", learners=2, **tiny).run(train, valid))


def test_a_folder_that_no_run_wrote_is_left_alone(tmp_path):
    (tmp_path / CONFIG_NAME).write_text("mine: 1\n")
    with pytest.raises(ValueError, match=r"holds a config.yaml that no run wrote \(manifest.json is missing\): choose another --out"):
        open_folder(SearchConfig(out=tmp_path, overwrite=True), {})
    assert (tmp_path / CONFIG_NAME).read_text() == "mine: 1\n"


def test_without_tensorboard_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtra, match="pip install 'pamkd\\[tensorboard\\]', or leave --tensorboard away"):
        open_folder(SearchConfig(out=tmp_path / "run", tensorboard=True), {})
    assert not list(tmp_path.iterdir()) and not SearchConfig().tensorboard


def test_seed_changes_everything(pictures, tiny):
    one, other = (pamkd.Search(seed=seed, **tiny).run(*pictures) for seed in (0, 1))
    assert not any(torch.equal(tensor, state(other)[name]) for name, tensor in state(one).items())


@pytest.mark.parametrize("options", [{"learners": 1}, {"learners": 3}, {"order": "first"}, {"hypergradient": "exact"}], ids=str)
def test_variants_run(pictures, tiny, options):
    result = pamkd.Search(**tiny | options | {"epochs": 1}).run(*pictures)
    assert all(loss > 0 for loss in result.valid_loss) and len(result.learners) == options.get("learners", 2)
    moved = [learner.alphas.detach().abs().max() for learner in result.learners]
    assert min(moved) > 0.02  # initial alphas are about 1e-3; Adam moved them


def test_warmup_leaves_architectures_at_their_start(pictures, tiny):
    result = pamkd.Search(**tiny | {"epochs": 3, "warmup_v_epochs": 1, "warmup_w_epochs": 1}).run(*pictures)
    first, second, third = (row for row in result.history if row["kind"] == "epoch")
    assert [row["phase"] for row in (first, second, third)] == ["warmup-v", "warmup-w", "search"]
    assert first["mixtures"] == second["mixtures"] != third["mixtures"]
    assert first["train_loss"] == [None, None] and second["train_loss"] != [None, None]


def test_learning_from_pictures(pictures, tiny):
    """The three classes differ in their mean: a search that trains its weights tells them apart better than chance."""
    result = pamkd.Search(**tiny | {"epochs": 8, "lr": 0.1}).run(*pictures)
    assert max(result.valid_accuracy) > 0.6


def test_validation_mixes_classes_that_lie_apart(tiny):
    """A folder of pictures lists class after class; BatchNorm on batches of one class would make its loss meaningless."""
    train, valid = Pictures(64, seed=0), Pictures(60, seed=1)
    order = valid.tensors[1].argsort()
    valid.tensors = tuple(tensor[order] for tensor in valid.tensors)
    result = pamkd.Search(**tiny | {"epochs": 6, "lr": 0.1}).run(train, valid)
    assert max(result.valid_accuracy) > 0.6


# Augmentation is called for the training and the validation batch of each of the 3 steps an epoch, alternating.
@pytest.mark.parametrize(
    ("call", "number"), [(1, signal.SIGTERM), (4, signal.SIGTERM), (4, signal.SIGINT), (6, signal.SIGUSR1), (9, signal.SIGTERM)]
)
def test_resume_is_bit_identical(pictures, tiny, tmp_path, call, number):
    whole = Search(SearchConfig(out=tmp_path / "whole", tensorboard=False, **tiny)).run(*pictures)
    out = tmp_path / "cut"
    with pytest.raises(Interrupted, match=f"interrupted .{number.name}.*--resume"):
        Search(SearchConfig(out=out, tensorboard=False, **tiny)).run(*pictures, augment=InterruptedAt(call, number))
    rest = Search(SearchConfig(out=out, resume=True, tensorboard=False, **tiny)).run(*pictures)
    assert_same(whole, rest)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert written == rest.history
    assert (out / "genotype.json").read_text() == (tmp_path / "whole" / "genotype.json").read_text()


def test_time_limit_ends_with_a_checkpoint(pictures, tiny, tmp_path):
    config = SearchConfig(out=tmp_path / "run", tensorboard=False, max_time="1", **tiny | {"epochs": 200})
    with pytest.raises(Interrupted, match=r"time limit of 1 s reached in epoch [0-9]+ step [0-9]+; continue with --out .* --resume"):
        Search(config).run(*pictures)
    _, meta = checkpoint.load(tmp_path / "run" / CHECKPOINT)
    assert meta["epoch"] < 200
    with pytest.raises(OptionError, match="max_time is '3 hours': needed is a duration such as 90, 45m, 3h55m or 1d12h"):
        SearchConfig(max_time="3 hours")
    assert [SearchConfig(max_time=text).seconds for text in ("90", "45m", "3h55m", "1d12h")] == [90, 2700, 14100, 129600]


def test_resume_of_a_finished_run_changes_nothing(pictures, tiny, tmp_path):
    config = SearchConfig(out=tmp_path / "run", tensorboard=False, **tiny)
    first = Search(config).run(*pictures)
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    assert_same(first, Search(SearchConfig(out=tmp_path / "run", resume=True, tensorboard=False, **tiny)).run(*pictures))
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


def test_run_folder(pictures, tiny, tmp_path):
    out = tmp_path / "run"
    result = Search(SearchConfig(out=out, seed=3, tensorboard=True, **tiny)).run(*pictures, facts={"dataset": {"name": "pictures"}})
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 3 and manifest["torch"] == torch.__version__ and manifest["dataset"] == {"name": "pictures"}
    assert manifest["supernet"]["weights"] == result.learners[0].network.layout.count
    assert json.loads((out / "genotype.json").read_text()) == result.genotype.to_json()
    epochs = [row for row in result.history if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [0, 1]
    for row in epochs:
        assert row["flow"][0][0] == row["flow"][1][1] == 0.0
        assert all(sum(mixture) == pytest.approx(1.0) for learner in row["mixtures"]["normal"] for mixture in learner)
    assert list((out / "tensorboard").glob("events.*"))


def test_existing_run_is_not_overwritten(pictures, tiny, tmp_path):
    config = SearchConfig(out=tmp_path / "run", tensorboard=False, **tiny)
    Search(config).run(*pictures)
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a run.*--resume.*--overwrite"):
        Search(config).run(*pictures)
    assert (config.out / "metrics.jsonl").read_bytes() == before


def test_resume_needs_the_same_configuration(pictures, tiny, tmp_path):
    Search(SearchConfig(out=tmp_path / "run", tensorboard=False, **tiny)).run(*pictures)
    other = SearchConfig(out=tmp_path / "run", resume=True, tensorboard=False, **tiny | {"channels": 4})
    with pytest.raises(ValueError, match="has channels 2, not 4"):
        Search(other).run(*pictures)
    with pytest.raises(ValueError, match="there is no run in"):
        Search(SearchConfig(out=tmp_path / "none", resume=True, tensorboard=False, **tiny)).run(*pictures)


def test_options_that_came_later_have_their_defaults(pictures, tiny, tmp_path):
    """A run of a version without them, in its file and in its checkpoint, goes on; another value than the default is refused."""
    out = tmp_path / "run"
    Search(SearchConfig(out=out, tensorboard=False, **tiny)).run(*pictures)
    later = ("arch_clip", "lr_warmup_epochs")
    saved = read_config(out / CONFIG_NAME)
    (out / CONFIG_NAME).write_text(yaml.safe_dump({name: value for name, value in saved.items() if name not in later}))
    tensors, meta = checkpoint.load(out / CHECKPOINT)
    meta["config"] = {name: value for name, value in meta["config"].items() if name not in later}
    checkpoint.save(out / CHECKPOINT, tensors, meta)
    Search(SearchConfig(out=out, resume=True, tensorboard=False, **tiny)).run(*pictures)
    with pytest.raises(ValueError, match=r"has arch_clip 0.0, not 5.0"):
        Search(SearchConfig(out=out, resume=True, tensorboard=False, arch_clip=5.0, **tiny)).run(*pictures)


class RunsCode:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.write_text, ("x",)


@pytest.mark.parametrize(
    "what", ["a pickle that runs code", "cut short", "of an evaluation", "without weights", "of a smaller supernet", "of another seed"]
)
def test_unusable_checkpoint_is_refused_and_the_one_before_it_used(pictures, tiny, tmp_path, what):
    out = tmp_path / "run"
    whole = Search(SearchConfig(out=out, tensorboard=False, **tiny)).run(*pictures)
    tensors, meta = checkpoint.load(out / CHECKPOINT)
    if what == "of an evaluation":
        meta = {"state": {}, "config": {}}
    elif what == "without weights":
        del tensors["learner.1.w"]
    elif what == "of a smaller supernet":
        tensors["learner.0.w"] = tensors["learner.0.w"][:-1]
    else:
        meta["config"]["seed"] = 7

    def spoil(path):
        path.unlink(missing_ok=True)
        if what == "a pickle that runs code":
            torch.save(RunsCode(tmp_path / "executed"), path)
            return
        checkpoint.save(path, tensors, meta)
        if what == "cut short":
            os.truncate(path, path.stat().st_size // 2)

    spoil(out / CHECKPOINT)
    config = SearchConfig(out=out, resume=True, tensorboard=False, **tiny)
    with pytest.warns(UserWarning, match=r"The one before it is used: .*last-previous.safetensors"):
        assert_same(whole, Search(config).run(*pictures))
    for path in (out / CHECKPOINT, checkpoint.previous(out / CHECKPOINT)):
        spoil(path)
    with pytest.raises(CheckpointError, match=r"belongs to another|was written with|of this supernet|is damaged") as refused:
        Search(config).run(*pictures)
    assert "\n" not in str(refused.value) and not (tmp_path / "executed").exists()


def test_divergence_keeps_the_last_good_checkpoint(pictures, tiny, tmp_path):
    out = tmp_path / "run"
    options = tiny | {"lr": 1e30, "clip": 0.0, "epochs": 3}
    with pytest.raises(Diverged, match="lower the learning rate"):
        Search(SearchConfig(out=out, tensorboard=False, **options)).run(*pictures)
    tensors, meta = checkpoint.load(out / CHECKPOINT)
    assert meta["epoch"] == 0 and all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_nan_images_are_named(pictures, tiny):
    train, valid = pictures
    train.tensors[0][3] = float("nan")
    with pytest.raises(Diverged, match="is nan"):
        pamkd.Search(**tiny).run(train, valid)


def test_damaged_checkpoint_stops_resumption(pictures, tiny, tmp_path):
    out = tmp_path / "run"
    Search(SearchConfig(out=out, tensorboard=False, **tiny)).run(*pictures)
    path = out / CHECKPOINT
    for file in (path, checkpoint.previous(path)):
        file.write_bytes(file.read_bytes()[:-7])
    rows = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="damaged"):
        Search(SearchConfig(out=out, resume=True, tensorboard=False, **tiny)).run(*pictures)
    assert (out / "metrics.jsonl").read_bytes() == rows


def test_options_are_a_config_or_keywords():
    with pytest.raises(TypeError, match="SearchConfig or its options"):
        Search(SearchConfig(), learners=3)


def test_datasets_without_classes_need_their_number(tiny):
    data = torch.utils.data.TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 2)
    with pytest.raises(ValueError, match="classes=NUMBER"):
        pamkd.Search(**tiny).run(data, data)
    assert pamkd.Search(**tiny | {"epochs": 1}).run(data, data, classes=2).genotype
