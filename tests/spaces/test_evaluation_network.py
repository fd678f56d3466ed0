"""The evaluation network against the numbers of the published code: counts, logits, operations, parameter names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pamkd.spaces.evaluation_network import EvaluationNetwork, FactorizedReduce, ReluConvNorm, multiply_adds, operation
from pamkd.spaces.genotype import PUBLISHED, Genotype, named

NAMES = (
    "DARTS_V1 DARTS_V2 PDARTS PC_DARTS_cifar PC_DARTS_image PRDARTS DrNAS_cifar10 DrNAS_imagenet "
    "cifar10_s0_0 cifar10_s1_0 cifar10_s2_0 cifar100_s0_0 NASNet AmoebaNet"
).split()
CIFAR10 = (3169414, 3349342, 3433798, 3634678, 3721510, 3444814, 4099294, 4048750, 3454318, 2629630, 4058902, 3368998, 3830950, 3145078)
CIFAR10_AUX = (3645840, 3825768, 3910224, 4111104, 4197936, 3921240, 4575720, 4525176, 3930744, 3106056, 4535328, 3845424, 4288944, 3603072)
CIFAR100 = (3221344, 3401272, 3485728, 3686608, 3773440, 3496744, 4151224, 4100680, 3506248, 2681560, 4110832, 3420928, 3895840, 3184048)
IMAGENET = (4510432, 4718752, 4944352, 5270560, 5342464, 4981312, 5738464, 5726368, 4860256, 3885472, 5639200, 4790368, 5564320, 4627360)
IMAGENET_AUX = (5771208, 5979528, 6205128, 6531336, 6603240, 6242088, 6999240, 6987144, 6121032, 5146248, 6899976, 6051144, 6800520, 5863560)
IMAGENET_MACS = (
    505864704,
    529911552,
    542819328,
    571137408,
    581627328,
    543374400,
    633832320,
    624405504,
    546074496,
    433724160,
    625252224,
    535782144,
    604031616,
    526746624,
)
SMALL = (232890, 246106, 292026, 335738, 327546, 297690, 360410, 346650, 265626, 193242, 322810, 274490, 333946, 326330)


def build(name, **options):
    with torch.device("meta"):
        return EvaluationNetwork(named(name), **options)


def everything(network):
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("i", range(len(NAMES)), ids=NAMES)
def test_parameter_counts(i):
    network = build(NAMES[i], auxiliary=True)
    assert (network.num_parameters, everything(network)) == (CIFAR10[i], CIFAR10_AUX[i])
    assert build(NAMES[i], classes=100).num_parameters == CIFAR100[i]
    assert build(NAMES[i], channels=16, cells=8).num_parameters == SMALL[i]


@pytest.mark.parametrize("i", range(len(NAMES)), ids=NAMES)
def test_imagenet_counts(i):
    network = build(NAMES[i], channels=48, cells=14, classes=1000, stem="imagenet", auxiliary=True)
    assert (network.num_parameters, everything(network)) == (IMAGENET[i], IMAGENET_AUX[i])
    assert multiply_adds(network, (224, 224)) == IMAGENET_MACS[i]


def test_auxiliary_norm_of_other_papers():
    options = {"channels": 48, "cells": 14, "classes": 1000, "stem": "imagenet", "auxiliary": True}
    assert everything(build("DARTS_V2", **options, auxiliary_norm=True)) == 5_979_528 + 1_536


@pytest.fixture
def filled(published_weight):
    """filled(module) -> the module in float64 with weights by the published rule, biases 0, BatchNorm 1 and 0."""

    def fill(module):
        module.to_empty(device="cpu").double()
        with torch.no_grad():
            for name, value in module.named_parameters():
                if value.dim() > 1:
                    value.copy_(published_weight(value.shape))
                else:
                    value.fill_(1.0 if name.endswith("weight") else 0.0)
            for part in module.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.reset_running_stats()
        return module

    return fill


@pytest.mark.parametrize(
    ("name", "main", "auxiliary"),
    [
        ("DARTS_V1", (0.52052303, 0.03361885, 0.14253368, -0.14485370), (3.23661340, -1.10332214, -0.27917552, -0.90098546)),
        ("DARTS_V2", (0.47335530, 0.11931525, 0.00128690, -0.06292306), (3.59527700, -1.24175858, -0.03502237, -0.61477866)),
        ("PRDARTS", (0.43289526, 0.02358878, -0.19400214, 0.11393407), (3.12357600, -1.12962383, -0.45081632, -0.72681955)),
        ("cifar10_s0_0", (0.31852303, 0.03492192, -0.07061087, -0.10192524), (3.63476944, -0.68010244, -0.85552734, -1.28270954)),
    ],
)
def test_logits(filled, published_input, name, main, auxiliary):
    output = filled(build(name, auxiliary=True))(published_input((2, 3, 32, 32)))
    for logits, expected in zip(output, (main, auxiliary), strict=True):
        assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(expected, abs=1e-7)


def test_imagenet_logits(filled, published_input):
    network = filled(build("DARTS_V2", channels=48, cells=14, classes=1000, stem="imagenet", auxiliary=True))
    output = network(published_input((2, 3, 224, 224)))
    main, auxiliary = (6.12979012, -0.14107568, 0.08144933, 0.06833134), (8.20939342, -0.27752643, -0.03356078, -0.30472647)
    for logits, expected in zip(output, (main, auxiliary), strict=True):
        assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(expected, abs=1e-7)


# operation: the first three values and the L2 norm with fresh running statistics, at stride 1, then at stride 2
OPERATIONS = {
    "max_pool_3x3": ((0.75889328, 0.75889328, 0.36561265, 18.30530202), (0.75889328, 0.36561265, 0.85177866, 9.14231641)),
    "avg_pool_3x3": ((-0.36314229, -0.25658762, -0.35474308, 4.89476123), (-0.36314229, -0.35474308, -0.01581028, 2.45500167)),
    "skip_connect": (None, (0.76384973, 1.36324518, -1.00147896, 5.41031237)),
    "sep_conv_3x3": ((0.54041956, -0.19025409, 1.15288143, 7.29498473), (-0.48321499, 0.87497617, -0.88814949, 2.90434304)),
    "sep_conv_5x5": ((1.32979895, -0.37603771, 1.05682713, 5.15955129), (0.98828977, 0.24811863, -0.17123622, 1.55543888)),
    "sep_conv_7x7": ((-0.27628289, 0.49356983, -0.51656439, 5.93493027), (-1.05152533, 2.10366003, 0.55723000, 1.71597028)),
    "dil_conv_3x3": ((1.31278530, -0.35739041, 0.84873399, 9.21455244), (1.57793115, 1.02304698, -0.30571593, 4.14446333)),
    "dil_conv_5x5": ((-0.38873471, 0.06705813, -0.81353797, 6.59812239), (-0.38374562, -0.83841145, -0.85154374, 3.11667733)),
    "conv_7x1_1x7": ((0.42814238, 0.47831529, -0.55902185, 7.45659453), (0.35146830, -0.49057734, 1.04158318, 3.63308793)),
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(filled, published_input, name, stride):
    x, expected = published_input((2, 4, 8, 8)), OPERATIONS[name][stride - 1]
    op = filled(operation(name, 4, stride))
    fresh = op.eval()(x)
    if expected is None:
        assert torch.equal(fresh, x)
        return
    assert fresh.norm().item() == pytest.approx(expected[3], abs=1e-7)
    assert op.train()(x).flatten()[:3].tolist() == pytest.approx(expected[:3], abs=1e-7)


def test_preprocessing(filled, published_input):
    x = published_input((2, 4, 8, 8))
    y = filled(FactorizedReduce(4, 8))(x)
    assert y.shape == (2, 8, 4, 4) and y.flatten()[:3].tolist() == pytest.approx([0.76384973, 1.36324518, -1.00147896], abs=1e-7)
    assert filled(ReluConvNorm(4, 8))(x).flatten()[:3].tolist() == pytest.approx([0.80447408, -0.57445512, 1.43470264], abs=1e-7)


@pytest.mark.parametrize(
    ("name", "stride", "counts"),
    [
        ("sep_conv_3x3", 1, (864, 3384, 5664)),
        ("sep_conv_5x5", 1, (1376, 4536, 7200)),
        ("sep_conv_7x7", 1, (2144, 6264, 9504)),
        ("dil_conv_3x3", 2, (432, 1692, 2832)),
        ("dil_conv_5x5", 2, (688, 2268, 3600)),
        ("skip_connect", 2, (288, 1368, 2400)),
        ("conv_7x1_1x7", 1, (3616, 18216, 32352)),
        ("max_pool_3x3", 2, (0, 0, 0)),
    ],
)
def test_operation_parameters(name, stride, counts):
    assert tuple(everything(operation(name, c, stride)) for c in (16, 36, 48)) == counts
