"""`--prompts TABLE.csv`: a prompt for each file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from judge.data.tables import read_table
from judge.errors import ConfigError
from prompts.printable import printable

_SHOWN = 3
"""Paths that a remark names at most."""


@dataclass
class PromptTable:
    """Prompts of files, and which of them were asked for."""

    source: Path
    prompts: dict[str, str]
    """Absolute path -> prompt."""
    listed: dict[str, str]
    """Absolute path -> as the table writes it."""
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    """Files that were asked for and have no row."""

    def prompt_of(self, path: str) -> str | None:
        """The prompt of a file; None where the table has no row for it, or an empty prompt."""
        key = _key(path)
        if key not in self.prompts:
            self.missing.append(path)
            return None
        self.used.add(key)
        return self.prompts[key] or None

    def remarks(self) -> list[str]:
        """What to tell after all files were judged: files without a row, rows without a file."""
        unused = [name for key, name in self.listed.items() if key not in self.used]
        said = []
        if self.missing:
            said.append(f"{_some(self.missing)}: no row in {self.source}, so judged without a prompt")
        if unused:
            said.append(f"{_some(unused)}: in {self.source}, but not among the images")
        return [f"arbiter: {printable(text)}" for text in said]


def read_prompt_table(path: Path) -> PromptTable:
    """Read a CSV with the columns `path` and `prompt`, and any others.

    A relative path starts at the table's folder; where nothing is there, at the working folder.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has two prompts for one file.
    """
    rows = read_table(path, ("path", "prompt"), "prompts")
    table = PromptTable(path, {}, {})
    for line, row in enumerate(rows, start=2):
        name, prompt = row["path"], row["prompt"]
        if not name or prompt is None:
            raise ConfigError(
                f"{path}, row {line}: expected a path and a prompt, got {name!r} and {prompt!r}."
            )
        beside = path.parent / name
        key = _key(beside if name != "-" and beside.exists() else name)
        if table.prompts.setdefault(key, prompt) != prompt:
            raise ConfigError(
                f"{path}, row {line}: {name!r} has another prompt in a row before; give each one."
            )
        table.listed.setdefault(key, name)
    return table


def _key(path: str | Path) -> str:
    return "-" if str(path) == "-" else os.path.abspath(path)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
