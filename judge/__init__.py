"""The classifiers and what serves them.

Names are imported on first use, so that `import judge` costs nothing and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classifiers import load_classifier
    from .data.examples import ExampleSet, check_splits, load_examples
    from .data.images import ImageLimits, open_image
    from .errors import CheckpointError, ConfigError, ImageError, MissingExtraError
    from .protocol import Classifier, Scores

__all__ = [
    "CheckpointError",
    "Classifier",
    "ConfigError",
    "ExampleSet",
    "ImageError",
    "ImageLimits",
    "MissingExtraError",
    "Scores",
    "check_splits",
    "load_classifier",
    "load_examples",
    "open_image",
]

_HOMES = {
    "CheckpointError": "errors",
    "Classifier": "protocol",
    "ConfigError": "errors",
    "ExampleSet": "data.examples",
    "ImageError": "errors",
    "ImageLimits": "data.images",
    "MissingExtraError": "errors",
    "Scores": "protocol",
    "check_splits": "data.examples",
    "load_classifier": "classifiers",
    "load_examples": "data.examples",
    "open_image": "data.images",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'judge' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
