"""Fixtures: tiny models of every family, built here in the file formats of the real ones."""

import pytest

from judge.vlm.random_bases import save_random_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """`base_folder(family="llava", **options)` -> a folder in the hub's layout, saved once a session."""
    saved = {}

    def make(family="llava", **options):
        key = (family, *sorted(options.items()))
        if key not in saved:
            saved[key] = save_random_base(tmp_path_factory.mktemp(family), family, **options)
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
