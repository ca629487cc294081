"""The observer: what it sees is what the denoiser read and predicted, and the pipeline does as it did without it."""

import math
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig

from judge.diffusion.layouts import attention_layers
from judge.diffusion.observer import Observer
from judge.errors import PipelineError
from judge.standins.random_pipelines import PIPELINES, random_pipeline

# diffusers 0.42.1 hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
torch.set_num_threads(1)

PROMPTS = ["a red kite", "two dogs in a boat"]
TWO_CALLS = ("flux", "qwen-image")
SHORT = {"max_sequence_length": 32}
"""Words that T5 reads, which are 256 or 512."""


@cache
def shared(name):
    """A pipeline that no test changes."""
    return random_pipeline(name)


def draw(pipeline, prompts=PROMPTS, *, guided=True, callback=None, **options):
    """Latents of a call, the same each time, of pictures that are not square."""
    if type(pipeline).__name__ in ("FluxPipeline", "QwenImagePipeline"):
        guidance = {"true_cfg_scale": 4.0, "negative_prompt": [""] * len(prompts)} if guided else {}
    else:
        guidance = {"guidance_scale": 5.0 if guided else 0.0}
    if type(pipeline).__name__ in ("FluxPipeline", "StableDiffusion3Pipeline"):
        guidance |= SHORT
    given = {
        "num_inference_steps": 3,
        "output_type": "latent",
        "height": 32,
        "width": 48,
        **guidance,
        **options,
    }
    seeds = torch.Generator().manual_seed(3)
    return pipeline(prompts, generator=seeds, callback_on_step_end=callback, **given).images


def looks_of(pipeline, layers=(), prompts=PROMPTS, **options):
    """A look at every step of a call, and the latents of the result."""
    found = []

    def look(pipe, step, timestep, tensors):
        found.append(observer.look(pipe, step, prompts))
        return tensors

    with Observer(pipeline, layers) as observer:
        latents = draw(pipeline, prompts, callback=look, **options)
    return found, latents


def spy_on(pipeline, name, calls):
    """Keep copies of what the denoiser and one of its layers are given, call by call."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer

    def on_denoiser(module, args, kwargs):
        calls.append({key: value.clone() for key, value in kwargs.items() if torch.is_tensor(value)})
        calls[-1]["latents"] = (args[0] if args else kwargs["hidden_states"]).clone()

    def on_layer(module, args, kwargs):
        calls[-1]["tokens"] = (args[0] if args else kwargs["hidden_states"]).clone()

    layer = attention_layers(pipeline)[name]
    return [
        denoiser.register_forward_pre_hook(on_denoiser, with_kwargs=True),
        layer.register_forward_pre_hook(on_layer, with_kwargs=True),
    ]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_look_shows_the_half_that_reads_the_prompt(name, guided):
    pipeline = shared(name)
    layer = list(attention_layers(pipeline))[-1]
    calls = []
    handles = spy_on(pipeline, layer, calls)
    try:
        found, _ = looks_of(pipeline, [layer], guided=guided)
    finally:
        for handle in handles:
            handle.remove()
    assert [look.step for look in found] == [1, 2, 3]
    assert {look.steps for look in found} == {3}
    assert all(look.prompts == tuple(PROMPTS) for look in found)
    assert sorted(look.log_snr for look in found) == [look.log_snr for look in found]
    twice = 2 if guided and name in TWO_CALLS else 1
    assert len(calls) == 3 * twice
    with torch.no_grad():
        own = pipeline.encode_prompt(prompt=PROMPTS, **text_options(name))[0]
    for look, call in zip(found, calls[::twice], strict=True):
        half = slice(2, 4) if guided and name not in TWO_CALLS else slice(0, 2)
        assert torch.equal(look.tokens[layer], call["tokens"][half])
        assert torch.equal(look.text, call["encoder_hidden_states"][half])
        assert torch.equal(look.text, own)
        # Latents as the denoiser reads them; those of flow matching are a sum of shares, not of powers.
        read = call["latents"][half]
        share = 1 / (1 + math.exp(look.log_snr / 2))
        whole = math.hypot(share, 1 - share) if name in ("sd3", *TWO_CALLS) else 1
        unpacked = (
            read if read.ndim == 4 else pipeline._unpack_latents(read, 32, 48, pipeline.vae_scale_factor)
        )
        assert torch.allclose(whole * look.noisy, unpacked.view_as(look.noisy), rtol=1e-4, atol=1e-5)
        signal = math.sqrt(1 / (1 + math.exp(-look.log_snr)))
        again = signal * look.clean + math.sqrt(1 - signal**2) * look.noise
        assert torch.allclose(again, look.noisy, rtol=1e-3, atol=2e-4)


def text_options(name):
    if name in TWO_CALLS:
        return {"prompt_2": None, **SHORT} if name == "flux" else {}
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return {**options, "prompt_2": None, "prompt_3": None, **SHORT} if name == "sd3" else options


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_are_the_same_to_the_bit_and_every_hook_goes(name):
    pipeline = shared(name)
    before = draw(pipeline)
    layers = list(attention_layers(pipeline))
    found, after = looks_of(pipeline, layers)
    assert torch.equal(before, after)
    assert set(found[0].tokens) == set(layers)
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    assert not any(module._forward_pre_hooks for module in denoiser.modules())
    assert "step" not in vars(pipeline.scheduler)


@pytest.mark.parametrize("name", ["sd1", "qwen-image"])
def test_the_last_step_of_a_noiseless_schedule_hands_out_the_predicted_picture(name):
    """Euler's last step jumps to what it sees: an independent check of what `clean` means."""
    pipeline = shared(name)
    if name == "sd1":
        pipeline = random_pipeline("sd1")
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    found, latents = looks_of(pipeline)
    if latents.ndim == 3:
        latents = pipeline._unpack_latents(latents, 32, 48, pipeline.vae_scale_factor)[:, :, 0]
    assert torch.allclose(found[-1].clean, latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "scheduler",
    [
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "LCMScheduler",
        "HeunDiscreteScheduler",
    ],
)
def test_another_scheduler_may_be_put_in_at_any_time(scheduler):
    pipeline = random_pipeline("sd1")
    found = []

    def look(pipe, step, timestep, tensors):
        found.append(observer.look(pipe, step, PROMPTS))
        return tensors

    with Observer(pipeline) as observer:
        draw(pipeline, callback=look)
        first = pipeline.scheduler
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(first.config)
        draw(pipeline, callback=look, num_inference_steps=4)
        assert "step" not in vars(first)
    steps = 7 if scheduler.startswith("Heun") else 4
    assert [look.steps for look in found] == [3] * 3 + [steps] * steps
    assert all(torch.isfinite(look.clean).all() for look in found)
    assert "step" not in vars(pipeline.scheduler)


