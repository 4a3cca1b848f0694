"""Where figures come from: machine, versions and commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_machine", "loaded_distributions", "revision"]

_REPOSITORY = Path(__file__).resolve().parents[2]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor and GPU, as plain JSON values."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_mib": properties.total_memory // 2**20,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def loaded_distributions() -> dict[str, str]:
    """Name and version of every installed distribution of which this process has loaded a module, and of Python."""
    of_module = packages_distributions()
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    names = {name for top in tops for name in of_module.get(top, ())}
    return {"python": platform.python_version(), **{name: version(name) for name in sorted(names, key=str.lower)}}


def revision() -> str:
    """The commit, with ``+`` if files differ from it; ``unknown`` outside a checkout."""
    if not (_REPOSITORY / ".git").exists():
        # An installed package can lie in the checkout of another project.
        return os.environ.get("TCL_ANNOTATE_COMMIT", "unknown")
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TCL_ANNOTATE_COMMIT", "unknown")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
