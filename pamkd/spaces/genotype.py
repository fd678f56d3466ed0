"""Genotypes: the discrete cells that a search derives and an evaluation trains, and those that papers published."""

from __future__ import annotations

from typing import Any, NamedTuple

Gene = tuple[str, int]  # (operation, index of the input state)
INPUTS = 2


class Genotype(NamedTuple):
    """Two cells. Node i + 2 sums `normal[2 * i]` and `normal[2 * i + 1]`; `*_concat` lists the states that leave the cell."""

    normal: tuple[Gene, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Gene, ...]
    reduce_concat: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {name: [list(entry) if isinstance(entry, tuple) else entry for entry in value] for name, value in self._asdict().items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Genotype:
        """Raises ValueError when a field is missing or no genotype."""
        try:
            normal, reduce = (tuple((str(op), int(state)) for op, state in data[name]) for name in ("normal", "reduce"))
            ends = [tuple(int(state) for state in data[name]) for name in ("normal_concat", "reduce_concat")]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"no genotype: {error!r}; needed are normal, normal_concat, reduce and reduce_concat as `pamkd search` writes them"
            ) from error
        return cls(normal, ends[0], reduce, ends[1]).checked()

    def checked(self) -> Genotype:
        """This genotype. Raises ValueError where a node lacks an input or reads a state that does not exist yet."""
        for name, genes, concat in (("normal", self.normal, self.normal_concat), ("reduce", self.reduce, self.reduce_concat)):
            if not genes or len(genes) % 2:
                raise ValueError(f"no genotype: {name} has {len(genes)} entries; needed are two for each node")
            for i, (operation, state) in enumerate(genes):
                if not 0 <= state < INPUTS + i // 2:
                    raise ValueError(f"no genotype: entry {i} of {name} is {operation} of state {state}; needed is 0 to {i // 2 + 1}")
            if not concat or not all(0 <= state < INPUTS + len(genes) // 2 for state in concat):
                raise ValueError(f"no genotype: {name}_concat is {list(concat)}; needed are states from 0 to {len(genes) // 2 + 1}")
        return self

    @property
    def skips(self) -> int:
        """Skip connections in both cells: the count that grows when a search collapses."""
        return sum(op == "skip_connect" for op, _ in self.normal + self.reduce)

    @property
    def skip_share(self) -> float:
        """Skip connections among all operations of both cells."""
        return self.skips / len(self.normal + self.reduce)

    def describe(self) -> str:
        """Two lines for people: operation:input state, node by node."""
        cells = (("normal", self.normal), ("reduce", self.reduce))
        return "\n".join(f"{name}: " + "  ".join(f"{op}:{state}" for op, state in genes) for name, genes in cells)


def named(name: str) -> Genotype:
    """A published genotype. Raises ValueError listing the known names."""
    if name not in PUBLISHED:
        raise ValueError(f"unknown genotype {name!r}; published ones are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


_SHORT = {
    "mp": "max_pool_3x3",
    "ap": "avg_pool_3x3",
    "sk": "skip_connect",
    "s3": "sep_conv_3x3",
    "s5": "sep_conv_5x5",
    "s7": "sep_conv_7x7",
    "d3": "dil_conv_3x3",
    "d5": "dil_conv_5x5",
    "no": "noise",
    "c7": "conv_7x1_1x7",
}


def short_genes(text: str) -> tuple[Gene, ...]:
    """Genes in the short form of this file, such as `s3:0 sk:1`."""
    return tuple((_SHORT[word[:2]], int(word[3:])) for word in text.split())


def _genotype(
    normal: str, reduce: str, normal_concat: tuple[int, ...] = (2, 3, 4, 5), reduce_concat: tuple[int, ...] = (2, 3, 4, 5)
) -> Genotype:
    return Genotype(short_genes(normal), normal_concat, short_genes(reduce), reduce_concat)


_S2_BEST = _genotype("s3:1 s3:0 s3:1 s3:0 s3:1 s3:0 sk:1 s3:0", "s3:1 s3:0 s3:1 sk:2 sk:2 sk:3 sk:2 sk:3")

# Under the names of the code that published them; the cifar10_s* and cifar100_s* cells are DARTS-'s (Chu et al. 2021) for the
# spaces S0 (DARTS) to S4, the RobustDARTS_* cells two logged ones of Zela et al. 2020 (space, weight decay of the search, seed).
PUBLISHED: dict[str, Genotype] = {
    "DARTS_V1": _genotype("s3:1 s3:0 sk:0 s3:1 sk:0 s3:1 s3:0 sk:2", "mp:0 mp:1 sk:2 mp:0 mp:0 sk:2 sk:2 ap:0"),
    "DARTS_V2": _genotype("s3:0 s3:1 s3:0 s3:1 s3:1 sk:0 sk:0 d3:2", "mp:0 mp:1 sk:2 mp:1 mp:0 sk:2 sk:2 mp:1"),
    "PDARTS": _genotype("sk:0 d3:1 sk:0 s3:1 s3:1 s3:3 s3:0 d5:4", "ap:0 s5:1 s3:0 d5:2 mp:0 d3:1 d3:1 d5:3"),
    "PC_DARTS_cifar": _genotype("s3:1 sk:0 s3:0 d3:1 s5:0 s3:1 ap:0 d3:1", "s5:1 mp:0 s5:1 s5:2 s3:0 s3:3 s3:1 s3:2"),
    "PC_DARTS_image": _genotype("sk:1 s3:0 s3:0 sk:1 s3:1 s3:3 s3:1 d5:4", "s3:0 sk:1 d5:2 mp:1 s3:2 s3:1 s5:0 s3:3"),
    "PRDARTS": _genotype("sk:0 s3:1 d3:2 s3:0 d3:3 s3:1 d3:4 d3:1", "ap:0 d5:1 s3:0 d5:2 s5:1 d3:3 d5:4 d5:1"),
    "DrNAS_cifar10": _genotype("s3:0 s5:1 s3:1 s3:2 sk:0 s3:1 s3:2 d5:3", "mp:0 s5:1 d5:2 s5:1 s5:1 d5:3 sk:4 s5:1"),
    "DrNAS_imagenet": _genotype("s3:1 s3:0 s3:0 s3:1 s3:0 d3:3 sk:0 s3:1", "mp:0 s3:1 s3:0 sk:2 s3:0 s3:2 s3:3 s3:1"),
    "cifar10_s0_0": _genotype("s3:0 s5:1 s3:1 d3:2 sk:1 s3:0 sk:1 s3:0", "s3:0 mp:1 sk:2 mp:0 sk:2 sk:3 sk:2 sk:3"),
    "cifar10_s0_1": _genotype("s3:0 d5:1 s3:0 s3:1 d5:1 s3:0 sk:1 s3:0", "s3:1 mp:0 sk:2 mp:1 sk:2 sk:3 sk:2 sk:3"),
    "cifar10_s0_2": _genotype("s5:1 s3:0 s3:0 s3:1 sk:1 s5:0 s3:0 sk:1", "s3:1 s3:0 sk:2 mp:1 sk:2 sk:3 sk:2 sk:3"),
    "cifar10_s0_3": _genotype("s3:0 s3:1 s3:0 s3:1 s3:0 d5:1 sk:1 sk:0", "mp:0 mp:1 sk:2 s5:0 sk:3 sk:2 sk:3 sk:2"),
    "cifar10_s0_4": _genotype("s3:0 s5:1 s3:1 s3:0 sk:1 d3:0 sk:1 s5:0", "mp:0 mp:1 mp:0 sk:2 sk:2 sk:3 sk:2 sk:3"),
    "cifar10_s1_0": _genotype("sk:1 d3:0 s3:1 d3:2 sk:0 s3:1 sk:1 d3:3", "mp:0 mp:1 mp:1 mp:0 sk:2 mp:0 mp:1 sk:3"),
    "cifar10_s2_0": _S2_BEST,
    "cifar10_s3_0": _S2_BEST,
    "cifar10_s4_0": _genotype("s3:0 s3:1 s3:0 s3:1 s3:0 s3:1 s3:0 no:3", "s3:0 s3:1 s3:0 s3:1 s3:1 s3:0 s3:1 s3:0"),
    "cifar100_s0_0": _genotype("d5:0 d3:1 s3:1 d3:0 d5:0 d3:1 s3:1 d5:0", "mp:0 s5:1 sk:2 s5:0 sk:2 sk:3 sk:2 sk:3"),
    "RobustDARTS_S1_wd3e-4_1": _genotype("sk:1 d3:0 sk:2 sk:0 sk:0 sk:2 sk:2 sk:1", "mp:1 mp:0 sk:2 mp:1 sk:2 mp:0 mp:0 mp:1"),
    "RobustDARTS_S1_wd81e-4_1": _genotype("sk:0 sk:1 s3:1 d3:2 s3:2 s3:1 d3:2 mp:1", "mp:0 mp:1 mp:1 mp:0 d3:2 d5:3 mp:1 d5:2"),
    "NASNet": _genotype(
        "s5:1 s3:0 s5:0 s3:0 ap:1 sk:0 ap:0 ap:0 s3:1 sk:1", "s5:1 s7:0 mp:1 s7:0 ap:1 s5:0 sk:3 ap:2 s3:2 mp:1", (2, 3, 4, 5, 6), (4, 5, 6)
    ),
    "AmoebaNet": _genotype(
        "ap:0 mp:1 s3:0 s5:2 s3:0 ap:3 s3:1 sk:1 sk:0 ap:1", "ap:0 s3:1 mp:0 s7:2 s7:0 ap:1 mp:0 mp:1 c7:0 s3:5", (4, 5, 6), (3, 4, 6)
    ),
}
