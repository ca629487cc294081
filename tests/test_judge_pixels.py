"""Gradients reach the pixels of an image as it was posted, through the processor's own steps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPImageProcessorPil

from judge.data.preprocessing import ImagePreprocessing
from judge.encoders.pixels import look_up, preprocess
from judge.errors import CheckpointError
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy
from prompts.errors import ArbiterError

POLICY = Taxonomy("policy", "1", (Category("blood", "wounds"), Category("hate", "contempt for a group")))
PROMPTS = ["a street", "a much longer prompt than the first one", None]
SQUARE = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
SHORTEST = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def as_pixels(images):
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float() / 255.0


def unnormalised(processor, tensor):
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    return tensor * deviation + mean


@pytest.mark.parametrize(
    "settings", [SQUARE, SHORTEST, {"do_resize": False, "crop_size": {"height": 16, "width": 16}}]
)
def test_without_resizing_the_tensors_are_equal(noise_image, settings):
    processor = CLIPImageProcessorPil(**settings)
    size = (21, 19) if not processor.do_resize else (16, 16) if settings is SQUARE else (27, 16)
    images = [noise_image(seed, size) for seed in range(3)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert preprocess(processor, as_pixels(images)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(12, 13), (12, 40), (20, 16), (40, 17), (64, 64), (101, 333)])
@pytest.mark.parametrize("settings", [SQUARE, SHORTEST, SHORTEST | {"resample": 2}])
def test_resized_tensors_differ_by_rounding_only(noise_image, settings, size):
    processor = CLIPImageProcessorPil(**settings)
    images = [noise_image(seed, size) for seed in range(2)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    found = preprocess(processor, as_pixels(images))
    assert found.shape == expected.shape
    difference = (unnormalised(processor, found) - unnormalised(processor, expected)).abs()
    assert difference.max() <= 1.5 / 255


def test_a_crop_larger_than_the_image_pads_like_the_processor(noise_image):
    processor = CLIPImageProcessorPil(do_resize=False, crop_size={"height": 21, "width": 24})
    images = [noise_image(0, (17, 30)), noise_image(1, (17, 30))]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert preprocess(processor, as_pixels(images)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("template", ["policy_first", "perspective", "zero_shot_1"])
def test_the_margin_is_the_logit_of_the_score(tiny_vlm, noise_image, template):
    judge = VisionLanguageJudge(*tiny_vlm(), template)
    images = [noise_image(seed, (16, 16)) for seed in range(3)]
    margins = judge.pixel_margins(as_pixels(images), PROMPTS, POLICY)
    assert margins.shape == (3,)
    unsafe = judge.score(images, PROMPTS, POLICY).unsafe
    assert margins.detach().numpy() == pytest.approx(np.log(unsafe) - np.log1p(-unsafe), abs=1e-4)


def test_the_margin_of_a_resized_image_is_close_to_that_of_the_score(tiny_vlm, noise_image):
    judge = VisionLanguageJudge(*tiny_vlm())
    images = [noise_image(seed, (48, 40)) for seed in range(3)]
    unsafe = judge.score(images, PROMPTS, POLICY).unsafe
    expected = np.log(unsafe) - np.log1p(-unsafe)
    margins = judge.pixel_margins(as_pixels(images), PROMPTS, POLICY).detach().numpy()
    assert np.abs(margins - expected).max() < max(np.ptp(expected), 0.1) / 4


def test_focus_asks_about_one_category(tiny_vlm, noise_image):
    judge = VisionLanguageJudge(*tiny_vlm())
    images = [noise_image(seed, (16, 16)) for seed in range(3)]
    alone = judge.score(images, PROMPTS, POLICY, multilabel=True).category_probabilities[:, 1]
    margins = judge.pixel_margins(as_pixels(images), PROMPTS, POLICY, focus="hate").detach().numpy()
    assert margins == pytest.approx(np.log(alone) - np.log1p(-alone), abs=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
@pytest.mark.parametrize("template", ["policy_first", "perspective"])
def test_gradients_are_finite_differences(tiny_vlm, noise_image, template, size):
    model, processor = tiny_vlm()
    judge = VisionLanguageJudge(model.double(), processor, template)
    # Far from black and white, where overshoots of the bicubic filter are cut off and the slope breaks.
    pixels = (as_pixels([noise_image(seed, size) for seed in range(2)]) * 0.4 + 0.3).double().requires_grad_()
    margins = judge.pixel_margins(pixels, PROMPTS[:2], POLICY)
    gradient = torch.autograd.grad(margins.sum(), pixels)[0]
    assert gradient.abs().max() > 0
    for seed in range(4):
        direction = torch.randn(
            pixels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        step = 2e-4
        with torch.no_grad():
            up, down = (
                judge.pixel_margins(pixels + s * direction, PROMPTS[:2], POLICY) for s in (step, -step)
            )
        numeric = (up - down).double() / (2 * step)
        analytic = (gradient * direction).sum(dim=(1, 2, 3))
        assert numeric == pytest.approx(analytic, rel=0.02, abs=0.02 * float(gradient.norm()))


def test_rows_of_a_batch_do_not_mix(tiny_vlm, noise_image):
    judge = VisionLanguageJudge(*tiny_vlm())
    pixels = as_pixels([noise_image(seed) for seed in range(3)]).requires_grad_()
    margins = judge.pixel_margins(pixels, PROMPTS, POLICY)
    gradient = torch.autograd.grad(margins[1], pixels)[0]
    assert gradient[1].abs().max() > 0
    assert (gradient[[0, 2]] == 0).all()
    alone = judge.pixel_margins(pixels[1:2], PROMPTS[1:2], POLICY)
    assert alone.item() == pytest.approx(margins[1].item(), abs=1e-4)


def test_other_families_say_what_is_supported(tiny_vlm):
    for family, kind in (
        ("llava_next", "LlavaNextImageProcessorPil"),
        ("smolvlm", "SmolVLMImageProcessorPil"),
    ):
        judge = VisionLanguageJudge(*tiny_vlm(family))
        with pytest.raises(CheckpointError, match=rf"CLIPImageProcessor.*InternVL.*{kind}"):
            judge.pixel_margins(torch.rand(1, 3, 16, 16), None, POLICY)


@pytest.mark.parametrize("size", [(16, 16), (12, 40), (61, 33), (90, 90)])
@pytest.mark.parametrize("family", ["gemma3", "internvl"])
def test_other_processors_are_followed_up_to_rounding(tiny_vlm, noise_image, family, size):
    """InternVL's cuts into tiles, by rows, with the whole behind them."""
    _, processor = tiny_vlm(family)
    images = [noise_image(seed, size) for seed in range(2)]
    read = [processor(text=[processor.image_token], images=[image], return_tensors="pt") for image in images]
    expected = torch.cat([one["pixel_values"] for one in read])
    found = preprocess(processor.image_processor, as_pixels(images))
    assert found.shape == expected.shape
    settings = processor.image_processor
    difference = (unnormalised(settings, found) - unnormalised(settings, expected)).abs()
    assert difference.max() <= 1.5 / 255


