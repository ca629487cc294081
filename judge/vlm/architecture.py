"""The sizes of a base, counted on torch's meta device: no weights are read and no memory is taken.

Of a folder or a hub id its config.json is read. For popular bases the numbers of that file are in known_models.yaml, so
that nothing is asked of a network.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from judge.errors import CheckpointError, ConfigError, first_line
from judge.runs.references import HUB
from judge.standins.shipped import SHIPPED, base_path
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

KNOWN = Path(__file__).with_name("known_models.yaml")
CHARACTERS_PER_TOKEN = 4.0
"""Of English prose, for bases whose tokenizer is not here; most reach 4 to 4.7, so policies are rather shorter."""
SAMPLE_SIZE = 1024, 1024
"""Width and height of the image whose tokens are counted."""
_LAYER = re.compile(r".*\b(?:language|text)_model\.layers\.\d+\.")


@dataclass(frozen=True)
class Architecture:
    """What of a base its memory depends on; counts of numbers, not of bytes."""

    name: str
    family: str
    """`model_type` of its config.json."""
    parameters: int
    """All, tied ones once."""
    in_layers: int
    """Those of linear layers in the language model's blocks, which QLoRA holds in 4 bits."""
    adapted: int
    """Inputs and outputs of all layers that LoRA adapts by default, summed: rank r adds r times as many parameters."""
    adapted_inputs: int
    """Their inputs, of one block: what LoRA keeps of each token for its gradients."""
    layers: int
    width: int
    queries: int
    """Numbers of all query heads of a token."""
    keys: int
    """Numbers of all key heads of a token; values have as many."""
    inner: int
    """Width between the two halves of an MLP."""
    normed: int
    """Numbers that the norms of one block see of a token."""
    vocabulary: int
    context: int
    tower_width: int
    tower_inner: int
    image_tokens: int
    """Of one image in the text."""
    image_patches: int
    """Patches of it that the tower sees."""
    tokens_of_image: str = "an image of 1024 x 1024 pixels"


@dataclass(frozen=True)
class KnownModel:
    """A popular base, from known_models.yaml."""

    id: str
    name: str
    licence: str
    published: float
    """Parameters as published; exact if `exact`, else rounded."""
    exact: bool
    image_tokens: int
    image_patches: int
    config: dict[str, Any]
    unverified: str = ""
    recipes: tuple[str, ...] = ()
    """YAMLs of recipes/configs/ that are for it."""

    @property
    def family(self) -> str:
        """Its `model_type`."""
        return str(self.config["model_type"])


@cache
def known_models() -> dict[str, KnownModel]:
    """Popular bases by hub id."""
    found = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))["models"]
    return {
        hub: KnownModel(
            hub,
            about["name"],
            about["licence"],
            float(about["published"]),
            about["source"] == "safetensors",
            about["image"]["tokens"],
            about["image"]["patches"],
            about["config"],
            about.get("unverified", ""),
            tuple(about.get("recipes", ())),
        )
        for hub, about in found.items()
    }


def find_architecture(name: str, *, image_tokens: int | None = None) -> Architecture:
    """The sizes of a known model, a folder, a shipped base, or a model on the hub.

    Args:
        name: a hub id or name of known_models.yaml, a folder with config.json, a base that ships, or
            `hf:ORGANISATION/MODEL`.
        image_tokens: of one image, where its own processor should not count them.

    Raises:
        CheckpointError: nothing of that name here, or what is there cannot be read.
        ConfigError: the tokens of an image have to be given.
    """
    known = _known(name.removeprefix(HUB))
    if known is not None and not Path(name).exists():
        found = _known_architecture(known.id)
        return found if image_tokens is None else with_image_tokens(found, image_tokens)
    if not (Path(name).is_dir() or name in SHIPPED or name.startswith(HUB)):
        close = nearest(name, {one: one for one in known_models()})
        raise CheckpointError(
            f"{name!r} is no folder here and no known model{close}. Give a folder with config.json, "
            f"{HUB}ORGANISATION/MODEL of the hub, or one of: {', '.join(known_models())}."
        )
    path = base_path(name.removeprefix(HUB))
    config = _read_config(name, path)
    if image_tokens is not None:
        return with_image_tokens(measure_config(name, config, 1, 1), image_tokens)
    tokens, patches = _count_image(name, path)
    return measure_config(name, config, tokens, patches)


def with_image_tokens(found: Architecture, tokens: int) -> Architecture:
    """The same base with images of `tokens` tokens; the tower's patches grow alike."""
    patches = round(tokens * found.image_patches / found.image_tokens)
    told = f"an image of {tokens} tokens, as given"
    return replace(found, image_tokens=tokens, image_patches=patches, tokens_of_image=told)


