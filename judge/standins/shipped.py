"""The tiny checkpoints inside the package, by name."""

from importlib.resources import files
from pathlib import Path

SHIPPED = ("tiny-llava", "tiny-clip")
"""Names of bases inside the package."""


def base_path(name_or_path: str) -> str:
    """The folder of a shipped checkpoint; any other name is returned as it is."""
    if name_or_path in SHIPPED and not Path(name_or_path).exists():
        return str(files("judge") / "checkpoints" / name_or_path)
    return name_or_path
