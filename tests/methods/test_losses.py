"""Each method's loss against its formula, written out over single images, in float64; who gets gradient and who does not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pamkd.methods import METHODS
from pamkd.methods.afd import Adam, judge_layout, judgement
from pamkd.methods.nes import forward_selection
from pamkd.methods.ramp import ramp
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
    constants = type(outputs)(*(part.detach() for part in outputs))
    return method.loss(outputs, batch, method.targets(constants, batch, seed=3))


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


@pytest.mark.parametrize(
    ("name", "options"), [("mkd", {}), ("afd", {}), *(("kdcl", {"rule": rule}) for rule in ("naive", "linear", "minlogit", "general"))]
)
def test_identical_learners_have_nothing_to_learn(name, options):
    outputs, batch = outputs_of(1)
    same = Output(*(part.detach().expand(2, -1, -1).clone().requires_grad_() for part in outputs))
    assert taught(build(name, **options), same, batch).abs().max() < 1e-12
    assert covariance_weights([(same.logits, batch.labels)]).tolist() == pytest.approx([0.5, 0.5]), "a singular covariance"


@pytest.mark.parametrize("name", ["mkd", "kdcl", "okddip", "afd", "nes"])
def test_a_learner_far_ahead_of_all_others(name):
    """Certain of every label, by logits at which softmax is 0 or 1 in float32: nothing overflows, and it has the least to learn."""
    outputs, batch = outputs_of()
    logits = outputs.logits.detach().float()
    logits[0] = 200 * F.one_hot(batch.labels, C)
    ahead = Output(logits.requires_grad_(), outputs.embedding.detach().float())
    method = started(name) if name == "okddip" else build(name)
    if name == "okddip":
        method.modules = method.modules.detach().float()
    found = taught(method, ahead, batch)
    (grad,) = torch.autograd.grad(found.sum() + method.objective(ahead, batch), logits)
    assert found.isfinite().all() and grad.isfinite().all()
    if name == "kdcl":
        assert found[0] < 1e-3 < found[1:].min()
        assert ensemble("naive", logits.detach(), batch.labels)[1].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["naive", "linear", "minlogit", "general"])
def test_kdcl_of_learners_that_are_certain(rule):
    """All by logits at which softmax is 0 or 1 in float32, one of them of wrong labels."""
    _, batch = outputs_of()
    right = 400.0 * F.one_hot(batch.labels, C)
    logits = torch.stack([right, right.roll(1, 1), right]).requires_grad_()
    found = taught(build("kdcl", rule=rule), Output(logits, logits), batch)
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


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


def started(name, count=K, **options):
    """A method over learners whose network has embeddings of D and stems of D."""
    method = build(name, **options)
    network = SimpleNamespace(embedding_size=D, stem_size=3, stem_width=D, encoder_size=4)
    method.start([SimpleNamespace(network=network, w=torch.zeros(7, dtype=torch.float64)) for _ in range(count)])
    return method


@pytest.mark.parametrize("leader", [True, False])
def test_okddip(leader):
    outputs, batch = outputs_of()
    method = started("okddip", leader=leader)
    with torch.no_grad():
        method.modules.mul_(4)  # far from even attention
    query, key = method.modules.detach().view(2, 1, D)
    peers = range(K - 1 if leader else K)
    found = taught(method, outputs, batch)
    for a in peers:
        targets = []
        for i in range(N):
            scores = [((query @ outputs.embedding[a, i]) @ (key @ outputs.embedding[b, i])).item() for b in peers]
            share = softened(scores, 1.0)
            targets.append(sum(share[b] * outputs.logits[b, i] for b in peers))
        assert found[a].item() == pytest.approx(9 * kl(torch.stack(targets), outputs.logits[a], 3.0))
    if leader:
        mean = outputs.logits[: K - 1].mean(0)
        assert found[-1].item() == pytest.approx(9 * kl(mean, outputs.logits[-1], 3.0))
        (grad,) = torch.autograd.grad(found[-1], outputs.logits, retain_graph=True)
        assert grad[0].norm() > 0, "peers hear from the leader's loss"
    by_logits, by_embedding, by_modules = torch.autograd.grad(found[0], [*outputs, method.modules])
    assert by_logits[1].norm() > 0 and by_embedding[1].norm() > 0 and by_modules.norm() > 0, "nothing is detached"
    assert method.flow(outputs, batch).sum(1).tolist() == pytest.approx([1.0] * K)


def test_okddip_of_a_single_peer_degenerates():
    """Two learners, one of them the leader: the peer is its own teacher, and the leader learns from it."""
    outputs, batch = outputs_of(2)
    found = taught(started("okddip", 2), outputs, batch)
    assert abs(found[0].item()) < 1e-12
    assert found[1].item() == pytest.approx(9 * kl(outputs.logits[0], outputs.logits[1], 3.0))


def test_ramp():
    assert [ramp(epoch, 4) for epoch in (0, 2, 4, 9)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0, 1.0])
    method = build("one")
    method.begin_epoch(6, 50)
    assert method._scale == pytest.approx(9 * ramp(6, 13))


def test_one():
    outputs, batch = outputs_of()
    random = torch.Generator().manual_seed(5)
    stem = torch.randn(1, N, D, generator=random, dtype=torch.float64).expand(K, -1, -1).clone().requires_grad_()
    outputs = Output(outputs.logits, stem)
    method = started("one")
    linear, bias = method.modules.detach()[: K * D].view(K, D), method.modules.detach()[K * D : K * D + K]
    hidden = stem[0].detach() @ linear.T + bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    gates = [softened([max(0.0, h) for h in row], 1.0) for row in hidden.tolist()]
    ensemble = torch.stack([sum(gates[i][k] * outputs.logits[k, i] for k in range(K)) for i in range(N)]).detach()
    together = sum(-math.log(softened(row, 1.0)[label]) for row, label in zip(ensemble.tolist(), batch.labels.tolist(), strict=True)) / N
    found = taught(method, outputs, batch)
    assert found.tolist() == pytest.approx([together / K + 9 * kl(ensemble, z, 3.0) for z in outputs.logits])
    # The gate hears of the ensemble's loss alone: without it, nothing.
    (whole,) = torch.autograd.grad(found.sum(), method.modules, retain_graph=True)
    alone = F.cross_entropy(method._ensemble(outputs), batch.labels)
    torch.testing.assert_close(whole, torch.autograd.grad(alone, method.modules)[0])


def test_afd_teaches_in_a_circle():
    outputs, batch = outputs_of()
    found = taught(build("afd"), outputs, batch)
    z = outputs.logits
    assert found.tolist() == pytest.approx([9 * kl(z[k - 1], z[k], 3.0) for k in range(K)])
    assert build("afd").flow(outputs, batch).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_nes_objective_and_forward_selection():
    outputs, batch = outputs_of(4, seed=8)
    z, labels = outputs.logits.detach(), batch.labels

    def loss(members):
        p = sum(z[k].softmax(1) for k in members) / len(members)
        return -p[torch.arange(N), labels].log().mean().item()

    assert build("nes").objective(Output(z, z), batch).item() == pytest.approx(loss(range(4)))
    chosen, losses = forward_selection(z, labels, 3)
    assert chosen[0] == min(range(4), key=lambda k: loss([k])) and len(set(chosen)) == 3
    for count in (1, 2, 3):
        assert losses[count - 1] == pytest.approx(loss(chosen[:count]))
        assert losses[count - 1] <= min(loss([*chosen[: count - 1], k]) for k in range(4) if k not in chosen[: count - 1]) + 1e-12


def test_judgement_separates_what_it_is_trained_on():
    """AFD's discriminator and its Adam against torch.optim.Adam, on maps of two learners."""
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 6, 4, 5, 5, generator=random)
    layout = judge_layout(maps[0])
    flat = 0.3 * torch.randn(layout.size, generator=random)
    ours, theirs = flat.clone(), torch.nn.Parameter(flat.clone())
    adam, optimizer = Adam.like(flat), torch.optim.Adam([theirs], 5e-2, weight_decay=0.1)
    losses = []
    for _ in range(20):
        judge = ours.requires_grad_()
        loss = ((1 - judgement(judge, layout, maps[0])).square() + judgement(judge, layout, maps[1]).square()).mean()
        losses.append(loss.item())
        (grad,) = torch.autograd.grad(loss, judge)
        ours = adam.update(judge.detach(), grad, 5e-2, 0.1)
        theirs.grad = grad
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)
    assert losses[-1] < 0.8 * losses[0]
    for size in ((1, 1), (2, 2), (3, 3), (4, 2), (1, 3)):
        few = torch.randn(3, 4, *size)
        assert judgement(torch.ones(judge_layout(few).size), judge_layout(few), few).shape == (3,)
