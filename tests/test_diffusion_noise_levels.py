"""Noise levels: whatever the scheduler, picture and noise come back from what a perfect denoiser predicts."""

import inspect
import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.diffusion.noise_levels import (
    FAMILIES,
    MOST,
    NoiseLevel,
    SchedulerStep,
    check_scheduler,
    family_of,
    noise_level,
    prediction_of,
    recovered,
)
from judge.errors import PipelineError

# diffusers 0.42.1 hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
torch.set_num_threads(1)

SIZE = (2, 4, 3, 5)
LEARNED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = (
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
MIDWAY = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
"""Of the second order, with steps at noise levels between those of `sigmas`."""


def build(name, steps, **config):
    kind = getattr(diffusers, name)
    own = {} if FAMILIES[name] == "flow" else LEARNED
    # Pictures of these tests have unit variance; real latents may be clipped, which is for the scheduler to do.
    plain = {"clip_sample": False, "final_sigmas_type": "zero"}
    known = inspect.signature(kind.__init__).parameters
    scheduler = kind(**own, **{key: value for key, value in plain.items() if key in known}, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def run(scheduler, prediction, seed=0, *, perfect=True):
    """Every step of a schedule: the true level and picture beside what was recovered."""
    draw = torch.Generator().manual_seed(seed)
    picture = torch.randn(SIZE, generator=draw)
    noise = torch.randn(SIZE, generator=draw)
    sample = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for timestep in scheduler.timesteps:
        if perfect and type(scheduler).__name__ not in MIDWAY:
            add = getattr(scheduler, "scale_noise", None) or scheduler.add_noise
            given = (timestep[None], noise) if add.__name__ == "scale_noise" else (noise, timestep[None])
            sample = add(picture, *given)
        midway = getattr(scheduler, "sample", None) is not None and hasattr(scheduler, "sigmas_interpol")
        output = torch.randn(SIZE, generator=draw)
        if perfect:
            output = perfect_output(sample, picture, noise, prediction)
        read = (
            scheduler.scale_model_input(sample, timestep)
            if hasattr(scheduler, "scale_model_input")
            else sample
        )
        given = SchedulerStep(output, timestep, sample, midway)
        result = scheduler.step(output, timestep, sample)
        level = noise_level(scheduler, given)
        yield picture, noise, read, level, recovered(sample, output, level, prediction), result
        sample = result.prev_sample


def perfect_output(sample, picture, noise, prediction):
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return picture
    if prediction == "flow_prediction":
        return noise - picture
    # The sample is a * picture + s * noise: a and s by least squares.
    parts = torch.stack([picture.flatten(), noise.flatten()], 1).double()
    a, s = torch.linalg.lstsq(parts, sample.flatten()[:, None].double()).solution.flatten().tolist()
    return (a * noise - s * picture) / math.hypot(a, s)


def alike(found, wanted, limit=1e-4):
    return float((found - wanted).abs().max()) <= limit * float(wanted.abs().max())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in MIDWAY])
@settings(max_examples=4)
@given(
    steps=st.integers(4, 8),
    seed=st.integers(0, 9),
    choice=st.integers(0, 2),
    spacing=st.sampled_from(["trailing", "leading", "linspace"]),
)
def test_a_perfect_denoiser_gives_picture_and_noise_back(name, steps, seed, choice, spacing):
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    config = {"timestep_spacing": spacing} if "timestep_spacing" in known else {}
    if FAMILIES[name] == "flow":
        prediction = "flow_prediction"
    else:
        # Those that explode, and PNDM, know two kinds of predictions.
        fewer = FAMILIES[name] == "exploding" or name == "PNDMScheduler"
        prediction = ("epsilon", "v_prediction", "sample")[choice % 2 if fewer else choice]
        config["prediction_type"] = prediction
    scheduler = build(name, steps, **config)
    assert prediction_of(scheduler) == prediction
    before = -math.inf
    for picture, noise, _, level, (noisy, its_noise, clean), _ in run(scheduler, prediction, seed):
        a, s = math.exp(level.log_snr / 2), 1.0
        a, s = a / math.hypot(a, s), s / math.hypot(a, s)
        # A picture under little signal is told from noise no better than float32 does.
        assert alike(its_noise, noise, 2e-4 / s)
        assert alike(clean, picture, 2e-4 / a)
        assert alike(noisy, a * clean + s * its_noise)
        assert level.log_snr >= before - 1e-6
        before = level.log_snr


