"""Every transfer against its formula over single images, and inside PAMKD against double backward."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from pamkd.methods.pamkd import Pamkd
from pamkd.spaces.supernet import Output
from pamkd.transfer import TRANSFERS
from pamkd.trilevel.passes import Batch

N, C, D, P, K = 9, 4, 5, 7, 3
OPTIONS = {"grs": {"group_size": 3, "pairs": 6}, "ts": {"pairs": 6, "epsilon": 0.05}, "ps": {"pairs": 6}, "l2w": {"encoder": 5}}


def made(seed):
    random = torch.Generator().manual_seed(seed)
    output = Output(*(torch.randn(N, width, generator=random, dtype=torch.float64).requires_grad_() for width in (C, D)))
    return output, torch.randn(P, generator=random, dtype=torch.float64).requires_grad_()


@pytest.fixture
def scene():
    """scene(name) -> transfer, context, K teachers and a student, each (output, weights)."""

    def make(name):
        transfer = TRANSFERS[name](**OPTIONS.get(name, {}))
        batch = Batch(torch.zeros(N, 1, 8, 8), torch.zeros(N, dtype=torch.int64))
        return transfer, transfer.draw(batch, 7), [made(seed) for seed in range(K)], made(99)

    return make


def cos(a, b):
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.sqrt(sum(x * x for x in a.tolist())) / math.sqrt(sum(y * y for y in b.tolist()))


def pl(teacher, student, context):
    p, q = (pair[0].logits.softmax(1) for pair in (teacher, student))
    return sum(a * math.log(a / b) for a, b in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)) / N


def ts(teacher, student, context):
    total = 0.0
    for x, y, z in context.tolist():
        deltas = [cos(e[x], e[y]) - cos(e[z], e[y]) for e in (teacher[0].embedding, student[0].embedding)]
        total += max(0.0, 0.05 - deltas[0] * deltas[1])
    return total / len(context)


def ps(teacher, student, context):
    first, second = ([cos(e[x], e[y]) for x, y in context.tolist()] for e in (teacher[0].embedding, student[0].embedding))
    threshold = sorted(first)[(len(first) - 1) // 2]
    total = 0.0
    for c, own in zip(first, second, strict=True):
        alike = 1 / (1 + math.exp(-(own - threshold) / 0.1))
        total -= math.log(alike if c >= threshold else 1 - alike)
    return total / len(context)


def l2w(teacher, student, context):
    return sum((a - b) ** 2 for a, b in zip(teacher[1].tolist()[:5], student[1].tolist()[:5], strict=True)) / 10


def l2e(teacher, student, context):
    pairs = zip(teacher[0].embedding.flatten().tolist(), student[0].embedding.flatten().tolist(), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) / N / D


FORMULAS = {"pl": pl, "ts": ts, "ps": ps, "l2w": l2w, "l2e": l2e}


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_is_its_formula(scene, name):
    transfer, context, teachers, student = scene(name)
    published = torch.stack([transfer.publish(*teacher, context) for teacher in teachers])
    found = transfer.loss(published, *student, context)
    assert found.tolist() == pytest.approx([FORMULAS[name](teacher, student, context) for teacher in teachers])


@pytest.mark.parametrize("name", TRANSFERS)
def test_gradients_reach_student_and_teachers(scene, name):
    transfer, context, teachers, student = scene(name)
    published = torch.stack([transfer.publish(*teacher, context) for teacher in teachers])
    loss = transfer.loss(published, *student, context)
    for who in (student, teachers[0]):
        leaves = [who[0].logits, who[0].embedding, who[1]]
        grads = torch.autograd.grad(loss[0], leaves, allow_unused=True, retain_graph=True)
        used = [grad is not None and grad.norm().item() > 0 for grad in grads]
        assert used == [name == "pl", name in ("grs", "ts", "ps", "l2e"), name == "l2w"]


@pytest.mark.parametrize("name", [name for name in TRANSFERS if name != "grs"])
def test_learners_that_agree_have_nothing_to_learn(scene, name):
    transfer, context, teachers, _ = scene(name)
    published = transfer.publish(*teachers[0], context)[None]
    loss = transfer.loss(published, *teachers[0], context).item()
    if name in ("pl", "l2w", "l2e"):
        assert abs(loss) < 1e-12
    else:  # a margin and a soft label remain; reversing the student's judgement costs more
        reverse = Output(teachers[0][0].logits, teachers[0][0].embedding.flip(0))
        assert loss < transfer.loss(published, reverse, teachers[0][1], context).item()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", [name for name in TRANSFERS if name != "grs"])
def test_hypergradient_inside_pamkd(network, problem, name, count):
    options = {"l2w": {"encoder": 30}, "ts": {"epsilon": 5.0}}.get(name, {})
    learners, train, valid, _ = problem(count)
    found = {}
    for how in ({"fd_step": 1e-5}, {"exact": True}, {"order": "first"}):
        method = Pamkd(transfer=TRANSFERS[name](**options), weight=2.0, **how)
        _, grads = method.step(copy.deepcopy(learners), train, valid, lr=0.2, phase="search", seed=3)
        found[next(iter(how))] = torch.stack(grads)
    assert (found["exact"] - found["order"]).norm() > 1e-3 * found["exact"].norm()
    assert (found["fd_step"] - found["exact"]).norm() < 1e-6 * found["exact"].norm()
