"""Each method's loss against its formula, written out over single images, in float64; who gets gradient and who does not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pamkd.methods import METHODS
from pamkd.spaces.supernet import Output
from pamkd.transfer.divergence import divergence
from pamkd.transfer.ensemble import covariance_weights, ensemble, simplex_weights
from pamkd.transfer.grs import GroupRelativeSimilarity
from pamkd.transfer.weights import EncoderWeights
from pamkd.trilevel.passes import Batch

K, N, C, D = 3, 5, 4, 6


def outputs_of(count=K, seed=0, scale=1.5):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, N, C, generator=random, dtype=torch.float64)
    embedding = torch.randn(count, N, D, generator=random, dtype=torch.float64)
    labels = torch.randint(0, C, (N,), generator=random)
    return Output(logits.requires_grad_(), embedding.requires_grad_()), Batch(torch.zeros(N, 1, 8, 8), labels)


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(teacher, student, temperature):
    """Mean over rows of sum_c p_c log(p_c / q_c), by Python's floats."""
    total = 0.0
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softened(t, temperature), softened(s, temperature), strict=True))
    return total / len(teacher)


def taught(method, outputs, batch):
    return method.loss(outputs, batch, method.targets(Output(*(part.detach() for part in outputs)), batch, seed=3))


def build(name, **options):
    return METHODS[name](**options)


