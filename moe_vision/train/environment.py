# SPDX-License-Identifier: Apache-2.0
"""Where and how a run was started: versions, machine, commit and command."""

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from accelerate import Accelerator

import moe_vision
from moe_vision.train.files import write_text


def record_start(accelerator: Accelerator, path: Path, *, resumed: bool) -> None:
    """Write what `describe_environment` says; where a run goes on, add it to what was said of its earlier starts.

    Args:
        accelerator: That of the run.
        path: The file, a JSON list with an entry for each start.
        resumed: Whether the run goes on.
    """
    earlier = json.loads(path.read_text()) if resumed and path.is_file() else []
    write_text(path, json.dumps([*earlier, describe_environment(accelerator)], indent=2))


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return what it takes to know of a run's surroundings to repeat it.

    Args:
        accelerator: That of the run.

    Returns:
        Strings, but for ``threads`` and ``processes``: ``started`` (UTC), ``command`` (of paths outside the working
        directory the name alone), ``commit`` of the working directory (None outside of git; ``-dirty`` at its end says
        that files were changed), ``python``, ``moe-vision``, ``torch``, ``torchvision``, ``timm`` (versions),
        ``platform``, ``device``, ``threads`` of each process and ``processes``.

    Examples:
        >>> from accelerate import Accelerator
        >>> from moe_vision.train.environment import describe_environment
        >>> describe_environment(Accelerator(cpu=True))["processes"]
        1
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(_without_folders(argument) for argument in sys.argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "moe-vision": moe_vision.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "platform": platform.platform(),
        "device": _device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }


def _without_folders(argument: str) -> str:
    """Shorten an absolute path, or that behind ``--option=``: what lies above it is nobody's business."""
    option, sign, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    inside = path.is_relative_to(Path.cwd())
    return f"{option}{sign}{path.relative_to(Path.cwd()) if inside else path.name}"


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
