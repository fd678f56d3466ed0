"""An evaluation as a user runs it: determinism, resumption, what it writes, presets, and what stops it."""

from __future__ import annotations

import json
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import CheckpointError, Interrupted, OptionError
from pamkd.runs.evaluate import Evaluation, evaluate
from pamkd.runs.evaluate_config import EvaluateConfig, find_genotype
from pamkd.runs.evaluate_presets import PRESETS, arguments
from pamkd.runs.export import load_network
from pamkd.runs.folder import CHECKPOINT
from pamkd.runs.options import parse, save_config
from pamkd.spaces.evaluation_network import EvaluationNetwork, multiply_adds
from pamkd.spaces.genotype import named
from pamkd.trilevel.finite import Diverged
from tests.runs.interrupted import InterruptedAt

TIMES = ("seconds", "images_per_s")
SMALL = {"channels": 2, "cells": 3, "epochs": 2, "batch_size": 8, "cutout": 0, "seeds": (0, 1)}
GENOTYPE = named("cifar10_s4_0")  # one operation is noise, so that every kind of randomness is in it


@pytest.fixture
def config(tmp_path):
    return EvaluateConfig(**SMALL, out=tmp_path / "run")


def rows(result):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in result.history]


def assert_same(one, other):
    for (name, value), twin in zip(one.network.state_dict().items(), other.network.state_dict().values(), strict=True):
        assert torch.equal(value, twin), name
    assert one.test_error == other.test_error and rows(one) == rows(other)


def test_top5_error(pictures):
    """The label is behind five other classes, from the logits of the network that is returned."""
    random = torch.Generator().manual_seed(0)
    train, test = (TensorDataset(part.tensors[0], torch.randint(0, 7, (len(part),), generator=random)) for part in pictures)
    options = SMALL | {"epochs": 1, "seeds": (0,)}
    result = Evaluation(EvaluateConfig(**options)).run(named("DARTS_V2"), train, test, classes=7)
    images, labels = test.tensors
    logits = result.network.eval()(images).logits
    ahead = (logits > logits.gather(1, labels[:, None])).sum(1)
    beyond = [(ahead >= count).double().mean().item() for count in (1, 5)]
    assert [result.history[-1][name] for name in ("test_error", "test_error_top5")] == pytest.approx(beyond) and 0 < beyond[1] < beyond[0]


def test_result_and_files(pictures, config):
    result = Evaluation(config).run(GENOTYPE, *pictures, facts={"dataset": {"name": "pictures"}})
    out = config.out
    written = json.loads((out / "result.json").read_text())
    errors = written["test_error"]
    assert errors == result.test_error and len(errors) == 2 and all(0 <= error <= 1 for error in errors)
    assert written["test_error_mean"] == result.mean == statistics.mean(errors)
    assert written["test_error_std"] == result.std == statistics.stdev(errors)
    reference = EvaluationNetwork(GENOTYPE, channels=2, cells=3, classes=3, image_channels=1)
    assert written["parameters"] == result.parameters == sum(value.numel() for value in reference.parameters())
    assert written["multiply_adds"] == multiply_adds(reference, (8, 8))
    assert written["genotype"] == json.loads((out / "genotype.json").read_text()) == GENOTYPE.to_json()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metrics == result.history
    assert [(row["seed"], row["epoch"]) for row in metrics] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row["test_error"] for row in metrics[1::2]] == errors
    assert [row["drop_path"] for row in metrics[:2]] == [0.0, 0.1] and metrics[0]["lr"] == config.lr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dataset"] == {"name": "pictures"} and manifest["image"] == [1, 8, 8] and manifest["seeds"] == [0, 1]
    network, facts = load_network(out / "weights-1.safetensors")
    assert facts["test_error"] == errors[1] and network.options["auxiliary"] and not network.training
    images = torch.randn(3, 1, 8, 8)
    seeded = [net.eval()(images, generator=torch.Generator().manual_seed(0)).logits for net in (network, result.network)]
    assert torch.equal(*seeded)


