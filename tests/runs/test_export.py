"""Exported networks compute what the evaluated one computes."""

from __future__ import annotations

import builtins
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from pamkd.runs.errors import CheckpointError, MissingExtra
from pamkd.runs.evaluate import Evaluation
from pamkd.runs.export import ExportConfig, export, load_network, save_network, write_onnx
from pamkd.spaces.evaluation_network import EvaluationNetwork
from pamkd.spaces.genotype import named
from pamkd.spaces.published import load_published_network


def network(**options):
    torch.manual_seed(0)
    return EvaluationNetwork(named("PDARTS"), **{"channels": 4, "cells": 3, "classes": 5} | options)


@pytest.fixture
def evaluated(pictures, tmp_path):
    options = {"channels": 2, "cells": 3, "epochs": 1, "batch_size": 8, "seeds": (4, 2), "out": tmp_path / "run" / "evaluation"}
    result = Evaluation(**options).run(named("PDARTS"), *pictures, facts={"dataset": {"classes": ["low", "middle", "high"]}})
    (tmp_path / "run" / "result.json").write_text("{}")  # the search's
    return tmp_path / "run", result


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_weights_round_trip(tmp_path, stem):
    net = network(stem=stem, auxiliary=True)
    net(torch.randn(4, 3, 16, 16))  # moves the running statistics
    save_network(tmp_path / "w.safetensors", net, {"image": [3, 16, 16]})
    loaded, facts = load_network(str(tmp_path / "w.safetensors"))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images).logits, net.eval()(images).logits) and facts == {"image": [3, 16, 16]}
    plain = network(stem=stem, auxiliary=True)
    load_published_network(plain, load_file(tmp_path / "w.safetensors"))  # the file is an ordinary one with published names
    assert torch.equal(plain.eval()(images).logits, loaded(images).logits)


def test_export_of_a_run(evaluated, tmp_path, capsys):
    run, result = evaluated
    exported = export(ExportConfig(run=run, seed=2))
    out = run / "evaluation" / "export"
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(exported(images).logits, result.network.eval()(images).logits)
    assert torch.equal(load_network(out / "weights.safetensors")[0](images).logits, exported(images).logits)
    assert json.loads((out / "genotype.json").read_text()) == named("PDARTS").to_json()
    facts = json.loads((out / "network.json").read_text())
    assert facts["image"] == [1, 8, 8] and facts["dataset"]["classes"] == ["low", "middle", "high"] and facts["seed"] == 2
    assert EvaluationNetwork(named("PDARTS"), **facts["options"]).num_parameters == result.parameters
    assert str(out / "weights.safetensors") in capsys.readouterr().out
    export(ExportConfig(run=run / "evaluation", out=tmp_path / "there"))
    assert json.loads((tmp_path / "there" / "network.json").read_text())["seed"] == 4


def test_what_cannot_be_exported(evaluated, tmp_path):
    run, _ = evaluated
    with pytest.raises(ValueError, match=r"seed is 3: .* holds networks of the seeds 4, 2"):
        export(ExportConfig(run=run, seed=3))
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="there is no finished evaluation in"):
            export(ExportConfig(run=folder))
    with pytest.raises(CheckpointError, match="there is no file"):
        load_network(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="checkpoint of a run in progress"):
        load_network(run / "evaluation" / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize(("stem", "shape"), [("cifar", (1, 9, 13)), ("imagenet", (3, 16, 16))])
def test_onnx_computes_the_same(tmp_path, stem, shape):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    net = network(stem=stem, image_channels=shape[0], auxiliary=True)
    for _ in range(3):
        net(torch.randn(8, *shape))
    write_onnx(net.eval(), shape, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = torch.randn(count, *shape)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), net(images).logits, rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_onnx_from_the_command(evaluated, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    run, _ = evaluated
    net = export(ExportConfig(run=run, onnx=tmp_path / "new" / "net.onnx"))
    images = torch.randn(2, 1, 8, 8)
    (logits,) = onnxruntime.InferenceSession(str(tmp_path / "new" / "net.onnx")).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), net(images).logits, rtol=1e-4, atol=1e-5)


def test_missing_onnx_is_named(evaluated, monkeypatch):
    run, _ = evaluated
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxscript":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=re.escape("needs the package onnxscript: pip install 'pamkd[onnx]'")):
        export(ExportConfig(run=run, onnx=run / "net.onnx"))
    assert not (run / "evaluation" / "export").exists()
