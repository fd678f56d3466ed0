"""P-DARTS against the numbers of the published code: weight counts and logits of its stages, what is dropped, the genotype."""

from __future__ import annotations

import pytest
import torch

from pamkd.spaces.darts import PRIMITIVES
from pamkd.spaces.pdarts import PDarts
from pamkd.spaces.supernet import Moment

# Columns that the normal cell's edges keep, of the tables with offsets 4000 and 5000.
AFTER_FIRST = "01267 01357 23467 01346 03456 12356 01345 23457 13467 02347 13567 04567 12457 01567"
AFTER_SECOND = "067 015 246 013 034 136 345 457 146 047 137 456 147 567"


def stage(number, columns, **options):
    """The supernet of a stage in which all edges keep these columns of the primitives."""
    names = ((tuple(PRIMITIVES[o] for o in columns),) * 14,) * 2
    first = PDarts(**{"cells": 5, "dropout": (0, 0, 0)} | options)
    return first if number == 0 else first.at_stage(number, names)


STAGES = [
    (0, range(8), 1_275_834, (1.01188963, -0.09891969, -0.32966230, 0.20302138)),
    (1, range(3, 8), 2_585_146, (0.37974198, 0.14465418, 0.06924834, 0.07268754)),
    (1, range(5), 887_226, None),
    (2, (3, 4, 6), 1_861_402, (0.82893095, -0.18578378, -0.31852915, 0.06108752)),
    (2, (0, 3, 4), 1_330_746, None),
    (2, (4, 5, 7), 3_322_586, None),
]


@pytest.mark.parametrize(("number", "columns", "weights", "logits"), STAGES)
def test_stages(number, columns, weights, logits, filled, published_alphas, published_input):
    supernet = stage(number, columns)
    assert supernet.layout.count == weights and len(supernet.cells) == (5, 11, 17)[number]
    assert stage(number, columns, classes=100).layout.count == weights + 23_130
    if logits is not None:
        alphas = torch.stack([published_alphas((14, len(columns)), offset) for offset in (0, 1000)])
        found = supernet.forward(filled(supernet), alphas, published_input((2, 3, 32, 32))).logits
        assert [found.norm().item(), *found[0, :3].tolist()] == pytest.approx(logits, abs=1e-7)


@pytest.mark.parametrize(
    ("number", "edges", "options", "weights", "values"),
    [
        (1, AFTER_FIRST, {"channels": 8, "cells": 3}, 412_567, [1.04993605, -0.38426251, -0.33478195, 0.45098024]),
        (2, AFTER_SECOND, {"channels": 16, "cells": 5}, 1_851_351, [1.06016022, 0.28255844, -0.36075078, 0.52913844]),
    ],
)
def test_other_operations_on_each_edge(number, edges, options, weights, values, filled, published_alphas, published_input):
    """From the published code, run with these weights; the reduction cell has the edges in reverse order."""
    names = tuple(tuple(PRIMITIVES[int(o)] for o in columns) for columns in edges.split())
    supernet = PDarts(classes=7, dropout=(0, 0, 0), **options).at_stage(number, (names, names[::-1]))
    alphas = torch.stack([published_alphas((14, len(names[0])), offset) for offset in (0, 1000)])
    logits = supernet.forward(filled(supernet), alphas, published_input((2, 3, 32, 32))).logits
    assert supernet.layout.count == weights
    assert [logits.norm().item(), *logits[0, :3].tolist()] == pytest.approx(values, abs=2e-8)


def kept(supernet, reduction=False):
    return " ".join("".join(str(PRIMITIVES.index(name)) for name in names) for names in supernet.candidates(reduction))


def through_stages(published_alphas, more_skip=(0.0, 0.0, 0.0), skips=2):
    """The supernets of the three stages and the last architecture, of the tables with offsets 4000 to 9000."""
    supernet, supernets = PDarts(cells=5, channels=4, skips=skips), []
    for number, columns in enumerate((8, 5, 3)):
        alphas = torch.stack([published_alphas((14, columns), 4000 + 1000 * number), published_alphas((14, columns), 7000 + 1000 * number)])
        for edge, names in enumerate(supernet.candidates(False)):
            if "skip_connect" in names:
                alphas[0, edge, names.index("skip_connect")] += more_skip[number]
        supernets.append(supernet)
        if number < 2:
            supernet = supernet.next_stage(alphas, torch.Generator()).supernet
    return supernets, alphas


def test_what_is_dropped_and_the_genotype(published_alphas, genes):
    supernets, alphas = through_stages(published_alphas)
    assert kept(supernets[1]) == AFTER_FIRST
    assert kept(supernets[2]) == AFTER_SECOND
    genotype = supernets[2].genotype(alphas)
    assert genotype.normal == genes("d5:0 s5:1 s3:0 sk:2 s3:1 s5:2 d5:0 d3:4")
    assert genotype.reduce == genes("ap:0 ap:1 sk:1 s5:2 s5:0 d3:1 sk:1 mp:2")


def test_no_skips(published_alphas, genes):
    supernets, alphas = through_stages(published_alphas, skips=0)
    assert supernets[2].genotype(alphas).normal == genes("d5:0 s5:1 s3:0 mp:1 s3:1 s5:2 d5:0 d3:4")


@pytest.mark.parametrize(
    ("skips", "normal"),
    [
        (8, "sk:0 sk:1 sk:0 sk:2 sk:0 sk:1 s3:0 sk:3"),
        (5, "d5:0 mp:1 sk:0 sk:2 sk:0 sk:1 s3:0 sk:3"),
        (2, "d5:0 mp:1 sk:0 mp:1 s3:1 s5:2 s3:0 sk:3"),
        (1, "d5:0 mp:1 sk:0 mp:1 s3:1 s5:2 s3:0 d3:4"),
        (0, "d5:0 mp:1 mp:1 s3:2 s3:1 s5:2 s3:0 d3:4"),
    ],
)
def test_skip_restriction(skips, normal, published_alphas, genes):
    supernets, alphas = through_stages(published_alphas, (1.0, 1.0, 0.4), skips)
    assert kept(supernets[2]) == "037 013 234 013 034 136 345 357 136 034 137 356 237 367"
    assert supernets[2].genotype(alphas).normal == genes(normal)


def test_dropout_schedule():
    second = PDarts(cells=3, channels=2).at_stage(1, ((PRIMITIVES[:5],) * 14,) * 2)
    rates = [second.at(Moment(epoch, 25)).skip_dropout for epoch in (0, 5, 9, 10, 15, 24)]
    assert rates == pytest.approx([0.384, 0.304, 0.24, 0.4, 0.14715, 0.024324], abs=1e-5)


def test_dropout_reaches_the_skips_of_stride_1():
    supernet = PDarts(cells=3, channels=2, dropout=(0.5, 0, 0))
    random = torch.Generator().manual_seed(0)
    arguments = supernet.init_weights(random), supernet.init_alphas(random), torch.randn(2, 3, 8, 8, generator=random)
    runs = [supernet.at(Moment(0, 25, seed)).forward(*arguments).logits for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_structure_round_trip(published_alphas):
    supernets, _ = through_stages(published_alphas)
    again = supernets[0].restructured(supernets[2].structure)
    assert [kept(again, part) for part in (False, True)] == [kept(supernets[2], part) for part in (False, True)]
    assert again.layout.entries == supernets[2].layout.entries
    assert supernets[0].restructured(supernets[0].structure) is supernets[0]


def test_dropout_needs_three_numbers():
    with pytest.raises(ValueError, match="needed are 3 numbers"):
        PDarts(dropout=(0.1, 0.2))