def test_a_scheduler_that_is_not_known_is_refused_before_the_first_step():
    pipeline = random_pipeline("sd1")
    with Observer(pipeline):
        pipeline.scheduler = diffusers.EDMEulerScheduler()
        with pytest.raises(PipelineError, match="EDMEulerScheduler is not known"):
            draw(pipeline)
    with pytest.raises(PipelineError, match="EDMEulerScheduler is not known"):
        Observer(pipeline)


def test_guidance_may_end_in_the_middle_of_a_call():
    """As with diffusers' own cut-off of guidance: from then on the batch has one half."""
    pipeline, found, given = shared("sdxl"), [], []

    def look(pipe, step, timestep, tensors):
        found.append(observer.look(pipe, step, PROMPTS))
        if step == 0:
            pipe._guidance_scale = 0.0
            for name in ("prompt_embeds", "add_text_embeds", "add_time_ids"):
                tensors[name] = tensors[name][2:]
        given.append(tensors["prompt_embeds"].clone())
        return tensors

    with Observer(pipeline) as observer:
        draw(pipeline, callback=look, callback_on_step_end_tensor_inputs=list(observer.layout.inputs))
    assert given[0].shape[0] == 2
    assert all(torch.equal(one.text, given[0]) for one in found)


def test_several_pictures_of_a_prompt_stand_one_after_the_other():
    found, latents = looks_of(shared("sd1"), num_images_per_prompt=2)
    assert latents.shape[0] == 4
    assert found[0].prompts == ("a red kite", "a red kite", "two dogs in a boat", "two dogs in a boat")
    assert torch.equal(found[0].text[0], found[0].text[1])
    assert not torch.equal(found[0].text[1], found[0].text[2])