def test_repeats_exactly_and_depends_on_the_seed(pictures, config):
    one, other = (Evaluation(replace(config, out=None)).run(GENOTYPE, *pictures) for _ in range(2))
    assert_same(one, other)
    assert rows(one)[0]["train_loss"] != rows(one)[2]["train_loss"]


def test_learning_from_pictures(pictures):
    """The three classes differ in their mean: a trained network tells them apart much better than chance."""
    options = {"channels": 4, "cells": 3, "epochs": 20, "batch_size": 8, "lr": 0.1, "auxiliary": 0.4, "drop_path": 0.0}
    result = Evaluation(**options).run(named("DARTS_V2"), *pictures)
    assert result.mean < 0.4 and result.std is None
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < losses[0] / 2


def test_resume_is_bit_identical(pictures, config, tmp_path):
    whole = Evaluation(config).run(GENOTYPE, *pictures)
    # 3 steps an epoch, 2 epochs, 2 seeds: within an epoch, at its end, at the last step of a seed, of all
    for call, number in ((1, signal.SIGTERM), (3, signal.SIGTERM), (5, signal.SIGINT), (6, signal.SIGTERM), (12, signal.SIGTERM)):
        cut = replace(config, out=tmp_path / f"cut{call}")
        with pytest.raises(Interrupted, match=rf"--out .*cut{call} --resume"):
            Evaluation(cut).run(GENOTYPE, *pictures, augment=InterruptedAt(call, number))
        rest = Evaluation(replace(cut, resume=True)).run(GENOTYPE, *pictures)
        assert_same(whole, rest)
        assert [json.loads(line) for line in (cut.out / "metrics.jsonl").read_text().splitlines()] == rest.history
        for name in ("result.json", "genotype.json"):
            assert (cut.out / name).read_text() == (config.out / name).read_text()
        for name in ("weights-0.safetensors", "weights-1.safetensors"):
            tensors = [load_network(folder / name)[0].state_dict() for folder in (config.out, cut.out)]
            assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())


def test_resume_of_a_finished_evaluation_changes_nothing(pictures, config):
    first = Evaluation(config).run(GENOTYPE, *pictures)
    before = (config.out / CHECKPOINT).read_bytes()
    assert_same(first, Evaluation(replace(config, resume=True)).run(GENOTYPE, *pictures))
    assert (config.out / CHECKPOINT).read_bytes() == before


def test_resume_needs_the_same_evaluation(pictures, config):
    config = replace(config, epochs=1, seeds=(0,))
    Evaluation(config).run(GENOTYPE, *pictures)
    with pytest.raises(CheckpointError, match=r"lr 0.025, not 0.5"):
        Evaluation(replace(config, lr=0.5, resume=True)).run(GENOTYPE, *pictures)
    with pytest.raises(CheckpointError, match="architecture"):
        Evaluation(replace(config, resume=True)).run(named("DARTS_V2"), *pictures)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Evaluation(replace(config, out=config.out / "none", resume=True)).run(GENOTYPE, *pictures)


def test_existing_evaluation_is_not_overwritten(pictures, config):
    config = replace(config, epochs=1, seeds=(0,))
    Evaluation(config).run(GENOTYPE, *pictures)
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a run.*--resume.*--overwrite"):
        Evaluation(config).run(GENOTYPE, *pictures)
    assert (config.out / "metrics.jsonl").read_bytes() == before
    Evaluation(replace(config, overwrite=True)).run(GENOTYPE, *pictures)


class Poisoned(InterruptedAt):
    def __call__(self, images, generator):
        self.calls += 1
        return images * float("nan") if self.calls >= self.call else images


def test_divergence_keeps_the_last_good_checkpoint(pictures, config):
    with pytest.raises(Diverged, match=r"nan with seed 0 in epoch 2 step 1: lower the learning rate"):
        Evaluation(config).run(GENOTYPE, *pictures, augment=Poisoned(5, 0))
    tensors, meta = checkpoint.load(config.out / CHECKPOINT)
    assert meta["state"]["epoch"] == 1 and all(value.isfinite().all() for value in tensors.values())


