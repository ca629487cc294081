"""Stopping one picture of a batch: what is left is equal to the bit, under every kind of scheduler and generator."""

import inspect

import numpy as np
import pytest
import torch
from fixtures_detectors import DOG, PROMPTS, TAXONOMY, flags, own_noise, pipeline, row_by_row, untouched

from judge.diffusion.guard import DiffusionGuard
from judge.diffusion.guarded import guarded
from judge.diffusion.stopping import WholeBatchStep, blank_rows, keep_rows, rows_with_nan

# Schedulers of diffusers turn tensors into arrays the way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
SURVIVORS = [0, 2, 3]


def draw(name, detector, generator, steps=4, keep_batch=False, **arguments):
    pipe = pipeline(name)
    guard = DiffusionGuard(detector, TAXONOMY, at=(2, 3), keep_batch=keep_batch)
    output = guarded(pipe, guard)(
        PROMPTS,
        num_inference_steps=steps,
        generator=generator,
        output_type="np",
        height=32,
        width=32,
        **arguments,
    )
    return guard, output.images


def compare(name, generator, tolerance=0.0, **arguments):
    """Draw four pictures, once as they are, once with the second stopped at step 2."""
    torch.manual_seed(3)
    _, whole = draw(name, flags(), generator(), **arguments)
    torch.manual_seed(3)
    guard, images = draw(name, flags(PROMPTS[DOG]), generator(), **arguments)
    assert [verdict.stopped_at for verdict in guard.verdicts] == [None, 2, None, None]
    assert np.abs(images[SURVIVORS] - whole[SURVIVORS]).max() <= tolerance
    assert images[DOG].max() == 0
    assert whole[DOG].max() > 0
    assert untouched(pipeline(name))
    return guard


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3"])
def test_survivors_are_equal_to_the_bit(name, guidance, monkeypatch):
    row_by_row(pipeline(name), monkeypatch)
    guard = compare(name, own_noise, guidance_scale=guidance)
    assert guard.kept == (0, 2, 3)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_kernels_for_another_batch_size_may_round_otherwise(name):
    guard = compare(name, own_noise, guidance_scale=5.0, tolerance=1e-5)
    assert guard.kept == (0, 2, 3)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_a_batch_that_is_kept_is_equal_to_the_bit_whatever_the_kernels(name):
    guard = compare(name, own_noise, guidance_scale=1.0, keep_batch=True)
    assert guard.kept == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_where_rows_cannot_be_dropped_the_picture_is_blank(name):
    guard = compare(name, own_noise)
    assert guard.kept == (0, 1, 2, 3)


def one_generator():
    return torch.Generator().manual_seed(1)


def no_generator():
    return None


@pytest.mark.parametrize(
    ("scheduler", "generator"),
    [
        ("DDPMScheduler", one_generator),
        ("EulerAncestralDiscreteScheduler", no_generator),
        ("LCMScheduler", own_noise),
        ("DPMSolverMultistepScheduler", own_noise),
        ("UniPCMultistepScheduler", one_generator),
        ("PNDMScheduler", own_noise),
        ("HeunDiscreteScheduler", own_noise),
    ],
)
def test_noise_and_history_of_a_scheduler_stay_with_their_pictures(scheduler, generator, monkeypatch):
    import diffusers

    pipe = pipeline("sd1")
    monkeypatch.setattr(pipe, "scheduler", getattr(diffusers, scheduler).from_config(pipe.scheduler.config))
    row_by_row(pipe, monkeypatch)
    compare("sd1", generator, guidance_scale=5.0)


def test_pictures_of_one_prompt_are_stopped_one_by_one(monkeypatch):
    pipe = pipeline("sd1")
    row_by_row(pipe, monkeypatch)

    def call(detector):
        guard = DiffusionGuard(detector, TAXONOMY, at=(2,))
        call = guarded(pipe, guard)
        output = call(
            ["a", "b"],
            num_images_per_prompt=2,
            num_inference_steps=3,
            generator=own_noise(),
            output_type="np",
        )
        return guard, output.images

    _, whole = call(flags())
    guard, images = call(flags("b"))
    assert [verdict.stopped_at for verdict in guard.verdicts] == [None, None, 2, 2]
    assert np.array_equal(images[:2], whole[:2])


def test_rows_of_both_halves_of_guidance():
    tensors = {
        "latents": torch.arange(3),
        "both": torch.arange(6),
        "list": ["a", "b", "c"],
        "other": torch.zeros(4),
        "number": 7,
    }
    smaller = keep_rows(tensors, [0, 2], 3)
    assert smaller["latents"].tolist() == [0, 2]
    assert smaller["both"].tolist() == [0, 2, 3, 5]
    assert smaller["list"] == ["a", "c"]
    assert smaller["other"] is tensors["other"]
    assert smaller["number"] == 7


def test_the_scheduler_sees_the_whole_batch_and_is_given_back():
    class Scheduler:
        seen = None

        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            self.seen = model_output.clone(), sample.clone()
            return (sample + model_output,)

    scheduler = Scheduler()
    whole = WholeBatchStep(scheduler)
    assert "generator" in inspect.signature(scheduler.step).parameters
    whole.begin(3)
    assert scheduler.step(torch.ones(3, 2), 0, torch.ones(3, 2))[0].tolist() == [[2, 2]] * 3
    whole.kept = [0, 2]
    found = scheduler.step(torch.tensor([[1.0], [2.0]]), 0, torch.tensor([[3.0], [4.0]]))
    assert found[0].tolist() == [[4], [6]]
    assert scheduler.seen[0].tolist() == [[1], [0], [2]]
    whole.close()
    whole.close()
    assert "step" not in vars(scheduler)


def test_rows_that_are_not_finite():
    latents = torch.zeros(4, 1, 2, 2)
    latents[1, 0, 0, 1] = torch.nan
    latents[3, 0, 1, 1] = -torch.inf
    assert rows_with_nan(latents) == [1, 3]
    assert rows_with_nan(blank_rows(latents, [1, 3])) == []
    assert blank_rows(latents, []) is latents
