"""The processor of a base model for still images: it computes with Pillow and needs no torchvision.

transformers' processors of newer families hold a video processor as well, which wants torchvision; nothing here
judges videos, so they are built without. Image processors exist for Pillow and for torchvision, and their pixels
differ a little; a judge must not depend on what happens to be installed, so Pillow's is taken wherever there is one.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, MissingExtraError

_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where a checkpoint may name the class of its processor, in the order in which transformers looks."""


def load_processor(path: str, revision: str = "main") -> Any:
    """The processor of a checkpoint, for stills.

    Args:
        path: a folder or hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: it has no processor, or one that wants more than images and text.
        MissingExtraError: its image processor exists for torchvision alone, and that is not installed.
        OSError, ValueError, KeyError: files are missing or damaged.
    """
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.video_processing_auto import get_video_processor_config

    common = {"revision": revision, "trust_remote_code": False}
    named = _processor_class(path, revision)
    kind = without_video(named)
    settings, rest = kind.get_processor_dict(path, **common)
    parts = {"image_processor": (AutoImageProcessor, {"backend": "pil"}), "tokenizer": (AutoTokenizer, {})}
    wanted = kind.get_attributes()
    if "image_processor" not in wanted or set(wanted) - set(parts):
        raise CheckpointError(
            f"{kind.__name__} of {path!r} is made of {', '.join(wanted)}; a judge reads one image and text."
        )
    try:
        found = [parts[name][0].from_pretrained(path, **parts[name][1], **common) for name in wanted]
    except ImportError as error:
        if "torchvision" in str(error) and find_spec("torchvision") is None:
            raise MissingExtraError(
                f"The image processor of {path!r} exists for torchvision alone, which is not installed: "
                "pip install torchvision, from where torch came, in the version that fits it."
            ) from error
        raise
    if kind is named:
        return kind.from_args_and_dict(found, settings, **rest)
    processor = kind.from_args_and_dict(found, settings | {"video_processor": None}, **rest)
    # Kept to be saved with the rest: a merged judge can serve videos elsewhere.
    processor.video_processor = VideoSettings(get_video_processor_config(path, revision=revision))
    return processor


class VideoSettings(dict[str, Any]):
    """A video processor's settings in its place, readable as its attributes are (SmolVLM does for stills too)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def without_video(kind: Any) -> Any:
    """`kind`, or where its processors hold one for videos, the same class but for that."""
    parts = kind.get_attributes()
    stills = [name for name in parts if "video" not in name]
    if stills == parts:
        return kind

    class Stills(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return stills

        def __reduce__(self) -> Any:  # for data loaders that start their workers afresh
            return _revive, (kind, self.__dict__)

    Stills.__name__ = Stills.__qualname__ = kind.__name__  # saved as `processor_class`
    return Stills


def _revive(kind: Any, state: dict[str, Any]) -> Any:
    made = object.__new__(without_video(kind))
    made.__dict__.update(state)
    return made


def _processor_class(path: str, revision: str) -> Any:
    """The class that the checkpoint names, or that its kind of model has."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import cached_file

    for name in _FILES:
        file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        named = json.loads(Path(file).read_text(encoding="utf-8")).get("processor_class") if file else None
        if named and hasattr(transformers, named):
            return getattr(transformers, named)
    config = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if type(config) not in PROCESSOR_MAPPING:
        raise CheckpointError(
            f"{path!r} is a {config.model_type} and names no processor of images and text; "
            "use a vision-language checkpoint."
        )
    return PROCESSOR_MAPPING[type(config)]
