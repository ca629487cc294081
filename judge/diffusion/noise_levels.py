"""How noisy latents are, and what a denoiser predicts in them, under any scheduler of diffusers.

Latents x hold a picture and unit noise, x = a * picture + s * noise. Schedulers differ in a and s (variance preserving,
a^2 + s^2 = 1; variance exploding, a = 1; flow, a = 1 - s), in where they keep them (by timestep or by step), and in
what the denoiser predicts. Here all become one: latents scaled to a^2 + s^2 = 1, the picture, the noise, and the
log-SNR log(a^2 / s^2) (Kingma et al. 2021, "Variational diffusion models", section 3.1).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor

from judge.errors import PipelineError

Family = Literal["preserving_by_time", "preserving", "exploding", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""The noise, the velocity a * noise - s * picture, the picture, or the flow noise - picture."""

FAMILIES: dict[str, Family] = {
    "DDIMScheduler": "preserving_by_time",
    "DDIMParallelScheduler": "preserving_by_time",
    "DDPMScheduler": "preserving_by_time",
    "DDPMParallelScheduler": "preserving_by_time",
    "LCMScheduler": "preserving_by_time",
    "PNDMScheduler": "preserving_by_time",
    "TCDScheduler": "preserving_by_time",
    "DEISMultistepScheduler": "preserving",
    "DPMSolverMultistepScheduler": "preserving",
    "DPMSolverSinglestepScheduler": "preserving",
    "SASolverScheduler": "preserving",
    "UniPCMultistepScheduler": "preserving",
    "EulerAncestralDiscreteScheduler": "exploding",
    "EulerDiscreteScheduler": "exploding",
    "HeunDiscreteScheduler": "exploding",
    "KDPM2AncestralDiscreteScheduler": "exploding",
    "KDPM2DiscreteScheduler": "exploding",
    "LMSDiscreteScheduler": "exploding",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
}
"""Class of diffusers -> how its latents are made; by timestep, or by the step's number in `sigmas`."""
MOST = 20.0
"""Log-SNRs are kept within -MOST and MOST: pure noise and a finished picture have none."""


@dataclass(frozen=True)
class NoiseLevel:
    """Shares of picture and noise in latents."""

    signal: float
    """a, at least 0."""
    noise: float
    """s, at least 0."""

    @property
    def log_snr(self) -> float:
        """log(a^2 / s^2), within `MOST` of 0."""
        if self.signal <= 0 or self.noise <= 0:
            return -MOST if self.signal <= 0 else MOST
        return max(-MOST, min(MOST, 2 * math.log(self.signal / self.noise)))


@dataclass(frozen=True)
class SchedulerStep:
    """What one call of `scheduler.step` was given, and where the scheduler stood."""

    output: Tensor
    """What the denoiser predicted, after guidance."""
    timestep: Any
    sample: Tensor
    """The latents that it was predicted in."""
    midway: bool
    """Whether a method of the second order was between two steps."""


def check_scheduler(scheduler: Any) -> None:
    """Raise `PipelineError` of a scheduler under which it is not known how noisy latents are, or what is predicted."""
    prediction_of(scheduler)
    if getattr(scheduler.config, "invert_sigmas", False):
        raise PipelineError(
            "Schedulers with `invert_sigmas` count noise the other way round, which is not known here."
        )


def family_of(scheduler: Any) -> Family:
    """How a scheduler's latents are made.

    Raises:
        PipelineError: nothing is known of its class.
    """
    for base in type(scheduler).__mro__:
        if base.__name__ in FAMILIES and base.__module__.partition(".")[0] == "diffusers":
            return FAMILIES[base.__name__]
    raise PipelineError(
        f"How noisy latents are under {type(scheduler).__name__} is not known; known are {', '.join(FAMILIES)}."
    )


def prediction_of(scheduler: Any) -> Prediction:
    """What the denoiser predicts, as the scheduler reads it.

    Raises:
        PipelineError: a kind of prediction that is not known.
    """
    if family_of(scheduler) == "flow":
        return "flow_prediction"
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction", "sample", "flow_prediction"):
        raise PipelineError(
            f"The scheduler reads predictions as {kind!r}; known are epsilon, v_prediction, sample and flow_prediction."
        )
    return cast(Prediction, kind)


def noise_level(scheduler: Any, step: SchedulerStep) -> NoiseLevel:
    """The level of the latents that entered a step, right after `scheduler.step` returned."""
    family = family_of(scheduler)
    if family == "preserving_by_time":
        kept = float(scheduler.alphas_cumprod[int(step.timestep)])
        return NoiseLevel(math.sqrt(kept), math.sqrt(1 - kept))
    number = scheduler.step_index - 1
    if step.midway:
        # The ancestral one keeps the level between two steps at the place of the first.
        sigma = float(scheduler.sigmas_interpol[number - hasattr(scheduler, "sigmas_down")])
    else:
        sigma = float(scheduler.sigmas[number])
    if family == "flow" or (family == "preserving" and getattr(scheduler.config, "use_flow_sigmas", False)):
        return NoiseLevel(1 - sigma, sigma)
    if family == "preserving":
        whole = math.hypot(1, sigma)
        return NoiseLevel(1 / whole, sigma / whole)
    return NoiseLevel(1.0, sigma)


def recovered(
    sample: Tensor, output: Tensor, level: NoiseLevel, prediction: Prediction
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents scaled to signal power + noise power = 1, the noise and the picture predicted in them.

    Args:
        sample: (B, ...) latents as the scheduler has them.
        output: (B, ...) prediction.
        level: of the sample.
        prediction: what the output is.

    Returns:
        noisy, noise and clean, (B, ...) each; noisy = a clean + s noise with a and s scaled to a^2 + s^2 = 1.

    Raises:
        PipelineError: noise was predicted in latents that are nothing but noise, which says nothing of a picture.
    """
    whole = math.hypot(level.signal, level.noise)
    a, s = level.signal / whole, level.noise / whole
    noisy, predicted = sample.float() / whole, output.float()
    if prediction == "epsilon":
        if a == 0:
            raise PipelineError(
                "The latents of this step are nothing but noise and the denoiser predicts noise: nothing can be known "
                "of the picture. Look at a later step."
            )
        noise = predicted
        clean = (noisy - s * noise) / a
    elif prediction == "v_prediction":
        clean = a * noisy - s * predicted
        noise = s * noisy + a * predicted
    elif prediction == "flow_prediction":
        # x + a flow = (a + s) noise, and x - s flow = (a + s) picture.
        clean = (noisy - s * predicted) / (a + s)
        noise = (noisy + a * predicted) / (a + s)
    else:
        clean = predicted
        noise = (noisy - a * clean) / s
    return noisy.to(sample.dtype), noise.to(sample.dtype), clean.to(sample.dtype)
