"""judge/vlm/agreement.py: a base that the judge would feed otherwise than its processor does is no judge."""

import pytest
import transformers as t

from judge import load_classifier
from judge.errors import CheckpointError
from judge.vlm import agreement
from judge.vlm.agreement import check_agreement
from judge.vlm.families import family_of, is_compared, judging_path
from judge.vlm.random_bases import RANDOM_BASES, TURNS, random_base, tiny_tokenizer
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.training.paths import prepare_attention


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (t.MllamaConfig, r"Llama-3.2-Vision \('mllama'\).*cross-attention.*Use Qwen2.5-VL.*serve the model"),
        (t.PaliGemmaConfig, r"PaliGemma \('paligemma'\).*both directions.*Use Gemma-3.*serve the model"),
    ],
)
def test_what_cannot_be_a_judge_is_refused_before_its_weights_are_read(tmp_path, config, said):
    config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        load_classifier(tmp_path)


@pytest.mark.parametrize("family", RANDOM_BASES)
def test_families_that_are_judged_agree_up_to_the_answers(tiny_vlm, family, monkeypatch):
    model, processor = tiny_vlm(family)
    assert family_of(family).path == judging_path(model) == "fast"
    assert not is_compared(model)
    monkeypatch.setattr(agreement, "is_compared", lambda _: True)  # so that answers are too
    check_agreement(model, processor)


def test_a_known_family_with_another_language_model_is_compared(tiny_vlm):
    model, _ = tiny_vlm()
    model.config.text_config.model_type = "gpt_oss"
    assert is_compared(model)


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


def test_crops_of_one_size_of_image_only_are_refused(tiny_vlm, noise_image, monkeypatch):
    """Pan and scan writes another text around an image that it crops than around one that it does not."""
    model, processor = tiny_vlm("gemma3")
    judge = VisionLanguageJudge(model, processor)
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
    monkeypatch.setattr(type(processor), "images_kwargs", type(processor).images_kwargs | crops)
    with pytest.raises(CheckpointError, match="turn off what cuts images into crops"):
        judge.score([noise_image(0, (96, 32))], None, agreement.SAMPLE)


def test_a_family_that_nobody_listed_is_compared_and_read_fast(tmp_path):
    """Aya Vision: tiles between marks of its own, a language model with windows, and never heard of here."""
    more = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL", "<image>"]
    tokenizer = tiny_tokenizer("<|IMG_PATCH|>", more)
    base, _ = random_base()
    text = base.config.text_config.to_dict() | {"model_type": "cohere2", "vocab_size": len(tokenizer)}
    vision = {**base.config.vision_config.to_dict(), "model_type": "siglip_vision_model", "patch_size": 4}
    config = t.AyaVisionConfig(
        vision_config=vision | {"vision_use_head": False},
        text_config=text | {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
        image_token_index=3,
        downsample_factor=2,
        alignment_intermediate_size=32,
    )
    tiles = t.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=4, crop_to_patches=True)
    template = TURNS.replace("IMAGE", "<image>")
    processor = t.AyaVisionProcessor(
        tiles, tokenizer, patch_size=4, img_size=16, downsample_factor=2, chat_template=template
    )
    for part in (t.AyaVisionForConditionalGeneration(config), processor):
        part.save_pretrained(tmp_path)
    judge = load_classifier(tmp_path)
    assert is_compared(judge.model)
    assert isinstance(judge, VisionLanguageJudge)
    prepare_attention(judge.model, judge.processor)
    assert judging_path(judge.model) == "fast"
