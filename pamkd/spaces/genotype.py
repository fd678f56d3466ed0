"""Genotypes: the discrete cells that a search derives and an evaluation trains."""

from __future__ import annotations

from typing import Any, NamedTuple

Gene = tuple[str, int]  # (operation, index of the input state)


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
            genes = {name: tuple((str(op), int(state)) for op, state in data[name]) for name in ("normal", "reduce")}
            concat = {name: tuple(int(state) for state in data[name]) for name in ("normal_concat", "reduce_concat")}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"no genotype: {error!r}; needed are normal, normal_concat, reduce and reduce_concat as `pamkd search` writes them"
            ) from error
        return cls(**genes, **concat)

    @property
    def skips(self) -> int:
        """Skip connections in both cells: the count that grows when a search collapses."""
        return sum(op == "skip_connect" for op, _ in self.normal + self.reduce)

    def describe(self) -> str:
        """Two lines for people: operation:input state, node by node."""
        cells = (("normal", self.normal), ("reduce", self.reduce))
        return "\n".join(f"{name}: " + "  ".join(f"{op}:{state}" for op, state in genes) for name, genes in cells)