def test_divergence_is_batch_mean_of_class_sums():
    outputs, _ = outputs_of()
    found = divergence(outputs.logits[0], outputs.logits[1], 2.0)
    logs = [(part / 2).log_softmax(1) for part in outputs.logits[:2]]
    assert found.item() == pytest.approx(F.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean").item())
    assert found.item() == pytest.approx(kl(outputs.logits[0], outputs.logits[1], 2.0))


def test_plain_teaches_nothing():
    outputs, batch = outputs_of()
    assert taught(build("plain"), outputs, batch).tolist() == [0.0] * K


def test_mkd():
    outputs, batch = outputs_of()
    found = taught(build("mkd", weight=0.7, temperature=1.0), outputs, batch)
    z = outputs.logits
    expected = [0.7 / (K - 1) * sum(kl(z[j], z[k], 1.0) for j in range(K) if j != k) for k in range(K)]
    assert found.tolist() == pytest.approx(expected)
    (grad,) = torch.autograd.grad(found[0], z)
    assert grad[0].norm() > 0 and grad[1:].norm() == 0, "peers are constants"
    mean = sum(z[j].softmax(1) for j in (1, 2)) / 2  # d KL(p || softmax z) / dz = softmax z - p
    torch.testing.assert_close(grad[0], 0.7 * (z[0].softmax(1) - mean).detach() / N)


@pytest.mark.parametrize("name", ["mkd", "kdcl"])
def test_identical_learners_have_nothing_to_learn(name):
    outputs, batch = outputs_of(1)
    same = Output(*(part.detach().expand(2, -1, -1).clone().requires_grad_() for part in outputs))
    if name == "mkd":
        assert taught(build(name), same, batch).abs().max() < 1e-12
    rule = {} if name == "mkd" else {"rule": "naive"}
    assert taught(build(name, **rule), same, batch).abs().max() < 1e-12


@pytest.mark.parametrize("rule", ["naive", "linear", "minlogit", "general"])
def test_kdcl(rule):
    outputs, batch = outputs_of()
    method = build("kdcl", rule=rule)
    found = taught(method, outputs, batch)
    teacher, _ = ensemble(rule, outputs.logits.detach(), batch.labels, None, 2.0)
    assert found.tolist() == pytest.approx([4 * kl(teacher, outputs.logits[k], 2.0) for k in range(K)])
    (grad,) = torch.autograd.grad(found[1], outputs.logits)
    assert grad[1].norm() > 0 and grad[[0, 2]].norm() == 0


def test_naive_takes_the_best_learner_of_each_image():
    outputs, batch = outputs_of()
    z, labels = outputs.logits.detach(), batch.labels
    teacher, shares = ensemble("naive", z, labels)
    counts = [0] * K
    for i, label in enumerate(labels.tolist()):
        best = max(range(K), key=lambda k: softened(z[k, i].tolist(), 1.0)[label])
        counts[best] += 1
        assert torch.equal(teacher[i], z[best, i])
    assert shares.tolist() == pytest.approx([count / N for count in counts])


def test_minlogit_by_its_definition_is_at_most_the_best_loss():
    outputs, batch = outputs_of()
    z, labels = outputs.logits.detach(), batch.labels
    teacher, shares = ensemble("minlogit", z, labels)
    for i, label in enumerate(labels.tolist()):
        expected = [min((z[k, i, j] - z[k, i, label]).item() for k in range(K)) for j in range(C)]
        assert teacher[i].tolist() == pytest.approx(expected) and teacher[i, label] == 0
    assert shares.sum().item() == pytest.approx(1.0)
    assert F.cross_entropy(teacher, labels) <= min(F.cross_entropy(z[k], labels) for k in range(K))


@pytest.mark.parametrize("count", [2, 3])
def test_linear_minimises_over_the_simplex(count):
    outputs, batch = outputs_of(count, seed=4)
    z, labels = outputs.logits.detach(), batch.labels

    def loss(a):
        return F.cross_entropy(torch.einsum("k,knc->nc", a, z), labels).item()

    found = simplex_weights(z, labels)
    assert found.min() >= 0 and found.sum().item() == pytest.approx(1.0)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    points = [torch.stack([a, 1 - a]) for a in grid]
    if count == 3:
        points = [torch.stack([a, b, 1 - a - b]) for a in grid for b in grid if a + b <= 1 + 1e-12]
    assert loss(found) <= min(map(loss, points)) + 1e-9


@pytest.mark.parametrize("count", [2, 3])
def test_general_minimises_the_error_of_the_mixture(count):
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(0, C, (40,), generator=random)
    z = torch.randn(count, 40, C, generator=random, dtype=torch.float64) + 3 * F.one_hot(labels, C)
    halves = [(z[:, :15], labels[:15]), (z[:, 15:], labels[15:])]
    found = covariance_weights(halves)
    errors = z.softmax(2) - F.one_hot(labels, C)
    free = torch.zeros(count, dtype=torch.float64, requires_grad=True)  # w_k = 1 / K + free_k - mean(free)
    solver = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-14, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        w = 1 / count + free - free.mean()
        loss = torch.einsum("k,knc->nc", w, errors).square().sum(1).mean()
        loss.backward()
        return loss

    solver.step(closure)
    expected = (1 / count + free - free.mean()).detach()
    assert expected.min() > 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert covariance_weights(halves[:1])[0] != found[0]


def test_general_leaves_out_who_only_harms():
    labels = torch.zeros(8, dtype=torch.int64)
    right = torch.tensor([3.0, 0.0]).expand(8, 2)
    wrong = torch.tensor([1.0, 0.0]).expand(8, 2)
    assert covariance_weights([(torch.stack([right, wrong]), labels)]).tolist() == pytest.approx([1.0, 0.0])


def test_no_first():
    """lambda max(0, l_k - l_j) sum of hinges, everything with gradient, also what the better learner is and knows."""
    outputs, batch = outputs_of()
    transfer = GroupRelativeSimilarity(epsilon=0.5, group_size=2, pairs=4)
    method = build("no-1st", weight=0.8, transfer=transfer)
    groups = transfer.draw(batch, 3)
    losses = [F.cross_entropy(z, batch.labels).item() for z in outputs.logits]
    best, worst = losses.index(min(losses)), losses.index(max(losses))

    def similarity(k, group):
        rows = F.normalize(outputs.embedding[k, group].detach(), dim=1)
        return (rows[0] @ rows[1]).item()

    def relations(j, k):
        total = 0.0
        for x, y in zip(*groups, strict=True):
            total += max(0.0, 0.5 - (similarity(j, x) - similarity(j, y)) * (similarity(k, x) - similarity(k, y)))
        return total

    found = taught(method, outputs, batch)
    expected = [0.8 * sum(max(0.0, losses[k] - losses[j]) * relations(j, k) for j in range(K)) for k in range(K)]
    assert found.tolist() == pytest.approx(expected) and found[best] == 0
    by_logits, by_embedding = torch.autograd.grad(found.sum(), outputs)
    assert by_embedding[best].norm() > 0
    # The better learner's loss rises along -gradient, the worse one's falls: the gap closes from both sides.
    for k, sign in ((best, 1), (worst, -1)):
        (rise,) = torch.autograd.grad(F.cross_entropy(outputs.logits[k], batch.labels), outputs.logits)
        assert sign * (-by_logits[k] * rise[k]).sum() > 0


def test_no_first_refuses_a_transfer_of_weights():
    with pytest.raises(ValueError, match="cannot use the transfer l2w"):
        build("no-1st", transfer=EncoderWeights())
