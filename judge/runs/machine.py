"""The environment of a run: versions, processor, memory, GPUs, commit."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *(
        "torch",
        "transformers",
        "peft",
        "trl",
        "accelerate",
        "deepspeed",
        "bitsandbytes",
        "datasets",
        "evaluate",
    ),
    *("numpy", "scikit-learn", "pillow", "safetensors"),
)
"""Packages whose versions can change a number."""


def environment() -> dict[str, Any]:
    """Versions, machine and commit, as far as they are known; never fails and never imports torch."""
    return {
        "time": now(),
        # With the options as they were typed; config.yaml holds them as they were resolved.
        "command": _without_tokens(sys.argv),
        "arbiter": _version("arbiter-vision"),
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu_model(),
            "cores": _cores(),
            "memory_gib": _memory_gib(),
            "gpus": _gpus(),
        },
        "git": _git(Path(__file__).resolve().parents[2]),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> its version, of those that are installed; imports none of them."""
    return {name: version for name in packages if (version := _version(name))}


def _without_tokens(command: list[str]) -> list[str]:
    """The command without what stands behind `--hub_token` and the like: reports show it, and they are passed on."""
    shown = list(command)
    for place, word in enumerate(command):
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and name.endswith("token")):
            continue
        if equals:
            shown[place] = f"{name}=..."
        elif place + 1 < len(command):
            shown[place + 1] = "..."
    return shown


def device_name(device: str, threads: int) -> str:
    """What a benchmark runs on: the GPU, or the processor and the number of threads."""
    if device == "cpu":
        return f"{_cpu_model()}, {threads} threads"
    import torch

    return torch.cuda.get_device_name()


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files were changed; None when these sources are no checkout."""

    def ask(*arguments: str) -> str:
        ran = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return ran.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: only our own root counts.
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != folder:
            return None
        return {
            "commit": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # On many Linux systems `platform.processor()` is empty.
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cores() -> int | None:
    """Cores this process may use, which a container limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[str]:
    """Names of the GPUs, if this process has imported torch already; importing it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def now() -> str:
    """The time, in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
