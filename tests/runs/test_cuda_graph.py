"""Graphed steps without a GPU: the capture is replaced by taking the step again into the tensors that it filled first."""

from __future__ import annotations

import contextlib
import copy
import types

import pytest
import torch

from pamkd.methods.pamkd import Pamkd
from pamkd.methods.second_kdcl import SecondKdcl
from pamkd.runs import cuda_graph
from pamkd.runs.config import SearchConfig
from pamkd.runs.cuda_graph import GraphedStep
from pamkd.runs.errors import OptionError
from pamkd.runs.search import build_supernet
from pamkd.spaces import SPACES
from pamkd.spaces.supernet import Moment, Supernet
from pamkd.trilevel.finite import Diverged
from pamkd.trilevel.passes import Batch, Passes


def tensors_of(recorded):
    learners = [tensor for learner in recorded.learners for name, tensor in learner.tensors.items() if name != "alphas"]
    found = [value for value in vars(recorded.found).values() if value is not None]
    return [*learners, *found, *(recorded.hypergradient or []), recorded.noted.values]


@pytest.fixture
def captures(monkeypatch):
    """How often a step was captured; a replay writes nowhere else, as a graph does."""
    count = []

    def capture(step):
        count.append(step)
        recorded = step()

        def replay():
            for place, value in zip(tensors_of(recorded), tensors_of(step()), strict=True):
                place.copy_(value.detach())

        for place in tensors_of(recorded):
            place.detach().fill_(float("nan"))  # a capture computes nothing
        return replay, recorded

    monkeypatch.setattr(cuda_graph, "capture", capture)
    return count


@pytest.fixture
def moving(problem):
    """problem(K) over a network that knows its moment, and other batches for each step."""
    learners, train, valid, _ = problem(3)

    def at(epoch, seed):
        for learner in learners:
            learner.network = copy.copy(learner.network)
            learner.network.moment = Moment(epoch, 3, seed)

    def batches(step):
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(step))
        return Batch(train.images[order] * (1 + 0.1 * step), train.labels[order]), Batch(valid.images[order], valid.labels[order])

    return learners, at, batches


@pytest.mark.parametrize("kind", [Pamkd, SecondKdcl])
@pytest.mark.parametrize("order", ["first", "second"])
def test_graphed_steps_are_steps(kind, order, transfer, moving, captures):
    learners, at, batches = moving
    at(0, 0)
    twins = copy.deepcopy(learners)
    options = {"order": order} | ({"transfer": transfer} if kind is Pamkd else {})
    graphed, plain = GraphedStep(kind(passes=Passes(static=True), **options)), kind(**options)
    for step in range(6):
        at(step // 2, step)
        phase, lr = ("warmup-w" if step < 2 else "search"), 0.2 / (1 + step // 2)
        arguments = {"lr": lr, "phase": phase, "seed": step}
        report, found = graphed(learners, *batches(step), **arguments)
        other, expected = plain.step(twins, *batches(step), **arguments)
        assert repr(report) == repr(other)  # NaN where left out
        assert (found is None) == (expected is None) == (phase == "warmup-w")
        for one, two in zip(found or [], expected or [], strict=True):
            assert torch.equal(one, two)
        for one, two in zip(learners, twins, strict=True):
            assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())
        with torch.no_grad():
            for learner in (*learners, *twins):  # as an optimiser does, in place
                learner.alphas.add_(0.01)
    assert len(captures) == 3  # one for each epoch


def test_a_graphed_step_that_diverges_changes_nothing(transfer, moving, captures):
    learners, at, batches = moving
    at(0, 0)
    graphed = GraphedStep(Pamkd(passes=Passes(static=True), transfer=transfer, weight=0.0))
    transfer.publish = lambda output, weights, context: output.logits.sum(1)  # the CPU kernel of the similarities refuses NaN by itself
    graphed(learners, *batches(0), lr=0.2, phase="search", seed=0)
    before = copy.deepcopy(learners)
    train, valid = batches(1)
    with pytest.raises(Diverged, match="the loss of learner 0 in pass v_train is nan"):
        graphed(learners, train._replace(images=train.images * float("nan")), valid, lr=0.2, phase="search", seed=1)
    for one, other in zip(learners, before, strict=True):
        assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    report, _ = graphed(learners, train, valid, lr=0.2, phase="search", seed=1)
    assert len(captures) == 1 and all(loss == loss for loss in report.train_loss)


def test_fresh_learners_get_a_graph_of_their_own(transfer, moving, captures):
    learners, at, batches = moving
    at(0, 0)
    graphed = GraphedStep(Pamkd(passes=Passes(static=True), transfer=transfer))
    for fresh in (learners, learners, copy.deepcopy(learners)):
        graphed(fresh, *batches(0), lr=0.2, phase="search", seed=0)
    assert len(captures) == 2


def test_a_capture_warms_up_beside_and_forbids_nothing_to_other_threads(monkeypatch):
    """Worker threads pin memory for the next batches meanwhile: they may not make a capture fail."""
    happened = []

    @contextlib.contextmanager
    def within(name):
        happened.append(f"{name} begins")
        yield
        happened.append(f"{name} ends")

    main = types.SimpleNamespace(wait_stream=lambda stream: happened.append("main waits"))
    beside = types.SimpleNamespace(wait_stream=lambda stream: happened.append("beside waits"))
    recorded = types.SimpleNamespace(replay=lambda: happened.append("replay"))
    fakes = {"Stream": lambda: beside, "current_stream": lambda: main, "stream": lambda stream: within("beside")}
    fakes |= {"CUDAGraph": lambda: recorded, "graph": lambda graph, capture_error_mode: within(capture_error_mode)}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    replay, found = cuda_graph.capture(lambda: happened.append("step") or len(happened))
    assert found == len(happened) - 1
    replay()
    warm_up = ["beside waits", "beside begins", *["step"] * cuda_graph.WARM_UP, "beside ends", "main waits"]
    assert happened == [*warm_up, "thread_local begins", "step", "thread_local ends", "replay"]


REFUSED = {
    "device is 'cpu': needed is cuda with --cuda-graphs": {"device": "cpu"},
    "method is 'mkd': needed is one of pamkd": {"method": "mkd"},
    "hypergradient is 'exact'": {"hypergradient": "exact"},
    "kdcl_rule is 'linear'": {"method": "2nd-kdcl", "kdcl_rule": "linear", "learners": 3},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_a_graph_cannot_hold_is_refused(said):
    with pytest.raises(OptionError, match=said):
        SearchConfig(**{"cuda_graphs": True, "device": "cuda"} | REFUSED[said])


def test_spaces_that_draw_are_refused():
    config = SearchConfig(cuda_graphs=True, device="cuda", space="drnas", cells=4, channels=12)
    with pytest.raises(OptionError, match="space is 'drnas': needed is one that draws nothing within a step"):
        build_supernet(config, 10, 3)


@pytest.mark.parametrize("name", [*SPACES, "darts, drop-path"])
def test_stochastic_spaces_are_those_whose_passes_depend_on_the_seed(name):
    options = {"drop_path": 0.3} if "drop-path" in name else {}
    supernet: Supernet = SPACES[name.split(",")[0]](channels=12, cells=4, classes=3, image_channels=1, **options)
    random = torch.Generator().manual_seed(0)
    weights, alphas = supernet.init_weights(random), supernet.init_alphas(random)
    images = torch.randn(2, 1, 8, 8, generator=random)
    with torch.no_grad():
        one, other = (supernet.at(Moment(1, 3, seed)).forward(weights, alphas, images).logits for seed in (1, 2))
    assert supernet.stochastic == (not torch.equal(one, other))
