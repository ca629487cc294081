"""Tiny random checkpoints of every family that a judge may have: the real architecture, processor and file format.

Weights mean nothing, everything else is what a checkpoint of the hub would bring: two layers, images of 16 x 16, a
byte-level tokenizer, and a chat template of the family's structure. So what loads, judges and trains one of these runs
the code that loads the real one. Image processors are Pillow's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from judge.errors import ConfigError
from prompts.taxonomy_file import load_taxonomy
from prompts.template import render

from .processor import VideoSettings, without_video

TURNS = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Images stand before the text of their turn, as in LLaVA-1.5; IMAGE is the family's token."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ 'IMAGE\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""InternVL's."""
UTTERANCES = (
    "{{ '<|im_start|>' }}{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ 'IMAGE' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '<end_of_utterance>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Idefics3's and SmolVLM's: the start token once, and roles in plain text."""
MODEL_TURNS = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ first if loop.first else '' }}"
    "{% for part in message['content'] %}"
    "{{ 'IMAGE' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma-3's: the system text opens the first user turn."""
GRIDS = [[16, 32], [32, 16], [32, 32]]
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_WIDE = {"initializer_range": 0.25, "initializer_factor": 10.0}
"""Initial weights: scores of random models that hardly differ would hide mistakes."""
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
_QWEN: dict[str, Any] = {
    "image_token_id": 3,
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
    "video_token_id": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_base(
    family: str = "llava", *, width: int = 32, kv_heads: int = 2, context: int = 2048, seed: int = 0
) -> tuple[Any, Any]:
    """A random model of the family with two layers, and a processor for it.

    Args:
        family: one of `RANDOM_BASES`.
        width: of the language model.
        kv_heads: key-value heads, of four.
        context: tokens that it reads.
        seed: of the weights.

    Raises:
        ConfigError: no such family.
    """
    import torch

    if family not in RANDOM_BASES:
        raise ConfigError(f"No random base {family!r}; choose one of {', '.join(RANDOM_BASES)}.")
    text = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "initializer_range": 0.25,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RANDOM_BASES[family](family, text)


def save_random_base(folder: str | Path, family: str = "llava", **options: Any) -> Path:
    """Write `random_base(family, **options)` as a folder in the hub's layout."""
    model, processor = random_base(family, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def tiny_tokenizer(
    image_token: str, more: Sequence[str] = ("<vision>", "</vision>", "<video>"), **names: str | None
) -> Any:
    """Byte-level BPE of a few hundred entries, made of the templates, so that answers are several tokens each.

    Args:
        image_token: entry 3.
        more: further tokens that cut text, from entry 4 on.
        names: `bos_token`, `eos_token` and names that the family's processor asks for, such as `boi_token`. Without a
            `bos_token` no start token is written.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    start, end = names.pop("bos_token", "<s>"), names.pop("eos_token", "</s>")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(["<pad>", start or "<s>", end, image_token, *more]))
    trainer = trainers.BpeTrainer(
        vocab_size=413 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = [
        render(load_taxonomy("digits"), "a photo", template=name) for name in ("policy_first", "perspective")
    ]
    texts = [
        part.get("text", "") for chat in chats for message in chat.messages for part in message["content"]
    ]
    core.train_from_iterator(texts + [answer.text for chat in chats for answer in chat.answers], trainer)
    if start:
        core.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token=start,
        eos_token=end,
        extra_special_tokens={"image_token": image_token, **names},
    )


def _llava(family: str, text: dict[str, Any]) -> tuple[Any, Any]:
    """LLaVA-1.5, NeXT and OneVision."""
    import transformers as t

    tokenizer = tiny_tokenizer("<image>")
    text |= {"vocab_size": len(tokenizer)}
    template = TURNS.replace("IMAGE", "<image>")
    if family == "llava_onevision":
        config = t.LlavaOnevisionConfig(
            vision_config=t.SiglipVisionConfig(**_VISION, vision_use_head=False),
            text_config=t.Qwen2Config(**text),
            image_token_index=3,
            video_token_index=6,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=GRIDS,
        )
        model = t.LlavaOnevisionForConditionalGeneration(config)
        tiles = t.LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=GRIDS
        )
        return model, without_video(t.LlavaOnevisionProcessor)(
            tiles,
            tokenizer,
            num_image_tokens=4,
            vision_feature_select_strategy="full",
            chat_template=template,
        )
    parts: dict[str, Any] = {
        "vision_config": t.CLIPVisionConfig(**_VISION, **_WIDE),
        "text_config": t.LlamaConfig(**text),
    }
    image = {"image_token_index": 3, "image_seq_length": 4}
    crop = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    named = {
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": template,
    }
    if family == "llava":
        model = t.LlavaForConditionalGeneration(t.LlavaConfig(**parts, **image))
        return model, t.LlavaProcessor(t.CLIPImageProcessorPil(**crop), tokenizer, **named)
    grids = {"image_grid_pinpoints": GRIDS}
    model = t.LlavaNextForConditionalGeneration(t.LlavaNextConfig(**parts, **image, **grids))
    return model, t.LlavaNextProcessor(t.LlavaNextImageProcessorPil(**crop, **grids), tokenizer, **named)


def _qwen(family: str, text: dict[str, Any]) -> tuple[Any, Any]:
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""
    import transformers as t

    tokenizer = tiny_tokenizer("<|image_pad|>")
    width = text["hidden_size"]
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text |= {"vocab_size": len(tokenizer), "rope_parameters": rope}
    tower = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    outer = {"hidden_size": 32, "out_hidden_size": width, "intermediate_size": 64}
    if family == "qwen2_vl":
        tower |= {"embed_dim": 32, "hidden_size": width, "mlp_ratio": 2}
        kinds = t.Qwen2VLConfig, t.Qwen2VLForConditionalGeneration
    elif family == "qwen3_vl":
        tower |= outer | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text["head_dim"] = width // 4
        rope["mrope_interleaved"] = True
        kinds = t.Qwen3VLConfig, t.Qwen3VLForConditionalGeneration
    else:
        tower |= outer | {"window_size": 16, "fullatt_block_indexes": [1]}
        kinds = t.Qwen2_5_VLConfig, t.Qwen2_5_VLForConditionalGeneration
    model = kinds[1](kinds[0](vision_config=tower, text_config=text, **_QWEN))
    grid = t.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    kind = without_video(t.Qwen3VLProcessor if family == "qwen3_vl" else t.Qwen2VLProcessor)
    return model, kind(grid, tokenizer, chat_template=TURNS.replace("IMAGE", "<|image_pad|>"))


def _internvl(_: str, text: dict[str, Any]) -> tuple[Any, Any]:
    """InternVL in transformers' own format (the -hf checkpoints): tiles in a row between <img> and </img>."""
    import transformers as t

    image = "<IMG_CONTEXT>"
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    tokenizer = tiny_tokenizer(
        image,
        [*marks.values(), "<|im_start|>"],
        bos_token=None,
        eos_token="<|im_end|>",
        context_image_token=image,
        **marks,
    )
    config = t.InternVLConfig(
        vision_config=_VISION | {"patch_size": 4, "initializer_range": 0.25},
        text_config={"model_type": "qwen2", **text, "vocab_size": len(tokenizer)},
        image_token_id=3,
        image_seq_length=4,
    )
    # As on the hub, tiles are asked for by the processor, not by the image processor's own settings.
    pixels = t.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, min_patches=1, max_patches=4)
    processor = without_video(t.InternVLProcessor)(
        pixels, tokenizer, image_seq_length=4, chat_template=CHATML.replace("IMAGE", image)
    )
    return t.InternVLForConditionalGeneration(config), processor


def _idefics3(family: str, text: dict[str, Any]) -> tuple[Any, Any]:
    """Idefics3 and SmolVLM: marks for rows and columns of tiles, then the whole image."""
    import transformers as t

    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *_TILES]
    tokenizer = tiny_tokenizer("<image>", marks, bos_token="<|im_start|>", eos_token="<end_of_utterance>")
    text |= {"vocab_size": len(tokenizer), "model_type": "llama"}
    vision = _VISION | {"patch_size": 4, "initializer_range": 0.25}
    shared = {"vision_config": vision, "text_config": text, "image_token_id": 3, "scale_factor": 2}
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    named = {"image_seq_len": 4, "chat_template": UTTERANCES.replace("IMAGE", "<image>")}
    if family == "idefics3":
        model = t.Idefics3ForConditionalGeneration(t.Idefics3Config(**shared))
        return model, t.Idefics3Processor(t.Idefics3ImageProcessorPil(**sizes), tokenizer, **named)
    model = t.SmolVLMForConditionalGeneration(t.SmolVLMConfig(**shared))
    pixels = t.SmolVLMImageProcessorPil(**sizes)
    processor = without_video(t.SmolVLMProcessor)(pixels, tokenizer, None, **named)
    settings = {"video_processor_type": "SmolVLMVideoProcessor", "num_frames": 8, "fps": 1}
    processor.video_processor = VideoSettings(settings)
    return model, processor


