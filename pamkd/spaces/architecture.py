"""Whatever a search may find, and the network that it stands for."""

from __future__ import annotations

from typing import Any

from pamkd.spaces.evaluation_network import EvaluationNetwork
from pamkd.spaces.genotype import Genotype
from pamkd.spaces.topology import Topology, TopologyNetwork

Architecture = Genotype | Topology
Network = EvaluationNetwork | TopologyNetwork


def architecture_from_json(data: dict[str, Any]) -> Architecture:
    """Raises ValueError when it is none."""
    return Topology.from_json(data) if isinstance(data, dict) and "cell" in data else Genotype.from_json(data)


def network_of(architecture: Architecture, **options: Any) -> Network:
    """A fresh network to be trained by itself. Raises ValueError where the architecture has no such option."""
    if isinstance(architecture, Topology):
        return TopologyNetwork(architecture, **options)
    return EvaluationNetwork(architecture, **options)