def test_a_gradient_that_is_not_finite_changes_no_weight(pictures, config, monkeypatch):
    calls = []

    def spoil(state):
        calls.append(state)
        if len(calls) == 5:
            next(state.network.parameters()).grad.fill_(float("inf"))

    monkeypatch.setattr("pamkd.runs.evaluate_state.EvaluationState._sum_columns", spoil)
    with pytest.raises(Diverged, match="the norm of the gradient is inf with seed 0 in epoch 2 step 1: lower the learning rate"):
        Evaluation(replace(config, clip=0.0)).run(GENOTYPE, *pictures)
    assert all(value.isfinite().all() for value in calls[0].network.parameters())


def test_tensors_of_a_dataset_without_classes(pictures):
    data = torch.utils.data.TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 2)
    options = {"channels": 2, "cells": 3, "epochs": 1, "batch_size": 8}
    with pytest.raises(ValueError, match="classes=NUMBER"):
        Evaluation(**options).run(GENOTYPE, data, data)
    assert Evaluation(**options).run(GENOTYPE, data, data, classes=2).parameters > 0


class TestSettings:
    def test_presets_are_the_published_settings(self):
        cifar, imagenet = PRESETS["darts-cifar10"], PRESETS["darts-imagenet"]
        assert (cifar.channels, cifar.cells, cifar.epochs, cifar.batch_size, cifar.cutout) == (36, 20, 600, 96, 16)
        assert (cifar.auxiliary, cifar.drop_path, cifar.weight_decay, cifar.clip) == (0.4, 0.2, 3e-4, 5)
        assert replace(cifar, dataset="cifar100") == PRESETS["darts-cifar100"]
        assert (imagenet.channels, imagenet.cells, imagenet.epochs, imagenet.batch_size, imagenet.stem) == (48, 14, 250, 128, "imagenet")
        assert (imagenet.drop_path, imagenet.weight_decay, imagenet.label_smoothing) == (0, 3e-5, 0.1)

    def test_learning_rates(self):
        cifar, imagenet = PRESETS["darts-cifar10"], PRESETS["darts-imagenet"]
        assert cifar.learning_rate(0) == 0.025 and cifar.learning_rate(300) == pytest.approx(0.0125)
        assert cifar.learning_rate(600) == pytest.approx(0.0)
        assert [imagenet.learning_rate(epoch) for epoch in (0, 1, 2)] == pytest.approx([0.1, 0.097, 0.09409])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"run": Path("x"), "genotype": "DARTS_V2"}, "not both"),
            ({"epochs": 0}, "epochs is 0"),
            ({"batch_size": 1}, "batch_size is 1"),
            ({"drop_path": 1.0}, "drop_path is 1.0"),
            ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
            ({"seeds": ()}, "seeds is"),
            ({"seeds": (1, 1)}, "seeds is"),
            ({"resume": True, "overwrite": True}, "either --resume or --overwrite"),
        ],
    )
    def test_impossible_ones(self, options, message):
        with pytest.raises(OptionError, match=message):
            EvaluateConfig(**options)

    def test_config_or_options(self):
        with pytest.raises(TypeError, match="EvaluateConfig or its options"):
            Evaluation(EvaluateConfig(), epochs=3)


