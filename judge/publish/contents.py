"""What of a run belongs into a published repository, by the run's kind: one table for pushing and for loading.

Only what is needed to load it, and only formats that hold no code: nothing pickled, no rows, no pictures.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from judge.errors import CheckpointError
from judge.runs.folder import MANIFEST, THRESHOLDS

CARD = "README.md"
MERGED = "merged"
"""The kind of a base and an adapter in one checkpoint."""
PARTS = ("student", "judge")
"""Folders of a published cascade's stages."""
_ALWAYS = (MANIFEST, "taxonomy.yaml", "measured.json", "metrics.json", THRESHOLDS, CARD)
_TEXTS = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_PROCESSOR = (
    *_TEXTS,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
_MODEL = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
_ENCODER = tuple(f"encoder/{name}" for name in (*_MODEL, *_PROCESSOR))
_ADAPTER = tuple(
    f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", CARD, *_PROCESSOR)
)
_STAGES = {
    "vlm": (*_ALWAYS, *_ADAPTER),
    MERGED: (*_ALWAYS, *_MODEL, *_PROCESSOR, "serve.md", "chat_template_vllm.jinja"),
    "student": (*_ALWAYS, "head.json", "head.safetensors", *_ENCODER),
    "linear_probe": (*_ALWAYS, "head.safetensors"),
    "prompt_learning": (*_ALWAYS, "head.safetensors"),
    "pooled_attention": (*_ALWAYS, "head.safetensors"),
}
CONTENTS = _STAGES | {
    "cascade": (
        *_ALWAYS,
        "cascade.json",
        *sorted(
            {
                f"{part}/{name}"
                for part in PARTS
                for kind in ("student", "vlm", MERGED)
                for name in _STAGES[kind]
            }
        ),
    ),
}
"""Kind of a run -> patterns of the files that belong to it; a `*` matches within one folder only."""
_REASONS = {
    "rows": "judged rows, with prompts",
    "examples": "pictures of the data",
    "lessons": "the teacher's answers to your data",
    "plots": "figures of the report",
    "report.html": "holds pictures and prompts",
    "report.md": "its numbers are in the card",
    "config.yaml": "holds paths of this machine; what matters is in the card",
    "environment.json": "about this machine; versions are in the card",
    "skipped.jsonl": "names of your files",
    "card.yaml": "what the card was filled with",
}


NEEDED = {
    "vlm": "adapter/adapter_model.safetensors",
    MERGED: "config.json",
    "student": "head.safetensors",
    "linear_probe": "head.safetensors",
    "prompt_learning": "head.safetensors",
    "pooled_attention": "head.safetensors",
    "cascade": "cascade.json",
}
"""Kind of a run -> the file without which it was not finished."""


def patterns(kind: str, source: object) -> tuple[str, ...]:
    """The files that belong to a run of a kind.

    Raises:
        CheckpointError: runs of this kind are not published; `source` names the run.
    """
    if kind not in CONTENTS:
        raise CheckpointError(
            f"{source} is a run of kind {kind!r}, which cannot be published; those that can: {', '.join(CONTENTS)}."
        )
    return CONTENTS[kind]


def belongs(name: str, wanted: Iterable[str]) -> bool:
    """Whether a file, by its path with `/` inside the run, matches one of the patterns."""
    depth = name.count("/")
    return any(depth == pattern.count("/") and fnmatchcase(name, pattern) for pattern in wanted)


def files_of(folder: Path, wanted: Iterable[str]) -> list[str]:
    """Paths, with `/`, of the files of a run's folder that match the patterns; sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if belongs(name, wanted))


def left_out(folder: Path, taken: Iterable[str]) -> list[tuple[str, str]]:
    """(name, why) of what stands in a run's folder and is not published, at its top."""
    kept = {PurePosixPath(name).parts[0] for name in taken}
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return [(name, _reason(name.rstrip("/"))) for name in names if name.rstrip("/") not in kept]


def _reason(name: str) -> str:
    if name.startswith("checkpoint-"):
        return "an intermediate checkpoint"
    return _REASONS.get(name, "not needed to load it")
