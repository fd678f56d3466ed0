"""The facts about program, machine and command that make a run repeatable."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from pamkd.version import __version__


def manifest(device: str) -> dict[str, Any]:
    """Versions, device, threads, command and time, as they are now."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "pamkd": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "launchers": launchers(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def launchers() -> dict[str, Any]:
    """What starts a process again that has ended, each with what stays the same then: torchrun its host and process id, SLURM the job."""
    found: dict[str, Any] = {}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        found["TORCHELASTIC_RESTART_COUNT"] = [platform.node(), os.getppid()]
    if "SLURM_JOB_ID" in os.environ:
        found["SLURM_RESTART_COUNT"] = os.environ["SLURM_JOB_ID"]
    return found


def commit() -> str | None:
    """The commit of the source tree that this package is imported from, "+" where it was changed; None when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")