@pytest.fixture
def run(tmp_path):
    """A search's folder: what `evaluate` needs of it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(SearchConfig(dataset="folder", data=Path("pictures"), image_size=16, out=folder), folder / "config.yaml")
    (folder / "genotype.json").write_text(json.dumps(named("PDARTS").to_json()))
    return folder


class TestArguments:
    """What `--run` and the dataset imply where the command line leaves it open."""

    def parse(self, *words):
        return parse(EvaluateConfig, arguments([str(word) for word in words]), PRESETS, "pamkd evaluate")

    def test_from_a_run(self, run):
        config = self.parse("--run", run)
        assert (config.dataset, config.data, config.image_size) == ("folder", Path("pictures"), 16)
        assert config.out == run / "evaluation" and config.channels == 36

    def test_command_line_wins(self, run, tmp_path):
        config = self.parse("--run", run, "--dataset", "cifar10", "--out", tmp_path / "there", "--seeds", 3, 4)
        assert (config.dataset, config.data, config.image_size) == ("cifar10", Path("data"), None)
        assert config.out == tmp_path / "there" and config.seeds == (3, 4)
        assert self.parse("--run", run, "--image-size", 8, "--preset", "digits").image_size == 8
        assert self.parse("--run", run, "--preset", "digits").dataset == "folder"

    def test_configuration_file_wins(self, run, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({"dataset": "cifar100", "channels": 6, "seeds": [1, 2]}))
        config = self.parse("--run", run, "--config", file)
        assert (config.dataset, config.channels, config.seeds, config.image_size) == ("cifar100", 6, (1, 2), None)

    def test_preset_of_the_dataset(self):
        assert self.parse("--genotype", "DARTS_V2") == replace(PRESETS["digits"], genotype="DARTS_V2", out=Path("runs/DARTS_V2-digits"))
        config = self.parse("--genotype", "a/found.json", "--dataset", "imagenet")
        assert config == replace(PRESETS["darts-imagenet"], genotype="a/found.json", out=Path("runs/found-imagenet"))

    def test_resume_takes_the_saved_options(self, run):
        saved = self.parse("--run", run, "--channels", 4, "--seeds", 5, 6)
        saved.out.mkdir()
        save_config(saved, saved.out / "config.yaml")
        assert self.parse("--run", run, "--resume") == replace(saved, resume=True)
        assert self.parse("--out", saved.out, "--resume") == replace(saved, resume=True)


def test_evaluate_prints_the_result(tmp_path, capsys):
    config = replace(PRESETS["digits"], genotype="DARTS_V2", channels=2, cells=3, epochs=1, seeds=(0, 7), out=tmp_path / "run")
    state = torch.random.get_rng_state()
    result = evaluate(config)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's random numbers are its own
    out = capsys.readouterr().out
    assert f"test error {100 * result.mean:.2f} ± {100 * result.std:.2f} % (360 images, seeds 0, 7)" in out
    assert f"{result.parameters:,} parameters, {result.multiply_adds:,} multiply-adds" in out
    assert "sep_conv_3x3:0" in out and str(config.out) in out
    manifest = json.loads((config.out / "manifest.json").read_text())
    assert manifest["dataset"]["train"] == 1437 and len(manifest["dataset"]["mean"]) == 1


def test_genotype_of_a_run_or_file(run):
    assert find_genotype(EvaluateConfig(run=run)) == named("PDARTS")
    assert find_genotype(EvaluateConfig(genotype=str(run / "genotype.json"))) == named("PDARTS")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON file"), ("[1]", "no genotype"), ("{}", "no genotype.*normal"), ('{"normal": 3}', "no genotype")],
)
def test_bad_genotype_file(tmp_path, text, message):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        find_genotype(EvaluateConfig(genotype=str(tmp_path / "g.json")))
    assert "g.json" in str(error.value)


def test_missing_things_are_named(run, tmp_path):
    (run / "genotype.json").unlink()
    for options, message in (
        ({"run": run}, "has found no genotype yet.*--resume"),
        ({"run": tmp_path / "nowhere"}, "there is no run in .*nowhere"),
        ({"genotype": "DARTS_V9"}, "'DARTS_V9' is neither a file nor a published one; those are DARTS_V1"),
        ({}, "nothing to evaluate"),
        ({"genotype": "DARTS_V2", "dataset": "cifar10", "data": tmp_path / "absent"}, "absent"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            evaluate(EvaluateConfig(**options, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
