"""Calling a pipeline under a guard: every picture asked for has its place, in every form, and none is half-made."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures_detectors import (
    DOG,
    PROMPTS,
    TAXONOMY,
    FakeDetector,
    flags,
    flags_rows,
    own_noise,
    pipeline,
    untouched,
)
from PIL import Image

from judge.diffusion.guard import DiffusionGuard
from judge.diffusion.guarded import guarded
from judge.diffusion.replacements import Redraw
from judge.errors import ConfigError, PicturesStoppedError, PipelineError

# diffusers 0.42.1 hands torch tensors to NumPy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
STOPPED = PROMPTS[DOG]
ALL = flags(*PROMPTS)


def make(detector, name="sd1", guard=None, prompts=PROMPTS, **arguments):
    options = dict(guard or {})
    guard = DiffusionGuard(detector, TAXONOMY, at=options.pop("at", (1,)), **options)
    arguments = {"num_inference_steps": 2, "height": 32, "width": 32, "generator": own_noise(), **arguments}
    output = guarded(pipeline(name), guard)(prompts, **arguments)
    assert untouched(pipeline(name))
    return guard, output


def plain(images):
    """Pictures in any form as (N, ...) array."""
    if isinstance(images, torch.Tensor):
        return images.numpy()
    return images if isinstance(images, np.ndarray) else np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in ("sd1", "flux") for form in ("pil", "np", "pt", "latent")),
        *((name, form) for name in ("sdxl", "sd3", "qwen-image") for form in ("pil", "latent")),
    ],
)
def test_no_picture_that_was_stopped_comes_out_in_any_form(name, form):
    some, whole = (make(detector, name, output_type=form)[1] for detector in (flags(STOPPED), flags()))
    none = make(ALL, name, output_type=form)[1]
    assert type(some) is type(whole) is type(none)
    assert type(some.images) is type(whole.images) is type(none.images)
    assert plain(some.images).shape == plain(whole.images).shape == plain(none.images).shape
    assert plain(some.images).dtype == plain(none.images).dtype
    assert [bool(image.any()) for image in plain(some.images)] == [True, False, True, True]
    assert not plain(none.images).any()
    assert np.allclose(
        plain(some.images)[[0, 2, 3]], plain(whole.images)[[0, 2, 3]], atol=1.01 if form == "pil" else 1e-4
    )


@pytest.mark.parametrize("detector", [flags(STOPPED), ALL, flags()])
@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_a_tuple_is_as_long_as_the_pipelines_own(name, detector):
    _, output = make(detector, name, return_dict=False)
    assert type(output) is tuple
    assert len(output) == (2 if name == "sd1" else 1)
    assert len(output[0]) == 4


def test_pictures_asked_for_in_other_ways():
    with torch.no_grad():
        embeds, negative = pipeline().encode_prompt(PROMPTS, "cpu", 1, True)
    for arguments in (
        {"prompts": PROMPTS[:2], "num_images_per_prompt": 2},
        {"prompts": "a digit", "num_images_per_prompt": 4},
        {"prompts": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative},
    ):
        guard, output = make(flags_rows(2), **arguments)
        assert [verdict.stopped_at for verdict in guard.verdicts] == [None, None, 1, None]
        assert [bool(image.any()) for image in plain(output.images)] == [True, True, False, True]


def test_flags_of_the_pipelines_own_checker_stay_with_their_pictures(monkeypatch):
    pipe = pipeline()
    monkeypatch.setattr(
        pipe, "run_safety_checker", lambda images, *rest: (images, [False] * (len(images) - 1) + [True])
    )
    assert make(flags(STOPPED))[1].nsfw_content_detected == [False, True, False, True]
    assert make(flags(STOPPED), return_dict=False)[1][1] == [False, True, False, True]
    assert make(ALL)[1].nsfw_content_detected == [True] * 4


def test_none_in_the_place_of_a_picture():
    for form in ("pil", "np"):
        images = make(flags(STOPPED), guard={"on_stop": "none"}, output_type=form)[1].images
        assert isinstance(images, list)
        assert [image is None for image in images] == [False, True, False, False]
    assert make(ALL, guard={"on_stop": "none"})[1].images == [None] * 4


def test_raising_ends_the_call_at_once():
    with pytest.raises(PicturesStoppedError, match="after step 1 of 2: picture 1 is unsafe"):
        make(flags(STOPPED), guard={"on_stop": "raise"})


def test_a_function_says_what_takes_the_place():
    asked = []

    def paint(stopped):
        asked.append(stopped)
        stopped.blank.paste((1, 2, 3), (0, 0, 32, 32))
        return stopped.blank

    guard, output = make(flags(STOPPED, PROMPTS[3]), guard={"on_stop": paint})
    assert [(stopped.index, stopped.prompt) for stopped in asked] == [(1, STOPPED), (3, PROMPTS[3])]
    assert asked[0].verdict == guard.verdicts[1]
    assert output.images[1].getpixel((5, 5)) == (1, 2, 3)
    assert asked[0].blank is not asked[1].blank


def test_a_function_may_give_nothing_but_nothing_of_another_form():
    _, output = make(flags(STOPPED), guard={"on_stop": lambda stopped: None}, output_type="np")
    assert output.images[1] is None
    with pytest.raises(ConfigError, match="In the place of picture 1 came a PIL image of 8 x 8"):
        make(flags(STOPPED), guard={"on_stop": lambda stopped: Image.new("RGB", (8, 8))}, output_type="pil")


def test_blanks_are_pictures_of_their_own():
    images = make(ALL)[1].images
    images[0].putpixel((0, 0), (255, 255, 255))
    assert images[1].getpixel((0, 0)) == (0, 0, 0)


# Drawing again


def stubborn(times):
    """Flags the stopped prompt as often as said."""
    left = [times]

    def score(look, row):
        if look.prompts[row] != STOPPED or not left[0]:
            return 0.1
        left[0] -= 1
        return 0.9

    return FakeDetector(score)


def test_a_stopped_picture_is_drawn_again_until_it_passes():
    guard, output = make(
        stubborn(2), guard={"on_stop": Redraw(3)}, negative_prompt=["x"] * 4, output_type="np"
    )
    verdict = guard.verdicts[DOG]
    assert verdict.status == "unsafe"
    assert [drawn.status for drawn in verdict.redrawn] == ["unsafe", "safe"]
    assert verdict.final.status == "safe"
    assert verdict.milliseconds > sum(look.milliseconds for look in verdict.looks)
    assert output.images[DOG].any()
    again = make(stubborn(2), guard={"on_stop": Redraw(3)}, negative_prompt=["x"] * 4, output_type="np")[1]
    assert np.array_equal(again.images, output.images)
    other = make(
        stubborn(2), guard={"on_stop": Redraw(3, seed=1)}, negative_prompt=["x"] * 4, output_type="np"
    )[1]
    assert not np.array_equal(other.images[DOG], output.images[DOG])


def test_after_so_many_attempts_it_stays_blank():
    guard, output = make(flags(STOPPED), guard={"on_stop": Redraw(2)}, output_type="np")
    assert [len(verdict.redrawn) for verdict in guard.verdicts] == [0, 2, 0, 0]
    assert not output.images[DOG].any()
    assert guard.verdicts[DOG].final.status == "unsafe"


def test_a_redrawn_picture_has_noise_of_its_own():
    latents = torch.zeros(4, 4, 16, 16)
    _, output = make(
        stubborn(1), guard={"on_stop": Redraw()}, latents=latents, output_type="latent", generator=None
    )
    _, first = make(flags(), latents=latents, output_type="latent", generator=None)
    assert not torch.equal(output.images[DOG], first.images[DOG])
    assert torch.allclose(output.images[0], first.images[0], atol=1e-5)


@pytest.mark.parametrize("arguments", [{"times": 0}, {"times": True}, {"times": 1.5}, {"seed": -1}])
def test_a_redraw_that_cannot_be(arguments):
    with pytest.raises(ConfigError, match="redrawn once or more"):
        Redraw(**arguments)


# Calls that end otherwise


def count_frees(pipe, monkeypatch):
    freed = []
    free = pipe.maybe_free_model_hooks
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: (freed.append(1), free()))
    return freed


def test_modules_are_freed_however_a_call_ends(monkeypatch):
    freed = count_frees(pipeline(), monkeypatch)
    make(ALL)
    assert len(freed) == 1

    def fail(*arguments):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make(flags(), callback_on_step_end=fail)
    assert len(freed) > 1
    before = len(freed)
    with pytest.raises(ValueError, match="divisible"):
        make(flags(), height=33)
    assert len(freed) == before + 1
    assert untouched(pipeline())


@pytest.mark.parametrize("when", [1, 2])
def test_an_interrupted_call_gives_blanks(when, monkeypatch):
    """Also where the guard is not called again: the flag is set after it was, as another thread might."""
    pipe = pipeline()

    @contextmanager
    def progress_bar(total):
        shown = []

        def update():
            shown.append(1)
            pipe._interrupt = len(shown) == when

        yield SimpleNamespace(update=update)

    monkeypatch.setattr(pipe, "progress_bar", progress_bar)
    guard, output = make(flags(), num_inference_steps=3, output_type="np")
    assert not output.images.any()
    assert [verdict.status for verdict in guard.verdicts] == ["unjudged"] * 4
    assert f"interrupted after step {when}" in guard.verdicts[0].reason


def test_a_call_that_never_began_is_an_error(monkeypatch):
    pipe = pipeline()
    monkeypatch.setattr(type(pipe), "interrupt", property(lambda self: True))
    with pytest.raises(PicturesStoppedError, match="interrupted before its first step"):
        make(flags())


def test_the_callers_own_callback_goes_on():
    seen = []

    def own(pipe, index, timestep, tensors):
        seen.append((index, len(tensors["latents"]), "negative_prompt_embeds" in tensors))
        return tensors

    make(
        flags(STOPPED),
        callback_on_step_end=own,
        callback_on_step_end_tensor_inputs=["latents", "negative_prompt_embeds"],
    )
    assert seen == [(0, 3, True), (1, 3, True)]


def test_a_second_guard_as_the_callers_own_callback_is_refused():
    other = DiffusionGuard(flags(), TAXONOMY, at=(1,))
    with pytest.raises(PipelineError, match="has a guard already"):
        make(flags(), callback_on_step_end=other)


def test_official_callbacks_of_diffusers_are_called():
    from diffusers.callbacks import SDCFGCutoffCallback

    guard, output = make(
        flags("a digit"),
        prompts="a digit",
        generator=own_noise(1),
        guard={"at": (3,)},
        num_inference_steps=3,
        callback_on_step_end=SDCFGCutoffCallback(cutoff_step_index=1, cutoff_step_ratio=None),
    )
    assert guard.verdicts[0].status == "unsafe"
    assert not plain(output.images).any()


def test_skip_layer_guidance_keeps_the_batch():
    guard, output = make(
        flags(STOPPED),
        "sd3",
        skip_guidance_layers=[1],
        num_inference_steps=4,
        output_type="np",
        guard={"at": (2,)},
    )
    assert guard.kept == (0, 1, 2, 3)
    assert [bool(image.any()) for image in output.images] == [True, False, True, True]


def test_something_that_gives_no_pictures_is_refused(monkeypatch):
    from judge.diffusion.outputs import images_of

    with pytest.raises(PipelineError, match="without pictures"):
        images_of({"frames": []})


def test_pictures_that_begin_as_pictures():
    """Image to image makes only the later steps: they are numbered from 1, and log-SNRs begin higher."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    images = [Image.new("RGB", (32, 32), (60 * place, 0, 0)) for place in range(4)]
    seen = []

    def own(pipe, index, timestep, tensors):
        seen.append((index, int(timestep)))
        return tensors

    def draw(detector):
        guard = DiffusionGuard(detector, TAXONOMY, at=(2,), on_stop=Redraw(1), pipeline=pipeline())
        output = guarded(pipe, guard)(
            PROMPTS,
            image=images,
            strength=0.5,
            num_inference_steps=6,
            generator=own_noise(),
            output_type="np",
            callback_on_step_end=own,
        )
        return guard, output.images

    _, whole = draw(flags())
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()[3:]))
    guard, some = draw(flags(STOPPED))
    assert [verdict.stopped_at for verdict in guard.verdicts] == [None, 2, None, None]
    assert guard.verdicts[DOG].looks[0].log_snr > 0
    assert len(guard.verdicts[DOG].redrawn) == 1
    assert np.allclose(some[[0, 2, 3]], whole[[0, 2, 3]], atol=1e-5)
    assert not some[DOG].any()
