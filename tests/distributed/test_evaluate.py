"""Training an architecture on two processes is the training on one, with BatchNorm on the statistics of whole batches."""

from __future__ import annotations

import pytest
import torch

from pamkd.runs.evaluate import Evaluation
from pamkd.spaces.genotype import Genotype
from pamkd.spaces.topology import Topology
from tests.runs.conftest import Pictures

GENES = (("sep_conv_3x3", 0), ("skip_connect", 1), ("noise", 0), ("max_pool_3x3", 2))
SMALL = {"channels": 2, "epochs": 1, "batch_size": 8, "lr": 0.05}
CELLS = [
    (Genotype(GENES, (2, 3), GENES, (2, 3)), {"cells": 3, "auxiliary": 0.4, "drop_path": 0.5}),
    (Topology(("nor_conv_1x1",) * 6), {"cells": 1, "auxiliary": 0.0, "drop_path": 0.0}),
]


def evaluate(architecture, options):
    result = Evaluation(**SMALL | options).run(architecture, Pictures(24, seed=0), Pictures(21, seed=1))
    return result.network.state_dict(), [{name: row[name] for name in ("train_loss", "test_loss", "test_error")} for row in result.history]


@pytest.mark.parametrize(("architecture", "options"), CELLS, ids=["darts", "nasbench201"])
def test_equals_one_process(in_processes, architecture, options):
    whole, rows = in_processes(1, evaluate, architecture, options)[0]
    for state, theirs in in_processes(2, evaluate, architecture, options | {"sync_batch_norm": True}):
        assert state.keys() == whole.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        for row, other in zip(rows, theirs, strict=True):
            assert other == pytest.approx(row, rel=1e-9)


def test_processes_agree_without_synchronised_statistics(in_processes):
    one, two = in_processes(2, evaluate, *CELLS[0])
    assert all(torch.equal(value, two[0][name]) for name, value in one[0].items()) and one[1] == two[1]
