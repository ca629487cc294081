"""Where the numbers of a report come from: command, seed, commit, day, versions, machine; for its footer."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError
from judge.runs.folder import RunDir

_SHOWN = ("torch", "transformers", "peft")
"""Packages whose versions stand in the footer; environment.json has all of them."""


def origin_of(run: RunDir) -> dict[str, str]:
    """Name -> text, of what the run folder knows."""
    place, options = _environment(run), _config(run)
    machine = place.get("machine") or {}
    packages = [
        ("Arbiter", place.get("arbiter")),
        *((name, (place.get("packages") or {}).get(name)) for name in _SHOWN),
    ]
    found = {
        "command": command_line(place.get("command") or []),
        "seed": str(options.get("seed", "")),
        "commit": _commit(place.get("git")),
        "started": str(run.manifest.get("created", "")),
        "base": _name(run.manifest.get("base")),
        "teacher": _name(run.manifest.get("teacher")),
        "encoder": _name(run.manifest.get("encoder")),
        "taxonomy": _taxonomy(run.manifest.get("taxonomy")),
        "versions": ", ".join(f"{name} {version}" for name, version in packages if version),
        "machine": ", ".join(map(str, filter(None, [machine.get("cpu"), *machine.get("gpus", ())]))),
    }
    return {name: text for name, text in found.items() if text}


def command_line(words: list[str]) -> str:
    """`sys.argv` as it can be typed again."""
    if not words:
        return ""
    program, *rest = words
    if program.endswith(".py"):
        return shlex.join(["python", program, *rest])
    # An installed command is found by its name.
    return shlex.join([Path(program).name, *rest])


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "unknown, as this was no checkout" if git is None else ""
    return f"{git['commit']}{', with changes that are in no commit' if git.get('dirty') else ''}"


def _taxonomy(about: Any) -> str:
    return f"{about['name']}, {about['hash'][:16]}" if isinstance(about, Mapping) else ""


def _name(about: Any) -> str:
    return about if isinstance(about, str) else ""


def _environment(run: RunDir) -> dict[str, Any]:
    try:
        return run.environment
    except CheckpointError:  # a run that was made without a recipe
        return {"git": {}}


def _config(run: RunDir) -> dict[str, Any]:
    try:
        return run.config
    except CheckpointError:
        return {}
