"""The evaluation network against the numbers of the published code: counts, logits, operations, parameter names."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F

from pamkd.spaces.evaluation_network import (
    EvaluationNetwork,
    FactorizedReduce,
    ReluConvNorm,
    multiply_adds,
    operation,
    pooled_to_two,
)
from pamkd.spaces.genotype import PUBLISHED, Genotype, named
from pamkd.spaces.published import load_published_network

# parameters of 36 channels and 20 cells for 10 classes, with auxiliary head, for 100 classes; of 16 channels and 8 cells
COUNTS = {
    "DARTS_V1": (3169414, 3645840, 3221344, 232890),
    "DARTS_V2": (3349342, 3825768, 3401272, 246106),
    "PDARTS": (3433798, 3910224, 3485728, 292026),
    "PC_DARTS_cifar": (3634678, 4111104, 3686608, 335738),
    "PC_DARTS_image": (3721510, 4197936, 3773440, 327546),
    "PRDARTS": (3444814, 3921240, 3496744, 297690),
    "DrNAS_cifar10": (4099294, 4575720, 4151224, 360410),
    "DrNAS_imagenet": (4048750, 4525176, 4100680, 346650),
    "cifar10_s0_0": (3454318, 3930744, 3506248, 265626),
    "cifar10_s1_0": (2629630, 3106056, 2681560, 193242),
    "cifar10_s2_0": (4058902, 4535328, 4110832, 322810),
    "cifar100_s0_0": (3368998, 3845424, 3420928, 274490),
    "NASNet": (3830950, 4288944, 3895840, 333946),
    "AmoebaNet": (3145078, 3603072, 3184048, 326330),
    "RobustDARTS_S1_wd3e-4_1": (1550062, None, None, 113946),
    "RobustDARTS_S1_wd81e-4_1": (2901358, None, None, 228058),
}
# 16 channels: 8 cells and 100 classes, 20 cells and 10 classes
SMALL = {
    "DARTS_V1": (256020, 671034),
    "DARTS_V2": (269236, 710682),
    "PDARTS": (315156, 737338),
    "PC_DARTS_cifar": (358868, 788218),
    "PC_DARTS_image": (350676, 799290),
    "PRDARTS": (320820, 735834),
    "DrNAS_cifar10": (383540, 899354),
    "DrNAS_imagenet": (369780, 864090),
    "cifar10_s0_0": (288756, 744538),
    "cifar10_s1_0": (216372, 552090),
    "cifar10_s2_0": (345940, 866682),
    "cifar100_s0_0": (297620, 734138),
    "NASNet": (362836, 843770),
    "AmoebaNet": (343700, 682938),
    "RobustDARTS_S1_wd3e-4_1": (137076, 314202),
    "RobustDARTS_S1_wd81e-4_1": (251188, 613338),
}
# 48 channels, 14 cells, 1000 classes: parameters, with auxiliary head, multiply-adds at 224x224
IMAGENET = {
    "DARTS_V1": (4510432, 5771208, 505864704),
    "DARTS_V2": (4718752, 5979528, 529911552),
    "PDARTS": (4944352, 6205128, 542819328),
    "PC_DARTS_cifar": (5270560, 6531336, 571137408),
    "PC_DARTS_image": (5342464, 6603240, 581627328),
    "PRDARTS": (4981312, 6242088, 543374400),
    "DrNAS_cifar10": (5738464, 6999240, 633832320),
    "DrNAS_imagenet": (5726368, 6987144, 624405504),
    "cifar10_s0_0": (4860256, 6121032, 546074496),
    "cifar10_s1_0": (3885472, 5146248, 433724160),
    "cifar10_s2_0": (5639200, 6899976, 625252224),
    "cifar100_s0_0": (4790368, 6051144, 535782144),
    "NASNet": (5564320, 6800520, 604031616),
    "AmoebaNet": (4627360, 5863560, 526746624),
}


def build(name, **options):
    with torch.device("meta"):
        return EvaluationNetwork(named(name), **options)


def everything(network):
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    c10, c10_auxiliary, c100, small = COUNTS[name]
    network = build(name, auxiliary=True)
    assert network.num_parameters == c10
    assert build(name, channels=16, cells=8).num_parameters == small
    assert (build(name, channels=16, cells=8, classes=100).num_parameters, build(name, channels=16).num_parameters) == SMALL[name]
    if c100 is not None:
        assert everything(network) == c10_auxiliary
        larger = build(name, classes=100, auxiliary=True)
        assert (larger.num_parameters, everything(larger)) == (c100, c100 + c10_auxiliary - c10 + 769 * 90)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_counts(name):
    parameters, with_auxiliary, macs = IMAGENET[name]
    network = build(name, channels=48, cells=14, classes=1000, stem="imagenet", auxiliary=True)
    assert (network.num_parameters, everything(network)) == (parameters, with_auxiliary)
    assert multiply_adds(network, (224, 224)) == macs


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


@pytest.mark.parametrize(
    ("name", "stem", "parameters", "main", "auxiliary"),
    [
        ("PDARTS", "cifar", 77_951, (0.44688565, -0.00166377, 0.03428569), (3.13315578, -0.29647009, -0.12466229)),
        ("PC_DARTS_cifar", "cifar", 91_871, (0.40571393, -0.05844798, 0.01735397), (3.38797735, -2.16946647, -1.03746227)),
        ("PC_DARTS_image", "imagenet", 61_415, (0.88009150, -0.21878959, 0.15850757), (0.68894595, -0.26680269, 0.01905995)),
        ("DrNAS_cifar10", "cifar", 99_711, (0.52017223, 0.14957645, 0.22728744), (2.74226113, -0.67611078, -0.21194048)),
        ("cifar10_s1_0", "cifar", 48_415, (0.58706381, -0.22736659, 0.13890034), (3.20407499, -0.33124878, 0.16588066)),
        ("RobustDARTS_S1_wd81e-4_1", "cifar", 58_863, (2.44480265, -0.96373525, -0.17942383), (3.39632890, -1.57725746, 0.08461264)),
        ("NASNet", "cifar", 93_759, (0.62425863, -0.25252281, 0.14814886), (3.11337928, -0.84526041, -0.20302392)),
        ("NASNet", "imagenet", 67_247, (0.87250676, 0.21849718, 0.13641379), (0.70555563, 0.15009398, -0.00423414)),
        ("AmoebaNet", "cifar", 89_599, (0.56726292, 0.25429916, 0.15988032), (2.78182184, -1.19466909, -0.45287518)),
        ("AmoebaNet", "imagenet", 69_599, (0.89904383, -0.11090491, 0.08299123), (1.10708455, 0.17213181, -0.31664492)),
    ],
)
def test_other_sizes(filled, published_input, name, stem, parameters, main, auxiliary):
    """From the published code, run with these weights: 8 channels, 7 cells and classes, for ImageNet 5 cells and 11 classes."""
    sizes = {"cells": 7, "classes": 7} if stem == "cifar" else {"cells": 5, "classes": 11}
    network = filled(build(name, channels=8, stem=stem, auxiliary=True, **sizes))
    assert network.num_parameters == parameters
    output = network(published_input((2, 3, 32, 32) if stem == "cifar" else (2, 3, 224, 224)))
    for logits, expected in zip(output, (main, auxiliary), strict=True):
        assert [logits.norm().item(), *logits[0, :2].tolist()] == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 5), (9, 8)])
def test_pool_to_two_is_the_adaptive_one(size):
    """PyTorch's adaptive pool has no deterministic gradient on a GPU."""
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(pooled_to_two(pooled_to_two(x, 2), 3), F.adaptive_avg_pool2d(x, 2), rtol=1e-14, atol=1e-15)


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