def test_what_was_guided_is_what_the_scheduler_was_given():
    """With rescaled guidance, which the pipeline does after both halves are predicted."""
    pipeline = random_pipeline("sd2")
    plain, _ = looks_of(pipeline, guidance_rescale=0.0)
    rescaled, _ = looks_of(pipeline, guidance_rescale=0.7)
    assert torch.equal(plain[0].noisy, rescaled[0].noisy)
    assert not torch.allclose(plain[0].clean, rescaled[0].clean)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_pictures_from_pictures_start_later_in_the_schedule(name):
    parts = random_pipeline(name).components
    if name == "sd1":
        pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    else:
        pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    found = []

    def look(pipe, step, timestep, tensors):
        found.append(observer.look(pipe, step, None))
        return tensors

    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with Observer(pipeline) as observer:
        pipeline(
            PROMPTS,
            image=pictures,
            strength=0.5,
            num_inference_steps=6,
            callback_on_step_end=look,
            output_type="latent",
        )
    assert [look.step for look in found] == [1, 2, 3]
    assert found[0].log_snr > looks_of(shared(name))[0][0].log_snr + 1
    assert found[0].prompts == (None, None)
    assert found[0].text.shape[0] == 2


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_control_net_leaves_the_layout_as_it_is(name):
    base = random_pipeline(name)
    control = diffusers.ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 4))
    parts = {**base.components, "controlnet": control}
    if name == "sd1":
        pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    else:
        pipeline = diffusers.StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    layer = next(iter(attention_layers(pipeline)))
    controlled, _ = looks_of(pipeline, [layer], image=torch.rand(2, 3, 16, 24), guess_mode=True)
    plain, _ = looks_of(base, [layer])
    assert torch.equal(controlled[0].text, plain[0].text)
    # The control acts behind this layer, on what the steps hand on.
    assert torch.equal(controlled[0].tokens[layer], plain[0].tokens[layer])
    assert torch.equal(controlled[0].noisy, plain[0].noisy)


def test_rows_of_a_look():
    layer = next(iter(attention_layers(shared("sd1"))))
    look = looks_of(shared("sd1"), [layer])[0][0]
    one = look.rows(torch.tensor([1]))
    assert one.prompts == (PROMPTS[1],)
    assert torch.equal(one.tokens[layer], look.tokens[layer][1:])
    assert torch.equal(one.text[0], look.text[1])


def test_a_lora_in_the_projections_changes_nothing_of_how_it_is_watched():
    pipeline = random_pipeline("sd1")
    names = list(attention_layers(pipeline))
    pipeline.unet.add_adapter(
        LoraConfig(r=2, target_modules=[f"{name}.to_k" for name in names], init_lora_weights=False)
    )
    assert list(attention_layers(pipeline)) == names
    found, _ = looks_of(pipeline, names)
    plain, _ = looks_of(shared("sd1"), names)
    assert torch.equal(found[0].tokens[names[0]], plain[0].tokens[names[0]])
    assert not torch.allclose(found[0].tokens[names[-1]], plain[0].tokens[names[-1]])


def test_latents_that_are_not_numbers_are_seen():
    pipeline = shared("sd1")
    latents = torch.randn(2, 4, 16, 24)
    latents[1, 0, 0, 0] = math.nan
    found, _ = looks_of(pipeline, latents=latents)
    finite = torch.isfinite(found[0].clean).flatten(1).all(1)
    assert finite.tolist() == [True, False]


def test_a_second_wrapping_of_the_scheduler_survives_in_either_order():
    """Others wrap `scheduler.step` too; whoever leaves first takes only its own."""
    pipeline = random_pipeline("sd1")
    scheduler, seen = pipeline.scheduler, []

    def wrap(whole):
        def step(*args, **kwargs):
            seen.append(args[1])
            return whole(*args, **kwargs)

        return step

    below = scheduler.step = wrap(scheduler.step)
    with Observer(pipeline) as observer:
        draw(pipeline, guided=False, callback=lambda *given: given[-1])
    assert vars(scheduler)["step"] is below
    observer = Observer(pipeline)
    draw(pipeline, guided=False)
    above = scheduler.step = wrap(scheduler.step)
    observer.close()
    assert vars(scheduler)["step"] is above
    seen.clear()
    draw(pipeline, guided=False)
    assert len(seen) == 6
    assert observer._step is None


