"""NAS-Bench-201 against the numbers of the published code: parameter counts, multiply-adds, logits, derivation, cell strings."""

from __future__ import annotations

import pytest
import torch

from pamkd.spaces.evaluation_network import multiply_adds
from pamkd.spaces.nasbench201 import NasBench201
from pamkd.spaces.topology import OPERATIONS, Topology, TopologyNetwork, every_topology

ARCH_9930 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
SHORT = {"0": "none", "s": "skip_connect", "1": "nor_conv_1x1", "3": "nor_conv_3x3", "a": "avg_pool_3x3"}


def short(text):
    return Topology(tuple(SHORT[letter] for letter in text))


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, 1_686_106),
        ({"classes": 100}, 1_691_956),
        ({"classes": 120}, 1_693_256),
        ({"partial": 2}, 476_506),
        ({"partial": 2, "classes": 100}, 482_356),
        ({"partial": 2, "classes": 120}, 483_656),
        ({"partial": 4}, 174_106),
        ({"partial": 4, "classes": 100}, 179_956),
        ({"partial": 4, "classes": 120}, 181_256),
    ],
    ids=str,
)
def test_supernet_weights(options, weights):
    assert NasBench201(**{"cells": 5} | options).layout.count == weights


def test_what_published_variants_have_besides():
    """Biases of convolutions, which BatchNorm takes away again, or an affine BatchNorm after each: one or two numbers a channel."""
    supernet = NasBench201(cells=5)
    channels = sum(piece.shape[0] for cell in supernet.cells for piece in cell.spec.weights)
    assert supernet.layout.count + channels == 1_692_826 and supernet.layout.count + 2 * channels == 1_699_546


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"cells": 5}, [1.51950666, -0.37057717, -0.48641850, 0.13227845]),
        ({"cells": 5, "partial": 4}, [1.44036579, -0.48275966, -0.47389536, 0.02590835]),
        ({"channels": 8, "cells": 2, "classes": 7, "partial": 2}, [1.19247209, -0.22629476, -0.46428469, -0.14006493]),
        ({"channels": 8, "cells": 1, "classes": 120}, [5.53758972, -0.23925070, -0.44316856, -0.25275381]),
    ],
    ids=str,
)
def test_supernet_logits(options, values, filled, published_alphas, published_input):
    """From the published codes (partial channels: that of DrNAS), run with these weights."""
    supernet = NasBench201(**options)
    logits = supernet.forward(filled(supernet), published_alphas((1, 6, 5), 0), published_input((2, 3, 32, 32))).logits
    assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(values, abs=2e-8)


def test_genotype(published_alphas):
    expected = "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_1x1~2|"
    assert str(NasBench201(cells=1, channels=2).genotype(published_alphas((1, 6, 5), 0))) == expected


def test_none_may_win():
    alphas = torch.zeros(1, 6, 5)
    alphas[..., 0] = 1.0
    assert NasBench201(cells=1, channels=2).genotype(alphas) == short("000000")


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (16, 16)])
@pytest.mark.parametrize("partial", [1, 2])
def test_any_image_size_and_the_twin(size, partial):
    supernet = NasBench201(cells=1, channels=4, classes=5, image_channels=1, partial=partial)
    random = torch.Generator().manual_seed(0)
    weights = supernet.init_weights(random).double().requires_grad_()
    alphas = supernet.init_alphas(random).double().requires_grad_()
    images = torch.randn(3, 1, *size, generator=random, dtype=torch.float64)
    grads = []
    for network in (supernet, supernet.twice_differentiable()):
        loss = network.forward(weights, alphas, images).logits.square().sum()
        grads.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, (alphas, weights))]))
    assert (grads[0] - grads[1]).norm() / grads[1].norm() < 1e-9


# cell: parameters for 10, 100 and 120 classes; multiply-adds for 32 pixels and 10 classes, 16 pixels and 120 classes
CELLS = {
    "333333": (1_531_546, 1_537_396, 1_538_696, 220_119_680, 55_037_440),
    "111111": (241_306, 247_156, 248_456, 31_376_000, 7_851_520),
    "ssssss": (73_306, 79_156, 80_456, 7_783_040, 1_953_280),
    "aaaaaa": (73_306, 79_156, 80_456, 7_783_040, 1_953_280),
    "000000": (73_306, 79_156, 80_456, 7_783_040, 1_953_280),
    "303s0s": (559_386, 565_236, 566_536, 78_561_920, 19_648_000),
    "333s33": (1_288_506, 1_294_356, 1_295_656, 184_730_240, 46_190_080),
    "313s03": (830_426, 836_276, 837_576, 117_883_520, 29_478_400),
    "333s13": (1_073_466, 1_079_316, 1_080_616, 153_272_960, 38_325_760),
    "313s33": (1_073_466, 1_079_316, 1_080_616, 153_272_960, 38_325_760),
    "33as3s": (802_426, 808_276, 809_576, 113_951_360, 28_495_360),
}


@pytest.mark.parametrize("name", CELLS)
def test_parameters_and_multiply_adds_of_cells(name):
    *parameters, large, small = CELLS[name]
    with torch.device("meta"):
        networks = [TopologyNetwork(short(name), classes=classes) for classes in (10, 100, 120)]
    assert [network.num_parameters for network in networks] == parameters
    assert (multiply_adds(networks[0], (32, 32)), multiply_adds(networks[2], (16, 16))) == (large, small)


@pytest.fixture
def network(published_weight):
    def make(topology, **options):
        network = TopologyNetwork(topology, **options).double()
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(published_weight(value.shape) if value.dim() > 1 else torch.full_like(value, float(name.endswith("weight"))))
        return network

    return make


def test_logits_of_a_cell(network, published_input):
    logits = network(Topology.parse(ARCH_9930))(published_input((2, 3, 32, 32))).logits
    assert logits.norm().item() == pytest.approx(1.40472667, abs=1e-7)
    assert logits[0, :3].tolist() == pytest.approx([-0.42113352, -0.47786087, 0.05200356], abs=1e-7)


def test_nothing_but_none_gives_zero(network, published_input):
    assert not network(short("000000"), cells=1)(published_input((2, 3, 32, 32))).logits.any()


class TestStrings:
    def test_round_trip_of_all(self):
        cells = list(every_topology())
        assert len(set(map(str, cells))) == 5**6
        assert all(Topology.parse(str(cell)) == cell for cell in cells)

    def test_edges_are_in_order(self):
        assert Topology.parse(ARCH_9930) == short("333s33")
        assert Topology.from_json(short("333s33").to_json()) == short("333s33") and short("ss0000").skips == 2

    @pytest.mark.parametrize("text", ["", ARCH_9930[1:], ARCH_9930.replace("~2", "~0"), ARCH_9930.replace("skip_connect", "max_pool_3x3")])
    def test_no_cells(self, text):
        with pytest.raises(ValueError, match="no cell of NAS-Bench-201"):
            Topology.parse(text)


def test_operations_are_in_the_published_order():
    assert OPERATIONS == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopologyNetwork(short("333333"), auxiliary=True), "has no auxiliary head"),
        (lambda: TopologyNetwork(short("333333"), stem="imagenet"), "the cifar stem only"),
        (lambda: NasBench201(stem="imagenet"), "the cifar stem only"),
        (lambda: NasBench201(cells=0), "at least 1"),
        (lambda: TopologyNetwork(short("333333"))(torch.zeros(2, 3, 8, 8), 0.2), "drop_path is 0.2"),
    ],
)
def test_what_it_has_not(make, message):
    with pytest.raises(ValueError, match=message):
        make()