@pytest.mark.parametrize(
    ("make", "size"),
    [
        *((functools.partial(operation, name, 6, stride), 9) for name in ("sep_conv_3x3", "dil_conv_5x5") for stride in (1, 2)),
        (lambda: ReluConvNorm(6, 10), 32),
    ],
    ids=["sep 1", "sep 2", "dil 1", "dil 2", "pointwise"],
)
def test_training_is_that_of_the_layers(make, size):
    torch.manual_seed(0)
    layer = make().double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    twin = copy.deepcopy(layer)
    for _ in range(2):
        x = torch.randn(3, 6, size, size, dtype=torch.float64, requires_grad=True)
        y, expected = layer(x), twin.op(x)
        cotangent = torch.randn_like(y)
        found, wanted = (torch.autograd.grad(out, [x, *of.parameters()], cotangent) for out, of in ((y, layer), (expected, twin)))
        for a, b in zip((y, *found, *layer.buffers()), (expected, *wanted, *twin.buffers()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert all(norm.num_batches_tracked == 2 for norm in layer.modules() if isinstance(norm, torch.nn.BatchNorm2d))
    assert torch.equal(layer.eval()(x), layer.op(x))


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


SMALL_OPTIONS = {"channels": 4, "cells": 4, "classes": 5}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return EvaluationNetwork(named("DARTS_V2"), **SMALL_OPTIONS, auxiliary=True)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (11, 40), (32, 32)], ids=str)
def test_any_image_size(stem, image_channels, size):
    for name in ("PDARTS", "AmoebaNet", "cifar10_s4_0"):
        network = EvaluationNetwork(named(name), **SMALL_OPTIONS, image_channels=image_channels, stem=stem, auxiliary=True)
        output = network(torch.randn(3, image_channels, *size), 0.5)
        assert output.logits.shape == output.auxiliary.shape == (3, 5)
        (output.logits.sum() + output.auxiliary.sum()).backward()
        assert all(value.grad.isfinite().all() for value in network.parameters())
        plain = network.eval()(torch.randn(2, image_channels, *size))
        assert plain.logits.shape == (2, 5) and plain.auxiliary is None


