"""Errors of the classifiers and what serves them; the root lives in `prompts.errors`.

ArbiterError
├── ExampleError (of `prompts.errors`)
│   └── UnusableRowsError  too many rows of a data set cannot be used (of `judge.data.sources`)
├── ImageError           an image that cannot be judged: a status from a closed set, and a reason
├── QuestionError        what score() was given has a form that it does not take: not a list of images, say
├── ConfigError          options that contradict each other, or name what does not exist
├── CheckpointError      a base model, adapter or run folder that cannot be used
├── PipelineError        a diffusion pipeline that cannot be watched or interrupted, or a detector of another one
├── DecoderError         no worker process decodes images (of `judge.intake`); no image is to blame
├── CorpusError          a corpus that cannot be built or read: a changed plan, a damaged ledger, too many failures
├── LabellingError       a labelling run that cannot start or go on: a full disk, another run in its folder
├── PicturesStoppedError pictures that a guard stopped while they were made, so that nothing is handed out
├── MissingExtraError    an optional dependency that is not installed
└── RecordsError, NotFoundError, EntryError  about what moderators store (of `judge.records.errors`)
"""

from typing import Literal

from prompts.errors import ArbiterError

ImageStatus = Literal[
    "missing",
    "unreadable",
    "not_an_image",
    "unsupported_format",
    "truncated",
    "too_large",
    "too_many_pixels",
    "too_narrow",
    "animated",
    "unknown_colours",
    "timeout",
    "out_of_memory",
    "crashed",
    "url_refused",
    "url_failed",
]
"""What `judge.data.images.open_image` can fail with, explained there; from `timeout` on what `judge.intake` can."""


class ImageError(ArbiterError, ValueError):
    """An image that could not be judged; must never be treated as safe."""

    def __init__(self, status: ImageStatus, reason: str) -> None:
        super().__init__(status, reason)
        self.status: ImageStatus = status
        """What went wrong, for machines."""
        self.reason = reason
        """What went wrong, for people, on one line."""

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class QuestionError(ArbiterError, TypeError, ValueError):
    """Images, prompts or a taxonomy in a form that `score` does not accept; the message says what to pass."""


class ConfigError(ArbiterError, ValueError):
    """Options that contradict each other or name something that does not exist."""


class CheckpointError(ArbiterError, RuntimeError):
    """A base model, adapter or run folder that is missing, damaged, or belongs to something else."""


class PipelineError(ArbiterError, ValueError):
    """A diffusion pipeline that cannot be watched or interrupted, or a detector that belongs to another one."""


class DecoderError(ArbiterError, RuntimeError):
    """The processes that decode images cannot be started, or were closed; no image is to blame."""


class CorpusError(ArbiterError, RuntimeError):
    """A corpus that cannot be built or read: a changed plan, a damaged ledger, too many failed rows, a full disk."""


class LabellingError(ArbiterError, RuntimeError):
    """A labelling run that cannot start or go on; what is labelled stays, and the same command goes on."""


class PicturesStoppedError(ArbiterError, RuntimeError):
    """A call of a diffusion pipeline that a guard ended, so that none of its pictures is handed out.

    What was seen of each picture is in `DiffusionGuard.verdicts`.
    """


class MissingExtraError(ArbiterError, ImportError):
    """An optional dependency that is not installed; the message names the extra to install."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 200 characters; its class name if it has no message."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else type(error).__name__
