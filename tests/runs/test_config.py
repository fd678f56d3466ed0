"""Options: the command line, YAML files and presets are one thing."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import OptionError
from pamkd.runs.method import method_of
from pamkd.runs.options import parse, read_config, save_config
from pamkd.runs.search import build_supernet
from pamkd.runs.search_presets import PRESETS


def parsed(*words: str) -> SearchConfig:
    return parse(SearchConfig, [str(word) for word in words], PRESETS, "pamkd search")


def test_defaults_are_those_of_darts_and_the_paper():
    config = parsed()
    assert (config.learners, config.epochs, config.batch_size, config.channels, config.cells) == (2, 50, 64, 16, 8)
    assert (config.lr, config.lr_min, config.momentum, config.weight_decay, config.clip) == (0.025, 0.001, 0.9, 3e-4, 5.0)
    assert (config.arch_lr, config.arch_weight_decay, config.fd_step) == (3e-4, 1e-3, 0.01)
    method = method_of(config)
    assert (method.weight, method.transfer.group_size, method.transfer.epsilon) == (0.5, 5, 0.01)


def test_command_line_overrides_file_overrides_preset(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("lambda: 0.25\nepochs: 7\nflip: true\n")
    config = parsed("--preset", "darts-cifar10", "--config", file, "--epochs", "9")
    assert (config.dataset, config.distill_weight, config.epochs, config.flip) == ("cifar10", 0.25, 9, True)


@pytest.mark.parametrize("name", PRESETS)
def test_saved_configuration_reads_back_the_same(name, tmp_path):
    config = dataclasses.replace(PRESETS[name], out=tmp_path / "run", flip=False, seed=11, learners=3)
    save_config(config, tmp_path / "config.yaml")
    assert parsed("--config", tmp_path / "config.yaml") == config


def test_every_option_is_in_the_file(tmp_path):
    save_config(SearchConfig(), tmp_path / "config.yaml")
    names = {"lambda" if field.name == "distill_weight" else field.name for field in dataclasses.fields(SearchConfig)}
    assert set(read_config(tmp_path / "config.yaml")) == names - {"resume", "overwrite"}


def test_resume_takes_the_saved_options(tmp_path):
    saved = dataclasses.replace(SearchConfig(), channels=4, out=tmp_path, overwrite=True)
    save_config(saved, tmp_path / "config.yaml")
    resumed = dataclasses.replace(saved, resume=True, overwrite=False)
    assert parsed("--out", tmp_path, "--resume") == parsed(f"--out={tmp_path}", "--resume") == resumed
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"channels": 4, "overwrite": True}))  # as an earlier version saved it
    assert parsed("--out", tmp_path, "--resume").channels == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [("epoch: 3", "unknown option 'epoch'"), ("- 3", "holds a list"), ("a: [", "is no YAML"), ("resume: 3", "needed is true or false")],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        parsed("--config", file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size is 1: needed is 2 or more"),
        ({"batch_size": 9}, "batch_size is 9: needed is at least 2 \\* group_size = 10"),
        ({"learners": 0}, "learners is 0"),
        ({"epochs": 3, "warmup_v_epochs": 2, "warmup_w_epochs": 1}, "epochs is 3: needed is more epochs"),
        ({"space": "nasnet"}, "space is 'nasnet': needed is one of darts"),
        ({"train_portion": 1.0}, "train_portion is 1.0"),
        ({"resume": True, "overwrite": True}, "either --resume or --overwrite"),
        ({"fd_step": 0.0}, "fd_step is 0.0"),
        ({"log_every": 0}, "log_every is 0: needed is 1 or more"),
        ({"clip": -5.0}, "clip is -5.0: needed is 0 \\(no clipping\\) or more"),
        ({"lr": float("nan")}, "lr is nan: needed is a positive number"),
        ({"arch_lr": -1e-3}, "arch_lr is -0.001: needed is 0 or more"),
        ({"momentum": 1.0}, "momentum is 1.0: needed is 0 or more and below 1"),
        ({"workers": -1}, "workers is -1: needed is 0 or more"),
        ({"seed": 2**64}, "seed is 18446744073709551616: needed is a number of less than 63 bits"),
        ({"method": "dml"}, "method is 'dml': needed is one of pamkd, plain"),
        ({"method": "mkd", "learners": 1}, "learners is 1: needed is 2 or more for method mkd"),
        ({"method": "mkd", "group_size": 3}, "group_size is 3: needed is None, as method mkd does not read it"),
        ({"method": "plain", "distill_weight": 1.0}, "lambda \\(distill_weight\\) is 1.0: needed is None, as method plain"),
        ({"threads": -1}, "threads is -1: needed is 0 or more"),
        ({"method": "mkd", "warmup_v_epochs": 3}, "warmup_v_epochs is 3: needed is 0: method mkd has no weights V"),
        ({"method": "okddip"}, "learners is 2: needed is 3 or more for okddip with a leader"),
        ({"transfer": "logits"}, "transfer is 'logits': needed is one of grs"),
        # Of types that the command line lets nobody give.
        ({"precision": "float16"}, "precision is 'float16': needed is one of float32, bfloat16"),
        ({"epochs": 2.5}, "epochs is 2.5: needed is a whole number"),
        ({"group_pairs": True}, "group_pairs is True: needed is a whole number or None"),
        ({"out": "runs/x"}, "out is 'runs/x': needed is a pathlib.Path or None"),
        ({"space_options": ["partial=2"]}, "space_options is \\['partial=2'\\]: needed is a tuple, each entry a string"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(OptionError, match=message):
        SearchConfig(**options)


def test_saved_file_is_plain_yaml(tmp_path):
    save_config(SearchConfig(out=tmp_path), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["out"] == str(tmp_path)


def test_a_gpu_stacks_passes_and_a_cpu_does_so_when_told():
    told = [SearchConfig(), SearchConfig(stacked=True), SearchConfig(device="cuda"), SearchConfig(device="cuda", stacked=False)]
    assert [config.stacked_passes for config in told] == [1, 4, 4, 1]  # two learners, both ends of a difference
    assert [method_of(config).passes.stacked for config in told] == [False, True, True, False]
    assert SearchConfig(stacked=True, learners=3, order="first").stacked_passes == 3
    with pytest.raises(OptionError, match="space is 'prdarts': needed is another one with --stacked True"):
        build_supernet(SearchConfig(space="prdarts", stacked=True), 10, 3)
