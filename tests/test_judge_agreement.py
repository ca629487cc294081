"""judge/vlm/agreement.py: a base that the judge would feed otherwise than its processor does is no judge."""

import pytest
import torch
import transformers as t
from transformers.models.smolvlm import processing_smolvlm

from judge import load_classifier
from judge.errors import CheckpointError
from judge.vlm import agreement
from judge.vlm.agreement import check_agreement
from judge.vlm.processor import without_video

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "image_token": "<image>",
    "video_token": "<video>",
}
MORE = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|python_tag|>"]
MORE += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def extended(tokenizer):
    """The tokenizer of the tiny LLaVA, with all that other families write around an image."""
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=MARKS,
    )
    made.add_tokens(MORE, special_tokens=True)
    return made


def build(family, tokenizer, template):
    """A random model of a family that writes more around an image than its tokens, and its processor."""
    tokenizer = extended(tokenizer)
    image = tokenizer.image_token_id
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    square = {"height": 16, "width": 16}
    if family == "internvl":
        config = t.InternVLConfig(
            vision_config=VISION,
            text_config={"model_type": "qwen2", **text},
            image_token_id=image,
            image_seq_length=4,
        )
        pixels = t.GotOcr2ImageProcessorPil(size=square, min_patches=1, max_patches=4)
        processor = without_video(t.InternVLProcessor)(
            pixels, tokenizer, image_seq_length=4, chat_template=template
        )
        return t.InternVLForConditionalGeneration(config), processor
    if family in ("idefics3", "smolvlm"):
        vision = {key: value for key, value in VISION.items() if key != "projection_dim"}
        large, small = {"longest_edge": 32}, {"longest_edge": 16}
        if family == "idefics3":
            config = t.Idefics3Config(
                vision_config=vision, text_config=text, image_token_id=image, scale_factor=2
            )
            pixels = t.Idefics3ImageProcessorPil(size=large, max_image_size=small)
            processor = t.Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=template)
            return t.Idefics3ForConditionalGeneration(config), processor
        config = t.SmolVLMConfig(
            vision_config=vision,
            text_config={"model_type": "llama", **text},
            image_token_id=image,
            scale_factor=2,
        )
        pixels = t.SmolVLMImageProcessorPil(size=large, max_image_size=small)
        processor = without_video(t.SmolVLMProcessor)(
            pixels, tokenizer, None, image_seq_len=4, chat_template=template
        )
        processor.video_processor = {
            "video_processor_type": "SmolVLMVideoProcessor",
            "num_frames": 8,
            "fps": 1,
        }
        return t.SmolVLMForConditionalGeneration(config), processor
    if family == "gemma3":
        config = t.Gemma3Config(
            vision_config=VISION,
            text_config={**text, "head_dim": 8, "sliding_window": 16},
            image_token_id=image,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            mm_tokens_per_image=4,
        )
        pixels = t.Gemma3ImageProcessorPil(size=square)
        template = template.replace("<image>", "<boi>")
        return t.Gemma3ForConditionalGeneration(config), t.Gemma3Processor(
            pixels, tokenizer, image_seq_length=4, chat_template=template
        )
    config = t.MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 32,
        },
        text_config={**text, "cross_attention_layers": [1]},
        image_token_index=image,
    )
    pixels = t.MllamaImageProcessorPil(size=square)
    template = "{{ bos_token }}" + template  # without it this processor writes it twice
    return t.MllamaForConditionalGeneration(config), t.MllamaProcessor(
        pixels, tokenizer, chat_template=template
    )


@pytest.fixture
def foreign(tiny_vlm, tmp_path, monkeypatch):
    """`foreign(family)` -> a folder in the hub's layout, of a family whose tokens the judge would cut."""
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # for videos, and asked for all the same

    def make(family):
        _, processor = tiny_vlm()
        torch.manual_seed(0)
        model, processor = build(family, processor.tokenizer, processor.chat_template)
        model.save_pretrained(tmp_path / family)
        processor.save_pretrained(tmp_path / family)
        return tmp_path / family

    return make


@pytest.mark.parametrize(
    ("family", "difference"),
    [
        ("internvl", "tokens and the judge.*<img>"),
        ("idefics3", "tokens and the judge.*<fake_token_around_image>"),
        ("smolvlm", "tokens and the judge.*<fake_token_around_image>"),
        ("gemma3", "95 tokens and the judge 86.*<boi>"),
        ("mllama", "cross_attention_mask"),
    ],
)
def test_families_that_would_be_misread_are_refused_by_name(foreign, family, difference):
    with pytest.raises(CheckpointError, match=f"(?s)family '{family}'.*{difference}.*llava_next"):
        load_classifier(foreign(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_are_judged_agree_up_to_the_answers(tiny_vlm, family, monkeypatch):
    monkeypatch.setattr(agreement, "VERIFIED", ())  # so that answers are compared as well
    check_agreement(*tiny_vlm(family))


def altered(processor, change):
    """The processor, but `change` is made to all that it returns."""
    kind = type(processor)

    class Altered(kind):
        def __call__(self, *given, **options):
            return change(super().__call__(*given, **options), kind)

    processor.__class__ = Altered
    return processor


def hidden(inputs, _):
    inputs["attention_mask"][0, 0] = 0
    return inputs


def typed(inputs, _):
    inputs["token_type_ids"] = (inputs["input_ids"] == 3).long()
    return inputs


def brighter(inputs, _):
    inputs["pixel_values"] = inputs["pixel_values"] + inputs["input_ids"].shape[1]
    return inputs


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (hidden, "hides tokens by its attention_mask"),
        (typed, "token_type_ids"),
        (brighter, "pixel_values depends on the text"),
    ],
)
def test_other_inputs_are_compared_too(tiny_vlm, change, difference):
    model, processor = tiny_vlm()
    with pytest.raises(CheckpointError, match=f"family 'llava'.*{difference}"):
        check_agreement(model, altered(processor, change))


def test_positions_are_compared(tiny_vlm):
    model, processor = tiny_vlm("qwen2_vl")
    counted = model.model.get_rope_index
    model.model.get_rope_index = lambda *given, **more: (counted(*given, **more)[0] + 1, None)
    with pytest.raises(CheckpointError, match=r"family 'qwen2_vl'.*[Pp]osition ids differ"):
        check_agreement(model, processor)


def test_answers_of_unknown_families_are_compared(tiny_vlm):
    """Same tokens, pixels and positions, but a model that reads them otherwise: as where images read both ways."""
    model, processor = tiny_vlm()
    model.config.model_type = "unheard_of"
    check_agreement(model, processor)
    forward = model.forward

    def otherwise(**inputs):
        output = forward(**inputs)
        if inputs.get("logits_to_keep") is None:  # as the processor would call it
            output.logits = output.logits / 2
        return output

    model.forward = otherwise
    with pytest.raises(
        CheckpointError, match=r"family 'unheard_of'.*probability of a next token differs by 0\.\d"
    ):
        check_agreement(model, processor)


def test_a_check_that_fails_refuses(tiny_vlm, monkeypatch):
    model, processor = tiny_vlm()
    monkeypatch.setattr(type(processor), "__call__", lambda *_, **__: {}["pixels"])
    with pytest.raises(CheckpointError, match=r"family 'llava'.*Comparing them failed with KeyError"):
        check_agreement(model, processor)
