"""LLaVAs of a chosen size with random weights, for benchmarks and tests in which only shapes matter.

The layout is that of `llava-hf/llava-1.5-7b-hf`: CLIP tower, two-layer projector, Llama, 32,000 tokens (fewer
in `tiny`), a chat in which the system text comes first and an image stands before the text of its turn.
"""

from dataclasses import dataclass
from typing import Any

from prompts.taxonomy_file import load_taxonomy
from prompts.template import render

from .tokenizer import train_byte_bpe

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
CHARACTERS_PER_TOKEN = 4.3
"""About what Llama's tokenizer reaches on English prose; merging stops there, so that policies are as long as its."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + (eos_token if message['role'] == 'assistant' else ' ') }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_TEXTS = ("digits", "everyday", "openai-moderation", "signs", "unsafebench")
"""Taxonomies that the tokenizer is made of; more of them may ship, and timings stay comparable."""


@dataclass(frozen=True)
class Shape:
    """The numbers that make up a size; (width, inner width, layers, heads) of tower and language model."""

    image: int
    patch: int
    tower: tuple[int, int, int, int]
    language: tuple[int, int, int, int]
    vocabulary: int = 32_000

    @property
    def image_tokens(self) -> int:
        """Tokens an image takes in the language model."""
        return (self.image // self.patch) ** 2


SHAPES = {
    "tiny": Shape(56, 14, (32, 64, 2, 2), (64, 160, 2, 4), vocabulary=4_000),
    "mid": Shape(336, 14, (256, 1024, 4, 4), (768, 2048, 8, 12)),
    "7b": Shape(336, 14, (1024, 4096, 24, 16), (4096, 11008, 32, 32)),
}
"""`7b` has the shape of LLaVA-1.5-7B; `mid` has the same ratio of tower to language model, a few per cent."""


def random_llava(size: str, seed: int = 0, *, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """Build a model in evaluation mode, directly on its device, and its processor.

    Args:
        size: `tiny`, `mid` or `7b`.
        seed: of the weights; the same seed on the same kind of device gives the same weights.
        device: where the model is built; `7b` takes 14 GB in bfloat16.
        dtype: name of a torch dtype.

    Raises:
        ValueError: no such size.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    if size not in SHAPES:
        raise ValueError(f"No size {size!r}; known: {', '.join(SHAPES)}.")
    processor = build_processor(SHAPES[size])
    config = _config(SHAPES[size], processor.tokenizer)
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        # Built in place: 7b in float32 on the CPU first would take 28 GB.
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    # The implementation that judges are loaded with, so that timings compare.
    model.set_attn_implementation("sdpa")
    return model.eval(), processor


def build_processor(shape: Shape) -> Any:
    """The processor of a size: its image shape, the chat, and a tokenizer as large as its vocabulary."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": shape.image}, crop_size={"height": shape.image, "width": shape.image}
        ),
        tokenizer=_tokenizer(shape.vocabulary),
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _tokenizer(vocabulary: int) -> Any:
    """Byte-level BPE over the texts of taxonomies, padded with unused tokens to the vocabulary size."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    texts = [
        part["text"]
        for name in _TEXTS
        for template in ("policy_first", "perspective")
        for message in render(load_taxonomy(name), "A photo of a dog", template=template).messages
        for part in message["content"]
        if part["type"] == "text"
    ]
    # Bisect the vocabulary size at which the texts reach `CHARACTERS_PER_TOKEN`.
    fewest, most = 300, 4000
    while most - fewest > 20:
        middle = (fewest + most) // 2
        core = train_byte_bpe(texts, middle, SPECIAL_TOKENS, unknown="<unk>")
        tokens = sum(len(core.encode(text).ids) for text in texts)
        if sum(map(len, texts)) / tokens > CHARACTERS_PER_TOKEN:
            most = middle
        else:
            fewest = middle
    data = json.loads(core.to_str())
    # In the model's vocabulary and not as added tokens, which would be searched for in every text.
    data["model"]["vocab"] |= {f"<unused{n}>": n for n in range(core.get_vocab_size(), vocabulary)}
    core = Tokenizer.from_str(json.dumps(data))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=4096,
        padding_side="left",
    )


def _config(shape: Shape, tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    def sizes(part: tuple[int, int, int, int]) -> dict[str, int]:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return dict(zip(names, part, strict=True))

    text = LlamaConfig(
        **sizes(shape.language),
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            **sizes(shape.tower),
            image_size=shape.image,
            patch_size=shape.patch,
            projection_dim=shape.tower[0],
        ),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
