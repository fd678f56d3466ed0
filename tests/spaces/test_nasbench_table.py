"""Accuracies of NAS-Bench-201's cells: a CSV table, plain and compressed, an official API, ranks, and what is refused."""

from __future__ import annotations

import gzip
import sys
import types

import numpy as np
import pytest
import torch

from pamkd.runs.lookup import LookupConfig, lookup
from pamkd.spaces.nasbench_table import NasBenchTable
from pamkd.spaces.topology import Topology, every_topology

CELLS = [Topology((name,) * 6) for name in ("nor_conv_3x3", "nor_conv_1x1", "skip_connect")]
TEXT = "index,architecture,cifar10_valid,cifar10_test\n" + "".join(
    f"{i},{cell},{90 - i},{accuracy}\n" for i, (cell, accuracy) in enumerate(zip(CELLS, (88.66, 70.5, 70.5), strict=True))
)


@pytest.mark.parametrize("compressed", [False, True])
def test_csv(compressed, tmp_path):
    path = tmp_path / ("table.csv.gz" if compressed else "table.csv")
    path.write_bytes(gzip.compress(TEXT.encode()) if compressed else TEXT.encode())
    table = NasBenchTable.from_csv(path)
    assert table.accuracy(CELLS[0], "cifar10_test") == 88.66 and table.accuracy(CELLS[2], "cifar10_valid") == 88.0
    assert [table.rank(cell, "cifar10_test") for cell in CELLS] == [1, 2, 2]
    assert "cifar10_test            70.50 %  rank 2 of 3" in table.describe(CELLS[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "table.csv, line 1: no table of NAS-Bench-201"),
        (TEXT.replace("88.66", "x"), r"line 2: could not convert string to float: 'x'"),
        (TEXT + "3,|none~0|,1,2\n", "line 5: no cell of NAS-Bench-201"),
        (TEXT + f"3,{CELLS[0]},1\n", "line 5: 2 accuracies and a cell are needed, and there are fewer entries"),
        (TEXT + "3\n", "line 5: 2 accuracies and a cell are needed"),
        (TEXT + "3," + 200_000 * "x", "line [45]: field larger than field limit"),
        (TEXT + "3,\udcff", "line [0-5]: 'utf-8' codec can't decode"),
    ],
)
def test_foreign_files(text, message, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"table.csv, {message}" if message.startswith("line") else message):
        NasBenchTable.from_csv(path)


def test_a_compressed_file_that_is_cut_short(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-20])
    with pytest.raises(ValueError, match=r"table.csv.gz, line \d: Compressed file ended before"):
        NasBenchTable.from_csv(path)


class Api:
    """What is used of the official packages, over three cells of which two are trained; 12 epochs on one dataset, as in version 1.0."""

    evaluated_indexes = (0, 1)

    def query_index_by_arch(self, text):
        return CELLS.index(Topology.parse(text)) if Topology.parse(text) in CELLS else -1

    def get_more_info(self, index, dataset, hp, is_random):
        assert index in self.evaluated_indexes and is_random is False
        if hp != "200" and (hp, dataset) != ("12", "cifar10-valid"):
            raise KeyError(dataset)
        return {"valid-accuracy": 50.0 + index, "test-accuracy": 60.0 + index + len(dataset) / 100}


def test_official_api():
    table = NasBenchTable.from_official(Api())
    assert table.accuracy(CELLS[1], "cifar10_valid") == 51.0 and table.accuracy(CELLS[1], "imagenet16_120_test") == 61.14
    assert table.rank(CELLS[0], "cifar100_test") == 2 and "rank 2 of 2" in table.describe(CELLS[0])
    assert list(NasBenchTable.from_official(Api(), 12).columns) == ["cifar10_valid"]
    with pytest.raises(ValueError, match="epochs is 90: the table has no trainings of so many"):
        NasBenchTable.from_official(Api(), 90)


def test_a_file_of_the_older_package(tmp_path, monkeypatch):
    """It reads with PyTorch, which takes NumPy's numbers, that the file holds, only where it is told to."""

    class NASBench201API(Api):
        def __init__(self, path, verbose):
            self.file = torch.load(path, map_location="cpu")

        def get_more_info(self, *args, **options):
            return {name: value + self.file["more"] for name, value in super().get_more_info(*args, **options).items()}

    monkeypatch.setitem(sys.modules, "nas_201_api", types.ModuleType("nas_201_api"))
    monkeypatch.setattr(sys.modules["nas_201_api"], "NASBench201API", NASBench201API, raising=False)
    monkeypatch.setattr(sys.modules["nas_201_api"], "__spec__", types.SimpleNamespace())
    torch.save({"more": np.float64(0.5)}, tmp_path / "NAS-Bench-201.pth")
    said = lookup(LookupConfig(table=tmp_path / "NAS-Bench-201.pth", genotype=str(CELLS[1])))
    assert "cifar10_valid           51.50 %  rank 1 of 2" in said


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_what_nats_bench_writes(layout, tmp_path):
    """One cell with two seeds in both layouts of the benchmark, read by the package itself; of the others the folder has no file."""
    nats_bench = pytest.importorskip("nats_bench")
    results = nats_bench.ArchResults(0, str(CELLS[0]))
    sets = {
        "cifar10-valid": ["x-valid"],
        "cifar10": ["ori-test"],
        "cifar100": ["x-valid", "x-test"],
        "ImageNet16-120": ["x-valid", "x-test"],
    }
    for number, (dataset, names) in enumerate(sets.items()):
        for seed in (777, 888):
            count = nats_bench.ResultsCount(dataset, None, {0: 1.0}, {0: 1.0}, 1.0, 1.0, {"arch_str": str(CELLS[0])}, seed, 1, None)
            for place, name in enumerate(names):
                count.update_OLD_eval(name, {0: 50.0 + 10 * number + place + (seed == 888)}, {0: 1.0})
            results.update(dataset, seed, count)
    of_cell, cells = {"12": results.state_dict()}, {"meta_archs": [str(cell) for cell in CELLS]}
    table = tmp_path / ("tss.pickle.pbz2" if layout == "file" else "tss-simple")
    if layout == "file":
        nats_bench.pickle_save(cells | {"arch2infos": {0: of_cell}, "evaluated_indexes": [0]}, str(tmp_path / "tss.pickle"))
    else:
        table.mkdir()
        nats_bench.pickle_save(cells, str(table / "meta.pickle"))
        nats_bench.pickle_save(of_cell, str(table / "000000.pickle"))
    said = lookup(LookupConfig(table=table, genotype=str(CELLS[0]), epochs=12))
    found = {line.split()[0]: line.split()[1] for line in said.splitlines() if "%" in line}
    assert found == {
        "cifar10_valid": "50.50",
        "cifar10_test": "60.50",
        "cifar100_valid": "70.50",
        "cifar100_test": "71.50",
        "imagenet16_120_valid": "80.50",
        "imagenet16_120_test": "81.50",
    }
    assert "rank 1 of 1" in said


def test_unknown_cells_and_columns():
    table = NasBenchTable({"cifar10_test": {CELLS[0]: 1.0}})
    with pytest.raises(ValueError, match="has no column 'svhn'; it has cifar10_test"):
        table.accuracy(CELLS[0], "svhn")
    with pytest.raises(ValueError, match="has no cell"):
        table.accuracy(CELLS[1], "cifar10_test")


def test_there_are_15625_cells():
    assert sum(1 for _ in every_topology()) == 15_625
