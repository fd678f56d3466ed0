"""Grids of searches and evaluations on a cluster or this machine: `pamkd sweep FILE.yaml`."""

from pamkd.sweep.command import SweepConfig, sweep

__all__ = ["SweepConfig", "sweep"]
