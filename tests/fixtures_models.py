"""Fixtures: tiny models of every family, built here in the file formats of the real ones."""

import pytest

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GRIDS = [[16, 32], [32, 16], [32, 32]]


def tiny_tokenizer(image_token):
    """Byte-level BPE of 420 entries, trained on the templates, so that answers are several tokens each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from prompts import load_taxonomy, render

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<s>", "</s>", image_token, "<vision>", "</vision>", "<video>"],
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
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": image_token},
    )


def build_tiny(family, *, width=32, kv_heads=2, context=2048, seed=0):
    """A random model of the family with two layers, and a processor for it."""
    import torch
    import transformers as t

    from judge.vlm.processor import without_video

    torch.manual_seed(seed)
    qwen = family.startswith("qwen")
    image_token = "<|image_pad|>" if qwen else "<image>"
    tokenizer = tiny_tokenizer(image_token)
    # Wide initial weights: scores of random models that hardly differ would hide mistakes.
    text = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context,
        "initializer_range": 0.25,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "initializer_range": 0.25,
        "initializer_factor": 10.0,
    }
    chat_template = CHAT_TEMPLATE.replace("IMAGE", image_token)
    crop = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    llava = {
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": chat_template,
    }
    if family == "llava":
        config = t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**vision),
            text_config=t.LlamaConfig(**text),
            image_token_index=3,
            image_seq_length=4,
        )
        model = t.LlavaForConditionalGeneration(config)
        return model, t.LlavaProcessor(t.CLIPImageProcessorPil(**crop), tokenizer, **llava)
    if family == "llava_next":
        config = t.LlavaNextConfig(
            vision_config=t.CLIPVisionConfig(**vision),
            text_config=t.LlamaConfig(**text),
            image_token_index=3,
            image_grid_pinpoints=GRIDS,
            image_seq_length=4,
        )
        tiles = t.LlavaNextImageProcessorPil(**crop, image_grid_pinpoints=GRIDS)
        return t.LlavaNextForConditionalGeneration(config), t.LlavaNextProcessor(tiles, tokenizer, **llava)
    if family == "llava_onevision":
        siglip = {key: value for key, value in vision.items() if not key.startswith("initializer")}
        config = t.LlavaOnevisionConfig(
            vision_config=t.SiglipVisionConfig(**siglip, vision_use_head=False),
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
        processor = without_video(t.LlavaOnevisionProcessor)(
            tiles,
            tokenizer,
            num_image_tokens=4,
            vision_feature_select_strategy="full",
            chat_template=chat_template,
        )
        return model, processor
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    special = {
        "image_token_id": 3,
        "vision_start_token_id": 4,
        "vision_end_token_id": 5,
        "video_token_id": 6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tower = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        tower |= {"embed_dim": 32, "hidden_size": width, "mlp_ratio": 2}
        config = t.Qwen2VLConfig(vision_config=tower, text_config=text, **special)
        model = t.Qwen2VLForConditionalGeneration(config)
    elif family == "qwen3_vl":
        tower |= {"hidden_size": 32, "out_hidden_size": width, "intermediate_size": 64}
        tower |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text["head_dim"] = width // 4
        text["rope_parameters"]["mrope_interleaved"] = True
        config = t.Qwen3VLConfig(vision_config=tower, text_config=text, **special)
        model = t.Qwen3VLForConditionalGeneration(config)
    else:
        tower |= {"hidden_size": 32, "out_hidden_size": width, "intermediate_size": 64, "window_size": 16}
        config = t.Qwen2_5_VLConfig(
            vision_config=tower | {"fullatt_block_indexes": [1]}, text_config=text, **special
        )
        model = t.Qwen2_5_VLForConditionalGeneration(config)
    grid = t.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    kind = t.Qwen3VLProcessor if family == "qwen3_vl" else t.Qwen2VLProcessor
    return model, without_video(kind)(grid, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """`base_folder(family="llava", **options)` -> a folder in the hub's layout, saved once a session."""
    saved = {}

    def make(family="llava", **options):
        key = (family, *sorted(options.items()))
        if key not in saved:
            model, processor = build_tiny(family, **options)
            saved[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(saved[key])
            processor.save_pretrained(saved[key])
        return saved[key]

    return make


@pytest.fixture(scope="session")
def tiny_vlm(base_folder):
    """`tiny_vlm(family="llava", **options)` -> fresh model and processor, by `load_base`."""
    from judge.vlm.load import BaseOptions, load_base

    def make(family="llava", **options):
        return load_base(BaseOptions(model_name_or_path=str(base_folder(family, **options))))

    return make


def caption_tokenizer(special, template):
    """Byte-level BPE over a few captions; `special` are (unknown, start, end, pad), `template` places them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    unknown, start, end, pad = special
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(dict.fromkeys((pad, start, unknown, end))),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["a photo of two and three", "handwritten seven on a wall"] * 3, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(token, core.token_to_id(token)) for token in dict.fromkeys((start, end))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown
    )


TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def save_tiny_encoder(folder, family, *, width=None, layers=2, **vision):
    """A random encoder of few layers in the hub's layout: contexts of 12 tokens, images of 16 x 16, patches of 8 x 8.

    As in OpenAI's CLIP, and in SigLIP, texts are padded with the token that ends them. "dual" is a CLIP's image tower
    beside a BERT, pooled as transformers does it; "mean" the same with a mean of unit length, less a centre. `width` is
    that of the joint space: 24, and 32 of a SigLIP, whose towers have it too.
    """
    import torch
    import transformers as t

    torch.manual_seed(0)
    if family == "clip":
        start, end = "<|startoftext|>", "<|endoftext|>"
        tokenizer = caption_tokenizer((end, start, end, end), f"{start} $A {end}")
        images = t.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    elif family in ("dual", "mean"):
        tokenizer = caption_tokenizer(("[UNK]", "[CLS]", "[SEP]", "[PAD]"), "[CLS] $A [SEP]")
        images = t.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    else:
        tokenizer = caption_tokenizer(("<unk>", "<s>", "</s>", "</s>"), "$A </s>")
        images = t.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    width = width or (32 if family == "siglip" else 24)
    tower = TOWER | {"num_hidden_layers": layers} | ({"hidden_size": width} if family == "siglip" else {})
    text = {key: tower[key] for key in list(TOWER)[:4]} | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "clip":
        config = t.CLIPConfig(vision_config=tower | vision, text_config=text, projection_dim=width)
        model = t.CLIPModel(config)
    elif family in ("dual", "mean"):
        pooling = {
            "mode": "mean",
            "normalize": True,
            "centre": [0.01 * (place % 7 - 3) for place in range(width)],
        }
        model = t.VisionTextDualEncoderModel(
            t.VisionTextDualEncoderConfig(
                vision_config=t.CLIPVisionConfig(**tower | vision).to_dict(),
                text_config=t.BertConfig(**text).to_dict(),
                projection_dim=width,
                text_pooling=pooling if family == "mean" else None,
            )
        )
    else:
        model = t.SiglipModel(t.SiglipConfig(vision_config=tower | vision, text_config=text))
    with torch.no_grad():  # far from their initial values, so that no wrong path gives nearly the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory):
    """`tiny_encoder_folder(family, **options)` -> `save_tiny_encoder`'s folder, saved once a session."""
    saved = {}

    def make(family, **options):
        key = (family, *sorted(options.items()))
        if key not in saved:
            saved[key] = save_tiny_encoder(tmp_path_factory.mktemp(family), family, **options)
        return saved[key]

    return make


@pytest.fixture(scope="session")
def tiny_clip_folder(tiny_encoder_folder):
    """A random CLIP: joint space 24 wide."""
    return tiny_encoder_folder("clip")


@pytest.fixture(scope="session")
def tiny_siglip_folder(tiny_encoder_folder):
    """A random SigLIP (a SigLIP 2 of fixed resolution is the same model): joint space 32 wide."""
    return tiny_encoder_folder("siglip")