def test_wrong_uses_say_what_to_do():
    pipeline = shared("sd1")
    with pytest.raises(PipelineError, match="no attention layer 'attn7'; it has down_blocks"):
        Observer(pipeline, ["attn7"])
    with Observer(pipeline) as observer:
        with pytest.raises(PipelineError, match="Call `look` inside `callback_on_step_end`"):
            observer.look(pipeline, 0, PROMPTS)
        with pytest.raises(PipelineError, match="watches another pipeline"):
            observer.look(shared("sd2"), 0, PROMPTS)
        replaced = random_pipeline("sd1")
    with Observer(replaced) as observer:
        replaced.unet = random_pipeline("sd1").unet
        with pytest.raises(PipelineError, match="make a new observer"):
            draw(replaced, callback=lambda pipe, step, *rest: observer.look(pipe, step, None))
    changed = random_pipeline("sd1")
    layer = next(iter(attention_layers(changed)))
    with Observer(changed, [layer]) as observer:
        changed.unet.set_submodule(layer, random_pipeline("sd1").unet.get_submodule(layer))
        with pytest.raises(PipelineError, match=f"{layer} were not seen to run"):
            draw(changed, callback=lambda pipe, step, *rest: observer.look(pipe, step, None))
    for prompts in ([], ["one", "two", "three"]):
        with pytest.raises(PipelineError, match=f"{len(prompts)} prompts were given for 2 pictures"):
            looks_at(pipeline, prompts)


def test_a_denoiser_that_was_replaced_between_calls_is_not_mistaken_for_the_first():
    pipeline = random_pipeline("sd1")
    with Observer(pipeline) as observer:
        draw(pipeline, callback=lambda pipe, step, *rest: (observer.look(pipe, step, None), rest[-1])[1])
        pipeline.unet = random_pipeline("sd1").unet
        with pytest.raises(PipelineError, match="make a new observer"):
            draw(pipeline, callback=lambda pipe, step, *rest: observer.look(pipe, step, None))


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux"])
def test_nothing_of_a_call_that_failed_is_seen_in_the_next(name):
    pipeline, found, calls = random_pipeline(name), [], []
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    layer = list(attention_layers(pipeline))[-1]

    def fail(module, args, kwargs, output):
        calls.append(output)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    def look(pipe, step, timestep, tensors):
        found.append(observer.look(pipe, step, None))
        return tensors

    with Observer(pipeline, [layer]) as observer:
        handle = denoiser.register_forward_hook(fail, with_kwargs=True)
        with pytest.raises(RuntimeError, match="out of memory"):
            draw(pipeline, ["a different prompt", "and another"], callback=look)
        handle.remove()
        found.clear()
        draw(pipeline, callback=look)
    alone, _ = looks_of(pipeline, [layer])
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one.text, other.text)
        assert torch.equal(one.tokens[layer], other.tokens[layer])


def test_the_pass_with_skipped_layers_is_not_the_one_that_is_shown():
    pipeline = shared("sd3")
    layer = list(attention_layers(pipeline))[-1]
    skipping = {
        "skip_guidance_layers": [2],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    skipped, latents = looks_of(pipeline, [layer], **skipping)
    plain, others = looks_of(pipeline, [layer])
    assert not torch.equal(latents, others)
    # The second step is the first with skipped layers, and its latents are still the same.
    assert torch.equal(skipped[1].noisy, plain[1].noisy)
    assert torch.equal(skipped[1].tokens[layer], plain[1].tokens[layer])
    assert not torch.equal(skipped[1].clean, plain[1].clean)


def looks_at(pipeline, prompts):
    with Observer(pipeline) as observer:
        draw(pipeline, callback=lambda pipe, step, *rest: observer.look(pipe, step, prompts))


def test_a_batch_that_does_not_fit_the_layout_is_refused():
    """A denoiser that is asked about three prompts for each picture guides in a way that is not known."""
    pipeline = random_pipeline("sd1")

    def triple(module, args, kwargs):
        text = kwargs["encoder_hidden_states"]
        kwargs["encoder_hidden_states"] = torch.cat([text, text[:2]])
        return (torch.cat([args[0], args[0][:2]]), *args[1:]), kwargs

    def back(module, args, kwargs, output):
        return (output[0][:4],)

    pipeline.unet.register_forward_pre_hook(triple, with_kwargs=True)
    pipeline.unet.register_forward_hook(back, with_kwargs=True)
    with pytest.raises(
        PipelineError, match="was given 6 prompts for 2 pictures; 2 without guidance or 4 with it"
    ):
        looks_at(pipeline, PROMPTS)


def test_pictures_come_out_decoded_as_without_it():
    pipeline = shared("sd3")
    plain = draw(pipeline, output_type="np")
    with Observer(pipeline):
        assert np.array_equal(draw(pipeline, output_type="np"), plain)
