"""What a page asks of a run folder that may lack it."""

from judge.errors import CheckpointError
from judge.runs.folder import RunDir
from prompts.taxonomy import Taxonomy

HARMLESS = ("digits", "signs")
"""Data sets that ship, whose pictures disturb nobody: the pair at the top of a page is not blurred."""


def stored_taxonomy(run: RunDir) -> Taxonomy | None:
    """The run's categories; None where it has none."""
    try:
        return run.taxonomy
    except CheckpointError:
        return None


def is_harmless(run: RunDir) -> bool:
    """Whether the images are of a data set that ships."""
    try:
        return run.config.get("dataset") in HARMLESS
    except CheckpointError:
        return False
