"""The paper's tables and figures as commands: `pamkd reproduce table1`."""

from pamkd.reproduce.command import ReproduceConfig, reproduce

__all__ = ["ReproduceConfig", "reproduce"]
