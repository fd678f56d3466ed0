"""The schedule of passes against exact differentiation, its pass counts, and what it must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from pamkd.methods.pamkd import Pamkd
from pamkd.reference import group_min_similarity, grs_hinge
from pamkd.trilevel.exact import exact_hypergradient
from pamkd.trilevel.finite import Diverged
from pamkd.trilevel.sgd import SGD
from pamkd.trilevel.step import Lesson, pairwise_gaps

LR, WEIGHT = 0.2, 0.5


def method_of(transfer, *, fd_step=1e-5, weight=WEIGHT, **options):
    return Pamkd(transfer=transfer, weight=weight, fd_step=fd_step, **options)


def parts_of(transfer, **options):
    return method_of(transfer, **options).parts


def terms_of(parts, learners, train, valid, context):
    """All four terms of the schedule's hypergradient."""
    _, v_updates = parts.train_v(learners, train, LR)
    measured = parts.measure(learners, train, valid, context)
    lesson = Lesson.of(measured, context)
    students = [k for k, row in enumerate(pairwise_gaps(lesson.losses)) if (row > 0).any()]
    _, _, w_updates = parts.train_w(learners, train, valid, lesson, students, LR)
    _, _, u, direct = parts.validate_w(learners, valid)
    return parts.hypergradient(learners, train, valid, measured, lesson, students, v_updates, w_updates, u, direct)


def exact_terms(network, learners, train, valid, groups, sgd):
    """Each term by itself, by cutting the graph of everything else: plain autograd over the formulas of the paper."""
    count = range(len(learners))

    def loss(weights, alphas, batch):
        output = network.forward(weights, alphas, batch.images)
        return F.cross_entropy(output.logits, batch.labels), output.embedding

    def similarity(embedding):
        flat, _ = group_min_similarity(embedding[None], torch.cat(groups))
        return flat.view(2, -1).T

    def updated(weights, buffer, alphas_or_objective):
        (grad,) = torch.autograd.grad(alphas_or_objective, weights, create_graph=True)
        scale = min(1.0, sgd.clip / (grad.detach().norm().item() + 1e-6)) if sgd.clip else 1.0
        return weights - LR * (sgd.momentum * buffer + scale * grad + sgd.weight_decay * weights)

    def total(in_v, in_teacher, in_w, direct):
        """J as a function of the architectures given to each place."""
        v0 = [learner.v.detach().requires_grad_() for learner in learners]
        w0 = [learner.w.detach().requires_grad_() for learner in learners]
        v = [updated(v0[k], learners[k].v_momentum, loss(v0[k], in_v[k], train)[0]) for k in count]
        measured = [loss(v[k], in_teacher[k], valid) for k in count]
        ell, sim = torch.stack([m[0] for m in measured]), torch.stack([similarity(m[1]) for m in measured])
        j = 0.0
        for k in count:
            objective = loss(w0[k], in_w[k], train)[0]
            student = similarity(loss(w0[k], in_w[k], valid)[1])
            for teacher in count:
                gap = torch.relu(ell[k] - ell[teacher])
                objective = objective + WEIGHT * gap * grs_hinge(sim[teacher][None], student[None], 0.01)[0, 0]
            j = j + loss(updated(w0[k], learners[k].w_momentum, objective), direct[k], valid)[0]
        return j

    places = ["through_v", "through_teacher", "through_w", "direct"]
    terms = {}
    for i, place in enumerate(places):
        arguments = [[learner.alphas.detach().clone() for learner in learners] for _ in places]
        arguments[i] = [alphas.requires_grad_() for alphas in arguments[i]]
        terms[place] = torch.stack(torch.autograd.grad(total(*arguments), arguments[i]))
    return terms


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("sgd", [SGD(0.0, 0.0, 0.0), SGD(0.9, 3e-4, 5.0), SGD(0.9, 3e-4, 0.3)], ids=["plain", "momentum", "clipped"])
def test_every_term_matches_exact_autograd(network, transfer, problem, count, sgd):
    learners, train, valid, groups = problem(count)
    truth = exact_terms(network, learners, train, valid, groups, sgd)
    ours = terms_of(parts_of(transfer, sgd=sgd), copy.deepcopy(learners), train, valid, groups)
    for name, term in truth.items():
        assert term.norm() > 1e-6, f"the problem does not exercise {name}"
        assert (torch.stack(getattr(ours, name)) - term).norm() / term.norm() < 1e-6, name
    total = sum(truth.values())
    assert (torch.stack(ours.total()) - total).norm() / total.norm() < 1e-6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_exact_hypergradient_matches_schedule(network, transfer, problem, count):
    learners, train, valid, groups = problem(count)
    parts = parts_of(transfer)
    exact = exact_hypergradient(parts.teaching, learners, train, valid, groups, lr=LR, sgd=parts.sgd)
    finite = terms_of(parts, learners, train, valid, groups).total()
    assert (torch.stack(finite) - torch.stack(exact)).norm() / torch.stack(exact).norm() < 1e-6


def test_finite_difference_error_falls_with_the_square_of_the_step(network, transfer, problem):
    learners, train, valid, groups = problem(2)
    truth = sum(exact_terms(network, learners, train, valid, groups, SGD()).values())
    errors = []
    for step in (1e-2, 1e-3):
        ours = terms_of(parts_of(transfer, sgd=SGD(), fd_step=step), copy.deepcopy(learners), train, valid, groups)
        errors.append((torch.stack(ours.total()) - truth).norm().item())
    assert 50 < errors[0] / errors[1] < 200