@pytest.mark.parametrize("name", FAMILIES)
def test_it_agrees_with_what_the_scheduler_itself_says(name):
    """Where a scheduler says what picture it sees, or scales what the denoiser reads, that is what is recovered."""
    compared = 0
    for prediction in ("epsilon", "v_prediction"):
        config = {} if FAMILIES[name] == "flow" else {"prediction_type": prediction}
        if FAMILIES[name] == "preserving":
            config["use_karras_sigmas"] = True
        scheduler = build(name, 6, **config)
        kind = prediction_of(scheduler)
        for _, _, read, level, (noisy, its_noise, clean), result in run(scheduler, kind, perfect=False):
            own = getattr(result, "pred_original_sample", None)
            if own is not None:
                assert alike(clean, own)
                compared += 1
            if FAMILIES[name] != "flow":
                assert alike(noisy, read)
            a = level.signal / math.hypot(level.signal, level.noise)
            s = level.noise / math.hypot(level.signal, level.noise)
            assert alike(a * clean + s * its_noise, noisy)
    saying = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", *MIDWAY)
    assert compared or name not in saying


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_solvers_convert_predictions_to_the_same_picture(name, prediction):
    scheduler = build(name, 5, prediction_type=prediction, use_flow_sigmas=prediction == "flow_prediction")
    converted = []
    convert = scheduler.convert_model_output

    def spy(output, *args, sample, **kwargs):
        converted.append(convert(output, *args, sample=sample, **kwargs))
        return converted[-1]

    scheduler.convert_model_output = spy
    for _, _, _, _, (_, noise, clean), _ in run(scheduler, prediction, perfect=False):
        # DEIS works with the noise, the others with the picture.
        assert alike(noise if name.startswith("DEIS") else clean, converted[-1])
    assert len(converted) == 5


@pytest.mark.parametrize("name", KARRAS)
def test_other_spacings_of_sigmas_are_read_from_the_scheduler(name):
    plain, karras = build(name, 8), build(name, 8, use_karras_sigmas=True)
    levels = [
        [level.log_snr for *_, level, _, _ in run(scheduler, "epsilon")] for scheduler in (plain, karras)
    ]
    assert len(levels[0]) == len(levels[1])
    assert max(abs(one - other) for one, other in zip(*levels, strict=True)) > 0.3


def test_four_steps_and_twenty_have_the_same_scale():
    """Steps of two schedules at the same timestep have the same log-SNR, whatever their numbers."""
    few, many = build("DDIMScheduler", 4), build("DDIMScheduler", 20)
    levels = [
        {
            int(time): level.log_snr
            for time, (*_, level, _, _) in zip(one.timesteps, run(one, "epsilon"), strict=True)
        }
        for one in (few, many)
    ]
    shared = levels[0].keys() & levels[1].keys()
    assert shared
    assert all(levels[0][time] == levels[1][time] for time in shared)


def test_pure_noise_has_an_end_of_the_scale_and_no_picture_where_noise_was_predicted():
    level = NoiseLevel(0.0, 1.0)
    assert level.log_snr == -MOST
    assert NoiseLevel(1.0, 0.0).log_snr == MOST
    sample, output = torch.randn(SIZE), torch.randn(SIZE)
    with pytest.raises(PipelineError, match="nothing can be known"):
        recovered(sample, output, level, "epsilon")
    _, noise, clean = recovered(sample, output, level, "v_prediction")
    assert torch.equal(clean, -output)
    assert torch.equal(noise, sample)
    zero = build(
        "DDIMScheduler",
        4,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    assert next(iter(run(zero, "v_prediction")))[3].log_snr == -MOST


def test_half_precision_stays_and_is_computed_in_full():
    level = NoiseLevel(1.0, 14.6)
    sample, output = 14.6 * torch.randn(SIZE), torch.randn(SIZE)
    full = recovered(sample, output, level, "epsilon")
    half = recovered(sample.half(), output.half(), level, "epsilon")
    assert all(tensor.dtype == torch.float16 for tensor in half)
    assert alike(half[2].float(), full[2], 4e-3)


def test_a_scheduler_that_is_not_known_is_refused():
    with pytest.raises(PipelineError, match="EDMEulerScheduler is not known; known are DDIMScheduler"):
        family_of(diffusers.EDMEulerScheduler())
    with pytest.raises(PipelineError, match="'original'"):
        check_scheduler(SimpleNamed(prediction_type="original"))
    with pytest.raises(PipelineError, match="invert_sigmas"):
        check_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


class SimpleNamed(diffusers.DDIMScheduler):
    """A scheduler of a user, on one of diffusers."""

    def __init__(self, **config):
        self.settings = SimpleNamespace(**config)

    @property
    def config(self):
        return self.settings