def policy_tokens(name: str, taxonomy: Taxonomy, template: str = "policy_first") -> tuple[int, bool]:
    """Tokens of a question under a policy, without its image, and whether the base's own tokenizer counted them."""
    from prompts.template import render

    if Path(name).is_dir() or name in SHIPPED:
        from .encode import ChatEncoder
        from .processor import load_processor

        encoder = ChatEncoder(load_processor(base_path(name), "main"), template)
        return encoder.policy_tokens(taxonomy), True
    parts = [part for message in render(taxonomy, template=template).messages for part in message["content"]]
    return round(sum(len(part.get("text", "")) for part in parts) / CHARACTERS_PER_TOKEN), False


def _known(name: str) -> KnownModel | None:
    by_name = {one.name.casefold(): one for one in known_models().values()}
    by_name |= {hub.casefold(): one for hub, one in known_models().items()}
    by_name |= {hub.partition("/")[2].casefold(): one for hub, one in known_models().items()}
    return by_name.get(name.casefold())


@cache
def _known_architecture(hub: str) -> Architecture:
    from transformers import AutoConfig

    known = known_models()[hub]
    config = AutoConfig.for_model(**known.config)
    return measure_config(known.name, config, known.image_tokens, known.image_patches)


def _read_config(name: str, path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The config.json of {name!r} could not be read: {first_line(error)} Without a network, give a folder that "
            f"holds it, or one of: {', '.join(known_models())}."
        ) from error


def _count_image(name: str, path: str) -> tuple[int, int]:
    """Tokens and patches of a sample image, by the base's own processor."""
    from PIL import Image

    from .encode import ChatEncoder
    from .processor import load_processor

    try:
        encoder = ChatEncoder(load_processor(path, "main"))
        tokens, visual = encoder.encode_image(Image.new("RGB", SAMPLE_SIZE))
    except Exception as error:  # processors raise exceptions of any kind
        raise ConfigError(
            f"How many tokens an image takes could not be counted, as the processor of {name!r} could not be used "
            f"({first_line(error)}); give --image-tokens."
        ) from error
    pixels = visual["pixel_values"]
    # Qwen-VL's pixels are patches already; of other towers a patch is at least 14 x 14 pixels.
    patches = len(pixels) if pixels.ndim == 2 else pixels[..., 0, :, :].numel() // 14**2
    return len(tokens), max(patches, len(tokens))


def measure_config(name: str, config: Any, image_tokens: int, image_patches: int) -> Architecture:
    """Build the model on the meta device, and count."""
    import torch
    from torch import nn
    from transformers import AutoModelForImageTextToText

    from .adapter import LANGUAGE_TARGETS

    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{name!r} is no vision-language model that transformers builds: {first_line(error)}"
        ) from error
    linear = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = re.compile(LANGUAGE_TARGETS)
    adapted = [module for key, module in linear.items() if targets.fullmatch(key)]
    text, tower = config.get_text_config(), getattr(config, "vision_config", None)
    heads = int(text.num_attention_heads)
    head = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads) * head
    layers, width = int(text.num_hidden_layers), int(text.hidden_size)
    tower_width = int(getattr(tower, "hidden_size", 0) or 0)
    return Architecture(
        name=name,
        family=str(config.model_type),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        in_layers=sum(module.weight.numel() for key, module in linear.items() if _LAYER.match(key)),
        adapted=sum(module.in_features + module.out_features for module in adapted),
        adapted_inputs=sum(module.in_features for module in adapted) // layers,
        layers=layers,
        width=width,
        queries=heads * head,
        keys=keys,
        inner=int(text.intermediate_size),
        normed=_normed(model, heads * head, keys),
        vocabulary=int(text.vocab_size),
        context=int(getattr(text, "max_position_embeddings", None) or 0),
        tower_width=tower_width,
        tower_inner=int(getattr(tower, "intermediate_size", None) or 4 * tower_width),
        image_tokens=image_tokens,
        image_patches=image_patches,
    )


def _normed(model: Any, queries: int, keys: int) -> int:
    """Numbers that the norms of the language model's first block see of a token; norms of heads see all heads."""
    found = 0
    for key, module in model.named_modules():
        layer = _LAYER.match(key)
        if layer and ".layers.0." in layer.group() and "norm" in type(module).__name__.lower():
            last = key.rpartition(".")[2]
            found += {"q_norm": queries, "k_norm": keys}.get(last, module.weight.numel())
    return found