@pytest.mark.parametrize("image_channels", [1, 3])
def test_states_are_channels_last(image_channels):
    network = EvaluationNetwork(named("DARTS_V2"), **SMALL_OPTIONS, image_channels=image_channels)
    seen = []
    network.cells[1].register_forward_hook(lambda cell, inputs, output: seen.append(output))
    network(torch.randn(2, image_channels, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_reductions_stand_at_a_third_and_two_thirds():
    for cells, expected in {5: [1, 3], 6: [2, 4], 8: [2, 5], 11: [3, 7], 14: [4, 9], 17: [5, 11], 20: [6, 13]}.items():
        network = build("DARTS_V2", channels=4, cells=cells)
        reduce = named("DARTS_V2").reduce
        assert [i for i, cell in enumerate(network.cells) if cell.genes == reduce] == expected


class TestDropPath:
    def test_branches_are_dropped_per_image_and_rescaled(self, small):
        cell = small.cells[0]  # its entries 5 and 6 are identities, the others convolutions
        s = torch.randn(64, 12, 8, 8)
        masks = cell.masks(s, 0.25, torch.Generator().manual_seed(1))
        values = masks.unique()
        assert values.tolist() == [0.0, pytest.approx(4 / 3)]
        assert (masks > 0).float().mean().item() == pytest.approx(0.75, abs=0.07)
        states = [cell.preprocess0(s), cell.preprocess1(s)]
        branches = []
        for i, (op, (_, state)) in enumerate(zip(cell._ops, cell.genes, strict=True)):
            y = op(states[state])
            branches.append(y if isinstance(op, torch.nn.Identity) else y * masks[i])
            if i % 2:
                states.append(branches[-2] + branches[-1])
        torch.testing.assert_close(cell(s, s, masks, None), torch.cat(states[2:], 1))

    def test_training_only_and_a_function_of_the_generator(self, small):
        images = torch.randn(4, 3, 8, 8)
        runs = [small(images, 0.5, torch.Generator().manual_seed(seed)).logits for seed in (0, 0, 1)]
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
        small.eval()
        assert torch.equal(small(images, 0.5).logits, small(images).logits)


def test_noise_follows_the_generator():
    network = EvaluationNetwork(named("cifar10_s4_0"), **SMALL_OPTIONS).eval()
    images = torch.randn(2, 3, 8, 8)
    runs = [network(images, generator=torch.Generator().manual_seed(seed)).logits for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_multiply_adds_by_hand():
    skips = Genotype((("skip_connect", 0), ("skip_connect", 1)), (2,), (("max_pool_3x3", 0), ("sep_conv_3x3", 1)), (2,))
    network = EvaluationNetwork(skips, channels=4, cells=3, classes=5, image_channels=1, auxiliary=True)
    stem = 64 * 12 * 9
    first = 64 * 2 * 12 * 4  # both preprocessings, 12 to 4 channels
    second = 64 * 12 * 8 + 64 * 4 * 8 + 16 * 2 * (8 * 9 + 8 * 8)  # a reduction from 8x8 to 4x4: 4 to 8 channels, one separable convolution
    third = 16 * 4 * 16 + 16 * 8 * 16 + 4 * 2 * (16 * 9 + 16 * 16)  # to 2x2; the state before the reduction is halved first
    assert multiply_adds(network, (8, 8)) == stem + first + second + third + 16 * 5
    assert network.training and next(network.parameters()).device.type == "cpu"


class TestPublishedNames:
    def test_names(self, small):
        names = set(small.state_dict())
        assert {
            "stem.0.weight",
            "stem.1.running_var",
            "cells.0.preprocess0.op.1.weight",
            "cells.0.preprocess1.op.2.bias",
            "cells.2.preprocess0.conv_2.weight",
            "cells.2.preprocess0.bn.weight",
            "cells.0._ops.0.op.1.weight",
            "cells.0._ops.0.op.7.running_mean",
            "cells.0._ops.7.op.3.weight",
            "auxiliary_head.features.2.weight",
            "auxiliary_head.features.6.num_batches_tracked",
            "auxiliary_head.classifier.bias",
            "classifier.weight",
        } <= names
        imagenet = set(build("AmoebaNet", stem="imagenet", auxiliary=True).state_dict())
        assert {"stem0.3.weight", "stem0.4.bias", "stem1.1.weight", "stem1.2.bias"} <= imagenet
        assert "cells.6._ops.8.3.bias" in imagenet and "auxiliary_head.features.6.weight" not in imagenet

    def test_round_trip(self, small):
        state = {f"module.{name}": value for name, value in small.state_dict().items() if not name.endswith("num_batches_tracked")}
        for auxiliary in (True, False):
            other = EvaluationNetwork(named("DARTS_V2"), **SMALL_OPTIONS, auxiliary=auxiliary)
            load_published_network(other, state)
            images = torch.randn(2, 3, 8, 8)
            assert torch.equal(other.eval()(images).logits, small.eval()(images).logits)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("classifier.bias"), "lacks classifier.bias"),
            (lambda state: state.update({"stem.0.weight": torch.zeros(1)}), "stem.0.weight has shape"),
            (lambda state: state.update({"cells.9.x.weight": torch.zeros(1)}), "has cells.9.x.weight"),
            (lambda state: state.update({"auxiliary_head.x": torch.zeros(1)}), "has auxiliary_head.x"),
        ],
    )
    def test_foreign_state_dict_is_refused(self, small, change, message):
        state = small.state_dict()
        change(state)
        before = small.classifier.weight.clone()
        with pytest.raises(ValueError, match=message):
            load_published_network(small, state)
        assert torch.equal(small.classifier.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 5}, "even number"),
        ({"cells": 2}, "at least 3"),
        ({"classes": 1}, "at least 2"),
        ({"stem": "resnet"}, "'cifar' or 'imagenet'"),
    ],
)
def test_impossible_networks(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationNetwork(named("DARTS_V2"), **options)


def test_wrong_images_are_named(small):
    for shape in ((2, 1, 8, 8), (2, 3, 7, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"this network needs \[n, 3, h, w\]"):
            small(torch.zeros(shape))


class TestGenotypes:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published_ones_are_whole(self, name):
        genotype = named(name)
        assert genotype.checked() is genotype and Genotype.from_json(genotype.to_json()) == genotype

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"unknown genotype 'DARTS_V9'; published ones are DARTS_V1, DARTS_V2"):
            named("DARTS_V9")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"normal": [["skip_connect", 0]]}, "normal has 1 entries"),
            ({"normal": []}, "normal has 0 entries"),
            ({"normal": [["skip_connect", 0], ["skip_connect", 2]]}, "entry 1 of normal is skip_connect of state 2; needed is 0 to 1"),
            ({"reduce": [["skip_connect", -1], ["skip_connect", 0]]}, "entry 0 of reduce"),
            ({"reduce_concat": [2, 6]}, r"reduce_concat is \[2, 6\]"),
            ({"normal_concat": []}, "normal_concat is"),
            ({"normal": 3}, "needed are normal, normal_concat"),
            ({"normal": [["skip_connect"], ["skip_connect", 0]]}, "needed are normal, normal_concat"),
        ],
    )
    def test_broken_ones(self, change, message):
        with pytest.raises(ValueError, match=message):
            Genotype.from_json(named("DARTS_V2").to_json() | change)

    def test_unknown_operation(self):
        genes = (("conv_9x9", 0), ("skip_connect", 1))
        with pytest.raises(ValueError, match="unknown operation 'conv_9x9'; an evaluation network has max_pool_3x3"):
            EvaluationNetwork(Genotype(genes, (2,), genes, (2,)))
