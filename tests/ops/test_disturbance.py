"""What is drawn inside cells: Philox by its published vectors, normal numbers by their distribution, kernels number by number."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys

import pytest
import torch

from pamkd import ops
from pamkd.reference.cell_spec import CellSpec
from pamkd.reference.disturbance import Disturbance, philox

# Random123 1.14, kat_vectors, philox4x32 10: counter, key, words
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0_A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
NOISE = CellSpec(13, (("noise",), ("noise",)), nodes=1)  # node = mix[0] noise_0 + mix[1] noise_1


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    assert tuple(int(word) for word in philox(list(counter), key)) == words


def drawn(spec: CellSpec, shape: tuple[int, ...], mix: list, seed: int = 5, dtype=torch.float64, **options) -> torch.Tensor:
    """The node of a cell of states that are 1, without weights."""
    states = [torch.ones(shape, dtype=dtype)] * 2
    return ops.disturbed_cell(*states, torch.zeros(0, dtype=dtype), torch.tensor(mix, dtype=dtype), spec, Disturbance(seed, **options))


@pytest.fixture(scope="module")
def noise():
    return drawn(NOISE, (24, 13, 33, 32), [[1], [0]])


class TestNormalNumbers:
    def test_moments(self, noise):
        """Within five standard errors: of mean, variance, skewness and kurtosis."""
        count = noise.numel()
        for power, value, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(noise.pow(power).mean().item() - value) < 5 * math.sqrt(variance / count)

    def test_kolmogorov_and_smirnov(self, noise):
        """The largest distance between the distribution functions: below the quantile of 99.9 %."""
        expected = torch.special.ndtr(noise.flatten().sort().values)
        steps = torch.arange(len(expected) + 1).double() / len(expected)
        distance = torch.maximum((expected - steps[:-1]).max(), (steps[1:] - expected).max()).item()
        assert distance < 1.95 / math.sqrt(len(expected))

    def test_uncorrelated(self, noise):
        """Neighbours in every direction, both numbers of a pair, their squares, two edges, two seeds."""
        others = [noise.roll(1, dim) for dim in range(4)] + [noise.roll(2, 3), noise.roll(4, 3)]
        others += [drawn(NOISE, noise.shape, [[0], [1]]), drawn(NOISE, noise.shape, [[1], [0]], seed=6)]
        for other in others:
            for of in (lambda x: x, lambda x: x.square() - 1):
                correlation = (of(noise) * of(other)).mean().item()
                assert abs(correlation) < 5 * (of(noise).square().mean().item() / math.sqrt(noise.numel()))

    def test_pairs_lie_on_all_angles(self, noise):
        """The direction of a pair of numbers is uniform: each of 16 parts of the circle has its share, within five standard errors."""
        flat = noise.flatten(2)
        angles = torch.atan2(flat[..., 1::2], flat[..., 0::2]).flatten()
        shares = torch.histc(angles, 16, -math.pi, math.pi) / len(angles)
        assert (shares - 1 / 16).abs().max() < 5 * math.sqrt(1 / 16 / len(angles))


SIZES = [(1, 1, 1, 2), (2, 3, 1, 7), (3, 8, 5, 5), (2, 13, 4, 9), (1, 36, 8, 8)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("reduction", [False, True])
def test_kernels_draw_the_numbers_of_the_reference(shape, reduction):
    """float64 to the last bits; float32 to rounding."""
    if reduction and shape[2] * shape[3] < 4:
        shape = (*shape[:2], 3, 3)
    spec = CellSpec(shape[1], (("noise",), ("noise",)), reduction, nodes=1)
    step = 2 if reduction else 1
    like = torch.empty(shape, dtype=torch.float64)[:, :, ::step, ::step]
    for edge, mix in enumerate(([[1], [0]], [[0], [1]])):
        exact = Disturbance(2**63 - 1, first=7).noise(edge, like)
        assert (drawn(spec, shape, mix, 2**63 - 1, first=7) - exact).abs().max() < 1e-14
        assert (drawn(spec, shape, mix, 2**63 - 1, torch.float32, first=7) - exact).abs().max() < 1e-6


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_kernels_drop_what_the_reference_drops(shape):
    skips = CellSpec(shape[1], (("skip_connect",), ("skip_connect",)), nodes=1)
    like = torch.empty(shape, dtype=torch.float64)
    for p in (1e-12, 0.3, 0.9, 1 - 2**-40):
        expected = Disturbance(3, skip_dropout=p).skip_mask(1, like)
        assert (drawn(skips, shape, [[0], [1]], 3, skip_dropout=p) - expected).abs().max() <= 1e-12 * expected.max()
        expected = Disturbance(3, drop_path=p).edge_mask(1, like).expand(shape)
        assert (drawn(skips, shape, [[0], [1]], 3, drop_path=p) - expected).abs().max() <= 1e-12 * expected.max()


def test_so_many_are_dropped():
    like = torch.empty(50, 8, 16, 16)
    of_values = Disturbance(1, skip_dropout=0.3).skip_mask(0, like)
    of_edges = torch.stack([Disturbance(1, drop_path=0.3).edge_mask(edge, like) for edge in range(40)])
    for mask in (of_values, of_edges):
        assert abs((mask == 0).double().mean().item() - 0.3) < 5 * math.sqrt(0.21 / mask.numel())
        assert mask.max().item() == pytest.approx(1 / 0.7)


def test_a_part_of_a_batch_has_its_numbers():
    disturbance = {"skip_dropout": 0.3, "drop_path": 0.2}
    spec = CellSpec(4, (("noise", "skip_connect"),) * 2, nodes=1)
    mix = [[0.2, 0.5], [0.7, 0.1]]
    whole = drawn(spec, (6, 4, 5, 5), mix, **disturbance)
    assert torch.equal(drawn(spec, (2, 4, 5, 5), mix, first=2, **disturbance), whole[2:4])


def test_every_instruction_set_draws_the_same():
    """To rounding in float32, dropout to the last bit."""
    code = (
        "import sys, torch; from pamkd import ops; from tests.ops.test_disturbance import NOISE, drawn, CellSpec;"
        "skips = CellSpec(13, (('skip_connect',),) * 2, nodes=1);"
        "of = [drawn(NOISE, (2, 13, 5, 7), [[1], [0]], dtype=torch.float32), "
        "drawn(skips, (2, 13, 5, 7), [[1], [0]], dtype=torch.float32, skip_dropout=0.4)]; torch.save(of, sys.stdout.buffer)"
    )
    results = []
    for level in ("baseline", "avx2", "avx512"):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PAMKD_CPU_LEVEL": level}, capture_output=True, check=True)
        results.append(torch.load(io.BytesIO(done.stdout)))
    for noise, kept in results[1:]:
        assert (noise - results[0][0]).abs().max() < 1e-6 and torch.equal(kept, results[0][1])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"seed": -1}, ValueError, "seed is -1; needed is 0 or more"),
        ({"seed": 2**64}, ValueError, "seed is"),
        ({"seed": 1.5}, TypeError, "seed is 1.5; needed is an integer"),
        ({"seed": 0, "first": -1}, ValueError, "first is -1"),
        ({"seed": 0, "drop_path": 1.0}, ValueError, "drop_path is 1.0; needed is 0 or more and below 1"),
        ({"seed": 0, "skip_dropout": math.nan}, ValueError, "skip_dropout is nan"),
        ({"seed": 0, "skip_dropout": "0.1"}, TypeError, "skip_dropout is '0.1'; needed is a number"),
    ],
)
def test_rejects(options, error, text):
    with pytest.raises(error, match=text):
        Disturbance(**options)


@pytest.mark.parametrize("draws", [[], [0, -1, 0, 0], [0, 0, 2**32, 0], [0, 0, 0, -1]], ids=str)
def test_the_operation_itself_rejects_wrong_draws(draws):
    states = [torch.ones(2, 13, 3, 3)] * 2
    with pytest.raises(ValueError, match="disturbed_cell: draws are"):
        torch.ops.pamkd.disturbed_cell_forward(*states, torch.zeros(0), torch.ones(2, 1), NOISE.encode(), draws, False)
