"""`pamkd doctor` finds nothing wrong here, and something where something is wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from pamkd import doctor as module
from pamkd.doctor import DoctorConfig, check, doctor
from pamkd.ops import _library
from pamkd.ops._library import EXAMPLES, Example


def test_everything_works(capsys):
    assert doctor(DoctorConfig(rounds=1)) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in EXAMPLES) and "everything works" in text and "FAILED" not in text


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds is 0: needed is 1 or more"):
        doctor(DoctorConfig(rounds=0))


def test_json_has_every_operation_and_dtype(capsys):
    assert doctor(DoctorConfig(json=True, rounds=1)) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["operation"], row["dtype"]) for row in found["operations"] if row["device"] == "cpu"} == {
        (name, dtype) for name in EXAMPLES for dtype in ("float32", "float64")
    }
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    assert found["build"]["instruction set"] in ("baseline", "avx2", "avx512")


def test_without_timings_there_is_no_check():
    with pytest.raises(ValueError, match="rounds is 0: needed is 1 or more"):
        doctor(DoctorConfig(rounds=0))


def test_wrong_result_fails(monkeypatch, capsys):
    good = EXAMPLES["pairwise_cosine"]
    monkeypatch.setitem(EXAMPLES, "pairwise_cosine", Example(lambda e: good.operation(e) * 1.01, good.reference, good.arguments))
    assert doctor(DoctorConfig(rounds=1)) == 1
    text = capsys.readouterr().out
    assert "FAILED: error" in text and "something does not work" in text


def test_raising_operation_is_a_row_not_a_crash():
    def broken(*arguments):
        raise NotImplementedError("the C++ extension is not built")

    good = EXAMPLES["grs_loss"]
    row = check("grs_loss", Example(broken, good.reference, good.arguments), "cpu", torch.float32, 1)
    assert row["problem"] == "the C++ extension is not built"


def test_extension_that_failed_to_load_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(module._ext, "PROBLEM", "the C++ extension is built but failed to load")
    assert doctor(DoctorConfig(rounds=1)) == 1
    assert "extension: the C++ extension is built but failed to load" in capsys.readouterr().out


def test_every_operation_is_listed_on_every_type_of_device(monkeypatch, capsys):
    """Also where there is no such device, and where the kernels' language is not installed: then one warning says why."""
    assert module.implementations()["grs_loss"] == {"cpu": "C++", "cuda": "Triton"}
    monkeypatch.setitem(_library.UNAVAILABLE, "Triton", "Triton is not installed (pip install triton)")
    monkeypatch.setattr(_library, "_warned", set())
    assert doctor(DoctorConfig(rounds=1)) == 0
    text = capsys.readouterr().out
    assert "grs_loss uses C++ on cpu, eager composition on cuda" in text
    assert torch.cuda.is_available() or "no CUDA device here" in text
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    with pytest.warns(UserWarning, match="grs_loss has kernels for cpu and cuda, but Triton is not installed"):
        assert not _library.has_kernel("grs_loss", on_gpu)