@pytest.mark.parametrize(
    ("family", "size"), [("gemma3", (16, 16)), ("internvl", (16, 16)), ("internvl", (32, 16))]
)
def test_margins_of_other_families_are_logits_with_gradients(tiny_vlm, noise_image, family, size):
    judge = VisionLanguageJudge(*tiny_vlm(family))
    images = [noise_image(seed, size) for seed in range(2)]
    pixels = as_pixels(images).requires_grad_()
    margins = judge.pixel_margins(pixels, PROMPTS[:2], POLICY)
    unsafe = judge.score(images, PROMPTS[:2], POLICY).unsafe
    assert margins.detach().numpy() == pytest.approx(np.log(unsafe) - np.log1p(-unsafe), abs=0.02)
    (gradient,) = torch.autograd.grad(margins[0], pixels)
    assert gradient[0].abs().max() > 0
    assert (gradient[1] == 0).all()


def test_settings_that_are_not_known_are_refused():
    pixels = torch.rand(1, 3, 20, 20)
    with pytest.raises(CheckpointError, match="filter 0"):
        preprocess(CLIPImageProcessorPil(**SQUARE, resample=0), pixels)
    with pytest.raises(CheckpointError, match="longest_edge"):
        preprocess(CLIPImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 20}), pixels)


@pytest.mark.parametrize(
    "bad", [torch.rand(3, 16, 16), torch.rand(1, 1, 16, 16), torch.zeros(1, 3, 8, 8).byte()]
)
def test_pixels_of_another_shape_or_type_are_refused(bad):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        preprocess(CLIPImageProcessorPil(), bad)


def test_a_row_too_long_for_the_context_is_an_error(tiny_vlm):
    judge = VisionLanguageJudge(*tiny_vlm(context=100))
    with pytest.raises(ArbiterError, match=r"takes \d+ tokens and the model reads 100"):
        judge.pixel_margins(torch.rand(1, 3, 16, 16), ["word " * 100], POLICY)


def test_as_many_prompts_as_images(tiny_vlm):
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        VisionLanguageJudge(*tiny_vlm()).pixel_margins(torch.rand(2, 3, 16, 16), ["one"], POLICY)


@given(st.integers(0, 3), st.sampled_from([None, 1 / 255, 0.5]), st.booleans(), st.integers(0, 99))
def test_levels_are_looked_up_as_the_arithmetic_gives_them(count, scale, normalised, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
    mean, deviation = ((0.48, 0.45, 0.4), (0.26, 0.27, 0.3)) if normalised else (None, None)
    steps = ImagePreprocessing(None, 3, None, scale, mean, deviation)
    expected = (pixels.astype(np.float64) * (1.0 if scale is None else scale)).astype(np.float32)
    if normalised:
        expected = (expected - np.float32(mean)) / np.float32(deviation)
    expected = expected.transpose(0, 3, 1, 2)
    found = steps.normalised(pixels)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    # What an encoder on another device does.
    assert np.array_equal(look_up(torch.from_numpy(pixels), steps.values).numpy(), expected)
