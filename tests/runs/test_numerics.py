"""Deterministic searches, TF32 and bfloat16: what a run asks of PyTorch, and that it leaves the caller's settings alone."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

import pamkd
from pamkd.methods.pamkd import Pamkd
from pamkd.runs import checkpoint
from pamkd.runs.config import SearchConfig
from pamkd.runs.errors import OptionError
from pamkd.runs.folder import CHECKPOINT
from pamkd.runs.numerics import numerics
from pamkd.runs.search import Search
from pamkd.spaces.darts import Darts
from pamkd.trilevel.passes import PERTURBED, Batch, Passes
from pamkd.trilevel.step import Learner
from tests.runs.test_search import assert_same

WHOLE = {
    "pamkd": {},
    # Maps of 49,152 values, so that both threads have work.
    "two threads": {"threads": 2, "channels": 32, "batch_size": 24, "order": "first"},
    "bfloat16": {"precision": "bfloat16", "batch_size": 24, "epochs": 1, "order": "first", "learners": 1},
    "draws": {"space": "drnas", "channels": 12, "epochs": 2, "order": "first"},
    "okddip": {"method": "okddip", "learners": 3, "group_size": None, "group_pairs": None},
}


@pytest.mark.parametrize("case", WHOLE)
def test_deterministic_searches_are_the_same_bit_for_bit(case, pictures, tiny, tmp_path):
    options = tiny | {"deterministic": True, "threads": 1, "tensorboard": False} | WHOLE[case]
    found = [Search(SearchConfig(out=tmp_path / name, **options)).run(*pictures) for name in "ab"]
    assert_same(*found)
    one, other = (checkpoint.load(tmp_path / name / CHECKPOINT)[0] for name in "ab")
    assert one.keys() == other.keys()
    assert all(torch.equal(value.nan_to_num(), other[name].nan_to_num()) for name, value in one.items())


def test_settings_hold_within_a_run_alone(pictures, tiny):
    seen = []
    matmul = torch.backends.cuda.matmul

    def augment(images, generator):
        strict = torch.are_deterministic_algorithms_enabled()
        seen.append((torch.get_num_threads(), strict, matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return images

    torch.use_deterministic_algorithms(False)
    before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    threads = torch.get_num_threads()
    cases = [({"deterministic": True, "threads": threads + 1}, (threads + 1, True, False, False))]
    cases.append(({"tf32": True}, (threads, False, True, True)))
    for options, expected in cases:
        pamkd.Search(**tiny | {"epochs": 1, "method": "plain", "group_size": None, "group_pairs": None} | options).run(
            *pictures, augment=augment
        )
        assert set(seen) == {expected}
        seen.clear()
    assert not torch.are_deterministic_algorithms_enabled() and (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_programs_that_use_the_newer_names_of_tf32(precision):
    """Their setting holds again after a run, and the kernels' launchers follow it; PyTorch's older names raise beside it."""
    launchers = pytest.importorskip("pamkd.kernels._shared")
    matmul, older = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    try:
        matmul.fp32_precision = precision
        passes = {"ieee": "tf32x3", "tf32": "tf32"}
        assert launchers.dot_precision(torch.float32) == passes[precision]
        for tf32, expected in ((False, "ieee"), (True, "tf32")):
            with numerics(SearchConfig(tf32=tf32)):
                assert matmul.fp32_precision == expected and matmul.allow_tf32 == tf32
                assert launchers.dot_precision(torch.float32) == passes[expected]
            assert matmul.fp32_precision == precision
    finally:
        matmul.allow_tf32 = older


@pytest.mark.parametrize(("device", "current"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_numbered_gpu_is_the_current_one_within_a_run(device, current, monkeypatch):
    """Streams, CUDA graphs and Triton's launches are those of the current device; without a number none is touched."""
    entered = []

    @contextlib.contextmanager
    def becomes_current(device):
        entered.append(str(device))
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", becomes_current)
    with numerics(SearchConfig(device=device)):
        assert entered == current


def test_deterministic_runs_have_their_number_of_threads(pictures, tiny, tmp_path):
    with pytest.raises(OptionError, match="threads is 0: needed is a number with --deterministic"):
        SearchConfig(deterministic=True)
    options = tiny | {"out": tmp_path / "run", "epochs": 1, "deterministic": True, "tensorboard": False}
    Search(SearchConfig(threads=1, **options)).run(*pictures)
    with pytest.raises(ValueError, match="has threads 1, not 2"):
        Search(SearchConfig(threads=2, resume=True, **options)).run(*pictures)


def test_finite_differences_keep_the_precision_of_the_weights(network, transfer, problem):
    learners, train, valid, _ = problem(2)
    seen = {}

    class Spy(Passes):
        def forward(self, name, learners, weights, batch):
            self.name = name
            losses, outputs = super().forward(name, learners, weights, batch)
            assert {x.dtype for x in (*losses, *weights, *(output.embedding for output in outputs))} == {torch.float64}
            return losses, outputs

    passes, forward = Spy(precision=torch.bfloat16), type(network).forward

    def spy(weights, alphas, images):
        seen.setdefault(passes.name, set()).add((weights.dtype, images.dtype, alphas.dtype))
        return forward(network, weights, alphas, images)

    network.forward = spy
    _, hypergradient = Pamkd(transfer=transfer, passes=passes).step(learners, train, valid, lr=0.2, phase="search", seed=3)
    assert all(grad.dtype == torch.float64 for grad in hypergradient) and learners[0].w.dtype == torch.float64
    assert len(seen) == 8
    for name, dtypes in seen.items():
        computed = torch.float64 if name.endswith(PERTURBED) else torch.bfloat16
        assert dtypes == {(computed, computed, torch.float64)}, name


def test_bfloat16_gradients_are_near_those_of_float32():
    random = torch.Generator().manual_seed(0)
    network = Darts(channels=4, cells=3, classes=3, image_channels=1)
    learner = Learner.create(network, network.init_alphas(random), *(network.init_weights(random) for _ in "vw"))
    batch = Batch(torch.randn(16, 1, 8, 8, generator=random), torch.randint(0, 3, (16,), generator=random))
    found = []
    for precision in (None, torch.bfloat16):
        passes, w = Passes(precision=precision), learner.w.detach().requires_grad_()
        (ran,) = passes.run("w_train", [learner], [w], batch, [[w, learner.alphas]])
        found.append((*ran.terms, *ran.grads))
    (loss, *grads), (near, *others) = found
    assert near.item() == pytest.approx(loss.item(), rel=0.02) and near.item() != loss.item()
    for grad, other in zip(grads, others, strict=True):
        assert other.dtype == torch.float32
        assert F.cosine_similarity(grad.flatten(), other.flatten(), 0) > 0.95


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(device, pictures):
    with pytest.raises(OptionError, match=f"device is '{device}': .* device"):
        Search(device=device).run(*pictures)
