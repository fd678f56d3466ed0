"""Hypergradients of every method: against differences of J itself, and against double backward; passes; weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from pamkd.methods import METHODS
from pamkd.methods.one import WithStem
from pamkd.spaces.supernet import Output
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.trilevel.sgd import SGD

LR = 0.2
CASES = {
    "plain": ("plain", {}, 2),
    "mkd": ("mkd", {"temperature": 1.5}, 3),
    "kdcl naive": ("kdcl", {"rule": "naive"}, 3),
    "kdcl linear": ("kdcl", {"rule": "linear"}, 2),
    "kdcl minlogit": ("kdcl", {"rule": "minlogit"}, 3),
    "kdcl general": ("kdcl", {"rule": "general"}, 2),
    "okddip": ("okddip", {}, 3),
    "okddip without leader": ("okddip", {"leader": False}, 2),
    "one": ("one", {}, 3),
    "afd": ("afd", {"adversarial_lr": 0.0}, 3),
    "nes": ("nes", {}, 2),
    "2nd-mkd": ("2nd-mkd", {}, 3),
    "2nd-kdcl naive": ("2nd-kdcl", {"rule": "naive"}, 2),
    "2nd-kdcl minlogit": ("2nd-kdcl", {"rule": "minlogit"}, 3),
    "2nd-kdcl general": ("2nd-kdcl", {"rule": "general"}, 2),
    "no-1st": ("no-1st", {"transfer": GroupRelativeSimilarity(epsilon=0.5, group_size=2, pairs=5)}, 3),
}
ONE_SET = [case for case, (name, _, _) in CASES.items() if not METHODS[name].two_sets]

# Passes of a step, by name: (first order, what second order adds). Half a pass, a forward without its backward, in FORWARD.
PASSES = {case: ({"w_train": 1, "w_valid": 1}, {"w_train_perturbed": 2}) for case in ONE_SET}
PASSES["afd"][0]["adversarial"] = 1
PASSES["no-1st"] = ({"w_train": 1, "w_valid": 1, "w_taught": 1}, {"w_train_perturbed": 2, "w_taught_perturbed": 2})
for case in ("2nd-mkd", "2nd-kdcl naive", "2nd-kdcl minlogit", "2nd-kdcl general"):
    PASSES[case] = (
        {"v_train": 1, "v_teach": 1, "w_train": 1, "w_valid": 1},
        {"w_train_perturbed": 2, "v_train_perturbed": 2},
    )


def method_of(case, network, **options):
    name, own, count = CASES[case]
    return METHODS[name](**{"fd_step": 1e-4} | own | options), count


def stacked(outputs):
    return type(outputs[0])(*(torch.stack(parts) for parts in zip(*outputs, strict=True)))


def stepped(method, learners, train, valid, alphas=None):
    """The hypergradient of a step, and the learners after it."""
    learners = copy.deepcopy(learners)
    for learner, value in zip(learners, alphas or [], strict=False):
        learner.alphas = value
    method.start(learners)
    _, found = method.step(learners, train, valid, lr=LR, phase="search", seed=3)
    return torch.stack(found), learners


@pytest.mark.parametrize("case", CASES)
def test_finite_differences_match_double_backward(case, network, problem):
    method, count = method_of(case, network)
    learners, train, valid, _ = problem(count)
    finite, _ = stepped(method, learners, train, valid)
    direct, _ = stepped(method_of(case, network, order="first")[0], learners, train, valid)
    exact, _ = stepped(method_of(case, network, exact=True)[0], learners, train, valid)
    assert (exact - direct).norm() / direct.norm() > 1e-3, "the problem has no second-order part"
    assert (finite - exact).norm() / (exact - direct).norm() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_hypergradient_is_the_derivative_of_what_the_step_does(case, network, problem):
    """J(A) by running whole steps at A + e, A - e, with the targets held where they are constants."""
    method, count = method_of(case, network, sgd=SGD(0.9, 3e-4, 0.0), exact=True)
    learners, train, valid, _ = problem(count)
    if not method.two_sets:
        frozen, targets = [], method.targets

        def first_targets(*arguments):
            frozen.append(targets(*arguments))
            return frozen[0]

        method.targets = first_targets
    found, _ = stepped(method, learners, train, valid)
    method.exact, method.order = False, "first"

    def objective(alphas):
        _, after = stepped(method, learners, train, valid, alphas)
        outputs = [network.forward(learner.w, learner.alphas, valid.images) for learner in after]
        if method.two_sets:
            return sum(F.cross_entropy(output.logits, valid.labels) for output in outputs).item()
        return method.objective(stacked(outputs), valid).item()

    for k in range(count):
        for i in range(2):
            values = []
            for sign in (1, -1):
                alphas = [learner.alphas.detach().clone() for learner in learners]
                alphas[k][i] += sign * 1e-5
                values.append(objective([a.requires_grad_() for a in alphas]))
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(found[k, i].item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_passes(case, network, problem):
    """One pass of each network for everything that is differentiated once, two for a difference."""
    first, more = PASSES[case]
    for order, expected in (("first", first), ("second", first | more)):
        method, count = method_of(case, network, order=order)
        learners, train, valid, _ = problem(count)
        stepped(method, learners, train, valid)
        expected = {name: times * count for name, times in expected.items()}
        assert method.passes.forwards == expected
        only_forward = {"v_teach"} if order == "first" else set()
        assert method.passes.backwards == {name: times for name, times in expected.items() if name not in only_forward}


@pytest.mark.parametrize("case", [case for case in ONE_SET if case != "one"])
def test_weights_follow_the_gradient_of_the_loss(case, network, problem):
    """W' against torch.optim.SGD on cross-entropy plus the method's loss, targets without gradient."""
    method, count = method_of(case, network)
    learners, train, valid, _ = problem(count)
    _, after = stepped(method, learners, train, valid)
    method.start(learners)
    batch = train if method.teaches_on == "train" else valid
    weights = [torch.nn.Parameter(learner.w.clone()) for learner in learners]
    total = 0.0
    outputs = []
    for w, learner in zip(weights, learners, strict=True):
        total = total + F.cross_entropy(network.forward(w, learner.alphas, train.images).logits, train.labels)
        outputs.append(network.forward(w, learner.alphas, batch.images))
    outputs = stacked(outputs)
    targets = method.targets(Output(*(part.detach() for part in outputs)), batch, 3)
    (total + method.loss(outputs, batch, targets).sum()).backward()
    for w, learner, new in zip(weights, learners, after, strict=True):
        optimizer = torch.optim.SGD([w], lr=LR, momentum=0.9, weight_decay=3e-4)
        optimizer.state[w]["momentum_buffer"] = learner.w_momentum.clone()
        torch.nn.utils.clip_grad_norm_([w], 5.0)
        optimizer.step()
        torch.testing.assert_close(new.w, w.detach(), rtol=1e-12, atol=1e-12)


def test_one_trains_a_single_stem(network, problem):
    """Three branches on one stem as a torch module: one parameter, one clipping norm, gate by the ensemble's loss alone."""
    learners, train, valid, _ = problem(3)
    method, _ = method_of("one", network, sgd=SGD(0.9, 3e-4, 0.7))
    _, after = stepped(method, learners, train, valid)
    fresh, _ = method_of("one", network)
    fresh.start(learners)
    size = network.stem_size
    stem = torch.nn.Parameter(learners[0].w[:size].clone())
    branches = [torch.nn.Parameter(learner.w[size:].clone()) for learner in learners]
    gate = torch.nn.Parameter(fresh.modules.detach().clone())
    fresh.modules = gate
    weights = [torch.cat([stem, branch]) for branch in branches]
    outputs = stacked([WithStem(network).forward(w, learner.alphas, train.images) for w, learner in zip(weights, learners, strict=True)])
    with torch.no_grad():
        targets = fresh.targets(outputs, train, 3)
    total = sum(F.cross_entropy(z, train.labels) for z in outputs.logits) + fresh.loss(outputs, train, targets).sum()
    total.backward()
    parameters = [stem, *branches]
    assert torch.nn.utils.clip_grad_norm_(parameters, 0.7) > 0.7
    torch.nn.utils.clip_grad_norm_([gate], 0.7)
    buffers = [learners[0].w_momentum[:size], *(learner.w_momentum[size:] for learner in learners), torch.zeros_like(gate)]
    optimizer = torch.optim.SGD([*parameters, gate], lr=LR, momentum=0.9, weight_decay=3e-4)
    for parameter, buffer in zip([*parameters, gate], buffers, strict=True):
        optimizer.state[parameter]["momentum_buffer"] = buffer.clone()
    optimizer.step()
    torch.testing.assert_close(after[0].w[:size], stem.detach(), rtol=1e-7, atol=1e-9)
    for learner, branch in zip(after, branches, strict=True):
        torch.testing.assert_close(learner.w[size:], branch.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(method.modules.detach(), gate.detach(), rtol=1e-7, atol=1e-9)


def test_zero_weight_of_a_teacher_is_plain(network, problem):
    learners, train, valid, _ = problem(2)
    plain, alone = stepped(METHODS["plain"](), learners, train, valid)
    for name in ("mkd", "kdcl", "no-1st"):
        options = {"transfer": GroupRelativeSimilarity(group_size=2)} if name == "no-1st" else {}
        found, after = stepped(METHODS[name](weight=0.0, **options), learners, train, valid)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(after[1].w, alone[1].w)


def test_no_first_stage_lowers_the_gap_that_pamkd_leaves_alone(network, problem):
    """The reason for two weight sets (Table 6): steps along dD/dW alone bring the learners' validation losses together."""
    learners, train, valid, _ = problem(2)
    method = METHODS["no-1st"](weight=30.0, sgd=SGD(0.0, 0.0, 0.0), order="first", transfer=CASES["no-1st"][1]["transfer"])
    gaps = []
    for _ in range(12):
        report, _ = method.step(learners, train, valid, lr=0.01, phase="search", seed=3)
        gaps.append(max(max(row) for row in report.flow))
    assert gaps[-1] < 0.2 * gaps[0]
    measured = []
    for weight in (30.0, 0.0):
        learners, train, valid, _ = problem(2)
        pamkd = METHODS["pamkd"](weight=weight, sgd=SGD(0.0, 0.0, 0.0), order="first", transfer=method.transfer)
        reports = [pamkd.step(learners, train, valid, lr=0.01, phase="search", seed=3)[0] for _ in range(12)]
        measured.append([report.valid_loss_v for report in reports])
    assert measured[0] == measured[1], "what is taught never moves the weights that are measured"
