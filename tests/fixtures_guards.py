"""Fixtures: tiny random checkpoints of other people's classifiers, in the file formats of the real ones."""

import pytest

GUARD_TEMPLATE = (
    "{{ bos_token }}USER: Task: check the last message for unsafe content.\n\n"
    "<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Theirs.\nS2: Also theirs.\n<END UNSAFE CONTENT CATEGORIES>\n\n"
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}\nASSISTANT:"
)
"""As Llama Guard's: categories of its own, then the conversation."""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def tokenizer(*special, **named):
    """Byte-level BPE with `special` after padding, start and end, and with the words of verdicts as tokens."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from judge.standins.tokenizer import train_byte_bpe

    core = train_byte_bpe(["safe", "unsafe", "Yes", "No"] * 9, 300, ("<pad>", "<s>", "</s>", *special))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )


def build_shieldgemma():
    """Gemma 3 with a SigLIP tower behind the class of ShieldGemma 2; four tokens an image."""
    import transformers as t

    tokens = tokenizer("<img>", "<boi>", "<eoi>", image_token="<img>", boi_token="<boi>", eoi_token="<eoi>")
    text = {**TEXT, "vocab_size": len(tokens), "head_dim": 8, "sliding_window": 4096}
    config = t.ShieldGemma2Config(
        text_config=t.Gemma3TextConfig(**text),
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=4,
        eoi_token_index=5,
        image_token_index=3,
        yes_token_index=tokens.convert_tokens_to_ids("Yes"),
        no_token_index=tokens.convert_tokens_to_ids("No"),
        initializer_range=0.25,
    )
    template = (
        "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<boi>{% else %} Policy: {{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %} Does the image violate it?"
    )
    images = t.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = t.ShieldGemma2Processor(images, tokens, chat_template=template, image_seq_length=4)
    return t.ShieldGemma2ForImageClassification(config), processor


def build_llama_guard_3():
    """Mllama: images enter by cross-attention, in at most four tiles."""
    import transformers as t

    tokens = tokenizer("<|image|>")
    text = {**TEXT, "vocab_size": len(tokens), "cross_attention_layers": [1]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    config = t.MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 32,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        text_config=text,
        image_token_index=3,
    )
    images = t.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4)
    template = GUARD_TEMPLATE.replace("IMAGE", "<|image|>")
    return t.MllamaForConditionalGeneration(config), t.MllamaProcessor(images, tokens, chat_template=template)


def build_llama_guard_4():
    """Llama 4: experts in every second layer, images as tokens, tiles of 16 x 16."""
    import transformers as t

    from judge.rivals.llama4_images import Llama4ImagesPil

    marks = (
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    )
    tokens = tokenizer(*marks)
    text = {
        **TEXT,
        "vocab_size": len(tokens),
        "head_dim": 8,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 4096,
    }
    config = t.Llama4Config(
        text_config=text,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "initializer_range": 0.25,
        },
        image_token_index=tokens.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokens.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<|image_end|>"),
    )
    processor = t.Llama4Processor(
        Llama4ImagesPil({"height": 16, "width": 16}, max_patches=4),
        tokens,
        patch_size=4,
        chat_template=GUARD_TEMPLATE.replace("IMAGE", "<|image|>"),
    )
    return t.Llama4ForConditionalGeneration(config), processor


def build_instructblip():
    """A BLIP tower, a Q-Former with a tokenizer of its own, and a Llama."""
    import transformers as t

    tokens = tokenizer("<image>")
    text = {**TEXT, "vocab_size": len(tokens)}
    config = t.InstructBlipConfig(
        vision_config=VISION,
        qformer_config={
            "vocab_size": len(tokens),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        text_config=t.LlamaConfig(**text).to_dict(),
        num_query_tokens=4,
        image_token_index=3,
    )
    images = t.BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = t.InstructBlipProcessor(images, tokens, tokenizer(), num_query_tokens=4)
    return t.InstructBlipForConditionalGeneration(config), processor


RIVALS = {
    "shieldgemma": build_shieldgemma,
    "llama_guard_3": build_llama_guard_3,
    "llama_guard_4": build_llama_guard_4,
    "instructblip": build_instructblip,
}


@pytest.fixture(scope="session")
def rival_folder(tmp_path_factory):
    """`rival_folder(name)` -> a folder in the hub's layout, saved once a session."""
    import torch

    saved = {}

    def make(name):
        if name not in saved:
            torch.manual_seed(0)
            model, processor = RIVALS[name]()
            # Gates and projections that begin at zero would keep the image out.
            for weight in model.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.5)
            saved[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(saved[name])
            processor.save_pretrained(saved[name])
        return saved[name]

    return make