def _gemma3(_: str, text: dict[str, Any]) -> tuple[Any, Any]:
    """Gemma-3: a layer with a sliding window of 24 tokens and one without; an image's tokens see each other."""
    import torch
    import transformers as t
    from tokenizers import AddedToken

    image = "<image_soft_token>"
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tiny_tokenizer(
        image,
        [*marks.values(), "<start_of_turn>", "<end_of_turn>"],
        bos_token="<bos>",
        eos_token="<eos>",
        **marks,
    )
    # Runs of empty lines are added tokens too, and the longest that fits is taken.
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in range(2, 6)])
    text |= {
        "vocab_size": len(tokenizer),
        "head_dim": text["hidden_size"] // 4,
        "query_pre_attn_scalar": text["hidden_size"] // 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 24,
    }
    config = t.Gemma3Config(
        vision_config=_VISION | {"patch_size": 4, "vision_use_head": False},
        text_config=text,
        image_token_id=3,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        mm_tokens_per_image=4,
    )
    model = t.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(
        model.model.multi_modal_projector.mm_input_projection_weight
    )  # zeros of a new model
    pixels = t.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    template = MODEL_TURNS.replace("IMAGE", marks["boi_token"])
    return model, t.Gemma3Processor(pixels, tokenizer, image_seq_length=4, chat_template=template)


RANDOM_BASES: dict[str, Callable[[str, dict[str, Any]], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava,
    "llava_onevision": _llava,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}
"""What builds each family, by `model_type`."""