# Forward and backward passes of design section 2 per role: (student and only best teacher), by name of the pass.
PASSES = {"v_train": 1, "v_teach": 1, "w_train": 1, "w_valid": 1, "w_train_perturbed": 2, "v_train_perturbed": 2}
STUDENT_PASSES = {"w_taught": 1, "w_taught_perturbed": 2}


@pytest.mark.parametrize("count", [2, 3])
def test_second_order_step_takes_the_passes_of_the_table(network, transfer, problem, count):
    learners, train, valid, _ = problem(count)
    method = method_of(transfer)
    method.step(learners, train, valid, lr=LR, phase="search", seed=3)
    passes = method.parts.passes
    expected = {name: times * count for name, times in PASSES.items()} | {
        name: times * (count - 1) for name, times in STUDENT_PASSES.items()
    }
    assert passes.forwards == expected
    assert passes.backwards == expected
    # 10 forward+backward passes and the split pair of V' for a student, 7 and that pair for the best learner.
    assert sum(PASSES.values()) == 7 + 1 and sum(STUDENT_PASSES.values()) == 10 - 7


def test_first_order_step_takes_four_and_a_half_passes(network, transfer, problem):
    learners, train, valid, _ = problem(2)
    method = method_of(transfer, order="first")
    method.step(learners, train, valid, lr=LR, phase="search", seed=3)
    passes = method.parts.passes
    assert passes.forwards == {"v_train": 2, "v_teach": 2, "w_train": 2, "w_valid": 2, "w_taught": 1}
    assert passes.backwards == {"v_train": 2, "w_train": 2, "w_valid": 2, "w_taught": 1}
    assert (sum(passes.forwards.values()) + sum(passes.backwards.values())) / 2 == 4.5 + 3.5


def test_single_learner_is_darts(network, transfer, problem):
    learners, train, valid, _ = problem(1)
    method = method_of(transfer)
    report, hypergradient = method.step(learners, train, valid, lr=LR, phase="search", seed=3)
    assert method.parts.passes.forwards == {"w_train": 1, "w_valid": 1, "w_train_perturbed": 2}
    assert report.flow == [[0.0]] and len(hypergradient) == 1


def test_zero_lambda_skips_students(network, transfer, problem):
    learners, train, valid, _ = problem(2)
    method = method_of(transfer, weight=0.0)
    method.step(learners, train, valid, lr=LR, phase="search", seed=3)
    assert not {"w_taught", "w_taught_perturbed", "v_train_perturbed"} & set(method.parts.passes.forwards)


@pytest.mark.parametrize(("phase", "trained"), [("warmup-v", {"v_train"}), ("warmup-w", {"v_train", "v_teach", "w_train", "w_taught"})])
def test_warmup_leaves_architectures_alone(network, transfer, problem, phase, trained):
    learners, train, valid, _ = problem(2)
    method = method_of(transfer)
    before = copy.deepcopy(learners)
    _, hypergradient = method.step(learners, train, valid, lr=LR, phase=phase, seed=3)
    assert hypergradient is None
    assert set(method.parts.passes.forwards) == trained
    for learner, old in zip(learners, before, strict=True):
        assert torch.equal(learner.alphas, old.alphas)
        assert torch.equal(learner.w, old.w) == (phase == "warmup-v")
        assert not torch.equal(learner.v, old.v)


def test_hypergradient_leaves_weights_bit_for_bit(network, transfer, problem):
    learners, train, valid, _ = problem(2)
    twin = copy.deepcopy(learners)
    method_of(transfer, order="first").step(learners, train, valid, lr=LR, phase="search", seed=3)
    method_of(transfer).step(twin, train, valid, lr=LR, phase="search", seed=3)
    for one, other in zip(learners, twin, strict=True):
        for name in ("v", "w", "v_momentum", "w_momentum", "alphas"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_only_worse_learners_are_taught(network, transfer, problem):
    learners, train, valid, _ = problem(3)
    report, _ = method_of(transfer).step(learners, train, valid, lr=LR, phase="search", seed=3)
    for k, row in enumerate(report.flow):
        for j, weight in enumerate(row):
            assert weight == pytest.approx(max(0.0, report.valid_loss_v[k] - report.valid_loss_v[j]))
    best = min(range(3), key=report.valid_loss_v.__getitem__)
    assert report.distill_loss[best] == 0.0 and sum(report.distill_loss) > 0


def test_identical_learners_teach_nothing(network, transfer, problem):
    learners, train, valid, _ = problem(1)
    pair = [learners[0], copy.deepcopy(learners[0])]
    report, hypergradient = method_of(transfer).step(pair, train, valid, lr=LR, phase="search", seed=3)
    assert report.flow == [[0.0, 0.0], [0.0, 0.0]] and report.distill_loss == [0.0, 0.0]
    assert torch.equal(hypergradient[0], hypergradient[1])


def test_divergence_is_named(network, transfer, problem):
    learners, train, valid, _ = problem(2)
    learners[1].v[0] = float("nan")
    with pytest.raises(Diverged, match="the loss of learner 1 in pass v_train is nan: the search diverged"):
        method_of(transfer).step(learners, train, valid, lr=LR, phase="search", seed=3)


def test_sgd_equals_torch(network):
    weights = torch.randn(9, dtype=torch.float64)
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=3e-4)
    buffer = torch.zeros_like(weights)
    for scale in (1.0, 30.0, 0.1):
        grad = scale * torch.randn(9, dtype=torch.float64)
        parameter.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 5.0)
        optimizer.step()
        weights, buffer, coefficient = SGD(0.9, 3e-4, 5.0).update(weights, buffer, grad, 0.1)
        torch.testing.assert_close(weights, parameter.detach(), rtol=1e-12, atol=1e-12)
        assert coefficient.item() == pytest.approx(min(1.0, 5.0 / (grad.norm().item() + 1e-6)))
