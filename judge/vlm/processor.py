"""The processor of a base model for still images, on Pillow and without torchvision.

transformers' processors of newer families include a video processor, which needs torchvision; videos are not judged
here, so processors are built without it. Image processors exist for Pillow and for torchvision, and their pixels differ
a little; scores must not depend on what is installed, so Pillow's is used wherever there is one.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, MissingExtraError

_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that may name the processor's class, in the order in which transformers reads them."""


def load_processor(path: str, revision: str = "main") -> Any:
    """Load the processor of a checkpoint, for still images.

    Args:
        path: a folder or hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: it has no processor, or one that needs more than images and text.
        MissingExtraError: its image processor exists for torchvision only, which is not installed.
        OSError, ValueError, KeyError: files are missing or damaged.
    """
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.video_processing_auto import get_video_processor_config

    common = {"revision": revision, "trust_remote_code": False}
    named = _processor_class(path, revision)
    kind = without_video(named)
    settings, rest = kind.get_processor_dict(path, **common)
    # Loaded one by one instead of by the class itself, which would load its video processor too.
    parts = {"image_processor": (AutoImageProcessor, {"backend": "pil"}), "tokenizer": (AutoTokenizer, {})}
    wanted = kind.get_attributes()
    if "image_processor" not in wanted or set(wanted) - set(parts):
        raise CheckpointError(
            f"{kind.__name__} of {path!r} consists of {', '.join(wanted)}; a judge needs one image and text only."
        )
    try:
        found = [parts[name][0].from_pretrained(path, **parts[name][1], **common) for name in wanted]
    except ImportError as error:
        if "torchvision" in str(error) and find_spec("torchvision") is None:
            raise MissingExtraError(
                f"The image processor of {path!r} exists for torchvision only, which is not installed: "
                "pip install torchvision, from the same index as torch and in the matching version."
            ) from error
        raise
    if kind is named:
        return kind.from_args_and_dict(found, settings, **rest)
    processor = kind.from_args_and_dict(found, settings | {"video_processor": None}, **rest)
    # Saved with the rest, so that a merged judge can serve videos elsewhere.
    processor.video_processor = VideoSettings(get_video_processor_config(path, revision=revision))
    return processor


class VideoSettings(dict[str, Any]):
    """Settings of a video processor, readable as attributes (SmolVLM reads them for still images too)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def without_video(kind: Any) -> Any:
    """The processor class `kind`, or a subclass without its video processor if it has one."""
    _do_without_num2words(kind)
    parts = kind.get_attributes()
    stills = [name for name in parts if "video" not in name]
    if stills == parts:
        return kind

    class Stills(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return stills

        def __reduce__(self) -> Any:  # pickled for data loader workers that are spawned
            return _unpickle, (kind, self.__dict__)

    Stills.__name__ = Stills.__qualname__ = kind.__name__  # written to files as `processor_class`
    return Stills


def _do_without_num2words(kind: Any) -> None:
    """SmolVLM's processor refuses to be made without a package that spells numbers, in texts about videos only."""

    def spell(*_: Any) -> str:
        raise MissingExtraError(
            "Texts about videos need num2words, which is not installed: pip install num2words."
        )

    module = sys.modules[kind.__module__]
    if getattr(module, "num2words", spell) is None:
        module.num2words = spell  # type: ignore[attr-defined]


def _unpickle(kind: Any, state: dict[str, Any]) -> Any:
    """A class made in a function has no importable name, so it is made again."""
    processor = object.__new__(without_video(kind))
    processor.__dict__.update(state)
    return processor


def _processor_class(path: str, revision: str) -> Any:
    """The class that the checkpoint names, or the default of its model type."""
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
