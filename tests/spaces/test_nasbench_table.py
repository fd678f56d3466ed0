"""Accuracies of NAS-Bench-201's cells: a CSV table, plain and compressed, an official API, ranks, and what is refused."""

from __future__ import annotations

import gzip

import pytest

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
        ("a,b\n1,2\n", "is no table of NAS-Bench-201"),
        (TEXT.replace("88.66", "x"), r"line 2: could not convert string to float: 'x'"),
        (TEXT + "3,|none~0|,1,2\n", "line 5: no cell of NAS-Bench-201"),
        (TEXT + f"3,{CELLS[0]},1\n", "line 5: "),
    ],
)
def test_foreign_files(text, message, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        NasBenchTable.from_csv(path)


class Api:
    """The two calls of the official packages that are used, over three cells."""

    def query_index_by_arch(self, text):
        return CELLS.index(Topology.parse(text)) if Topology.parse(text) in CELLS else -1

    def get_more_info(self, index, dataset, hp, is_random):
        assert hp == "200" and is_random is False
        return {"valid-accuracy": 50.0 + index, "test-accuracy": 60.0 + index + len(dataset) / 100}


def test_official_api():
    table = NasBenchTable.from_official(Api())
    assert table.accuracy(CELLS[1], "cifar10_valid") == 51.0 and table.accuracy(CELLS[2], "imagenet16_120_test") == 62.14
    assert table.rank(CELLS[0], "cifar100_test") == 3


def test_a_file_of_the_official_package(tmp_path):
    """A file as nats_bench writes them, of one cell with two seeds, read by the package itself."""
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
    content = {"meta_archs": [str(CELLS[0])], "arch2infos": {0: {"12": results.state_dict()}}, "evaluated_indexes": [0]}
    nats_bench.pickle_save(content, str(tmp_path / "tss.pickle"))
    said = lookup(LookupConfig(table=tmp_path / "tss.pickle.pbz2", genotype=str(CELLS[0]), epochs=12))
    found = {line.split()[0]: line.split()[1] for line in said.splitlines() if "%" in line}
    assert found == {
        "cifar10_valid": "50.50",
        "cifar10_test": "60.50",
        "cifar100_valid": "70.50",
        "cifar100_test": "71.50",
        "imagenet16_120_valid": "80.50",
        "imagenet16_120_test": "81.50",
    }


def test_unknown_cells_and_columns():
    table = NasBenchTable({"cifar10_test": {CELLS[0]: 1.0}})
    with pytest.raises(ValueError, match="has no column 'svhn'; it has cifar10_test"):
        table.accuracy(CELLS[0], "svhn")
    with pytest.raises(ValueError, match="has no cell"):
        table.accuracy(CELLS[1], "cifar10_test")


def test_there_are_15625_cells():
    assert sum(1 for _ in every_topology()) == 15_625
