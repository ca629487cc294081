"""A guard for ComfyUI.

In the folder `custom_nodes` of ComfyUI, in whose environment Arbiter is installed, a file of one line brings its nodes:

    from judge.diffusion.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

*Arbiter detector* loads a detector; *Arbiter guard* stands between the model's loader and the sampler. It sees what the
sampler sees after guidance (`set_model_sampler_post_cfg_function`): the picture and the noise predicted so far, and the
prompt's embeddings. So it works with detectors that read these: `DecodedPicture` on any classifier, FlowGuard's, NDM's,
the prompt alone where there is one, and trained ones without attention layers. Detectors with layers are refused, since
ComfyUI's networks are not those of diffusers.

- A stopped picture ends the prompt as its Cancel button does (`interrupt`), or comes out as latents of zeros (`blank`).
  Rows cannot be dropped there, so blanks save nothing.
- Looks are taken at log-SNRs. A look that failed, or that never came because sampling ended before it, leaves the
  picture unjudged, and that stops it.
- Previews are drawn before anybody has looked; start ComfyUI with `--preview-method none` where that matters.
"""

import importlib
import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from judge.errors import ConfigError, PipelineError, first_line
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

from .detector import Detector
from .look import Look
from .look_times import times_of_looks
from .look_verdicts import NOT_FINITE, not_judged, verdicts_of_look
from .noise_levels import NoiseLevel
from .stopping import rows_with_nan

LOG = logging.getLogger("arbiter")


class SamplerGuard:
    """Looks at what one sampler of ComfyUI predicts, and blanks or ends it; for any number of calls, one by one."""

    def __init__(
        self,
        detector: Detector,
        taxonomy: Taxonomy,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        at: tuple[float, ...] | None = None,
        interrupt: Callable[[], BaseException] | None = None,
    ) -> None:
        """A guard.

        Args:
            detector: without attention layers.
            taxonomy: which categories are forbidden.
            threshold: in [0, 1].
            at: log-SNRs, as `DiffusionGuard` reads them.
            interrupt: makes the exception that ends the prompt; None to blank pictures.

        Raises:
            PipelineError: the detector reads attention layers.
            ConfigError: `at` or the threshold are off.
        """
        if detector.layers:
            raise PipelineError(
                f"{detector.name} reads attention layers of diffusers ({', '.join(detector.layers)}), which ComfyUI's "
                "networks do not have. Train one without layers, or use DecodedPicture."
            )
        if not 0 <= threshold <= 1:
            raise ConfigError(f"A threshold lies between 0 and 1; got {threshold!r}.")
        self.detector, self.taxonomy, self.threshold, self.interrupt = (
            detector,
            taxonomy,
            threshold,
            interrupt,
        )
        self.at = times_of_looks(at, None, detector)
        if isinstance(self.at[0], int):
            raise ConfigError(
                f"ComfyUI is looked at by log-SNR, not by step: give {float(self.at[0])}, not {self.at[0]}."
            )
        self.begin()

    def begin(self) -> None:
        """Forget the last call."""
        self.taken: set[int] = set()
        self.stopped: dict[int, Verdict] = {}
        """Row -> the verdict that stopped it."""

    def after_guidance(self, arguments: dict[str, Any]) -> Tensor:
        """What `set_model_sampler_post_cfg_function` calls; gives the predicted picture, with zeros where stopped.

        Raises:
            BaseException: what `interrupt` makes, as soon as a picture is stopped.
        """
        denoised: Tensor = arguments["denoised"]
        sigma = float(arguments["sigma"].flatten()[0])
        try:
            level = _noise_level(arguments["model"].model_sampling, sigma)
            open_looks = set(range(len(self.at))) - self.taken
            due = {place for place in open_looks if self.at[place] <= level.log_snr}
            if due:
                self.taken |= due
                self._judge(_look(arguments, level))
        except Exception as error:
            # Whatever went wrong, nothing was judged, and that is never safe.
            self.taken = set(range(len(self.at)))
            self._stop_all(len(denoised), f"the look failed: {type(error).__name__}: {first_line(error)}")
        self._end_if_asked()
        return self._blanked(denoised)

    def end(self, samples: Tensor) -> Tensor:
        """The finished latents, with zeros where stopped; also where a look never came, or they hold no numbers.

        Raises:
            BaseException: as `after_guidance`.
        """
        missing = [self.at[place] for place in range(len(self.at)) if place not in self.taken]
        if missing:
            self._stop_all(len(samples), f"no look at log-SNR {missing[0]:g}: sampling ended before it")
        for row in rows_with_nan(samples):
            self._stop(row, not_judged(NOT_FINITE, self.taxonomy, self.detector))
        self._end_if_asked()
        return self._blanked(samples)

    def _judge(self, look: Look) -> None:
        verdicts = verdicts_of_look(self.detector, self.taxonomy, look, limits=self.threshold)
        for row, verdict in enumerate(verdicts):
            if verdict.status != "safe":
                self._stop(row, verdict)

    def _stop_all(self, rows: int, reason: str) -> None:
        for row in range(rows):
            self._stop(row, not_judged(reason, self.taxonomy, self.detector))

    def _stop(self, row: int, verdict: Verdict) -> None:
        if row not in self.stopped:
            self.stopped[row] = verdict
            LOG.warning("Picture %d was stopped: %s", row, verdict.category or verdict.reason)

    def _end_if_asked(self) -> None:
        if self.stopped and self.interrupt is not None:
            raise self.interrupt()

    def _blanked(self, latents: Tensor) -> Tensor:
        if not self.stopped:
            return latents
        blanked = latents.clone()
        blanked[sorted(self.stopped)] = 0
        return blanked


def _noise_level(sampling: Any, sigma: float) -> NoiseLevel:
    """Of latents that ComfyUI's samplers hold: picture + sigma * noise, or for flows (1 - sigma) picture + sigma noise.

    Raises:
        PipelineError: latents of another kind.
    """
    names = {base.__name__ for base in type(sampling).__mro__}
    if not any(name.startswith("IMG_TO_IMG") for name in names):
        if "CONST" in names:
            return NoiseLevel(1 - sigma, sigma)
        if "EPS" in names and getattr(sampling, "sigma_data", 1.0) == 1.0:
            return NoiseLevel(1.0, sigma)
    raise PipelineError(f"how noisy latents are under {type(sampling).__name__} is not known")


def _look(arguments: dict[str, Any], level: NoiseLevel) -> Look:
    """What a step shows, in the scales of `Look`."""
    latents, clean = arguments["input"], arguments["denoised"]
    rows = len(latents)
    sigmas = arguments["model_options"].get("transformer_options", {}).get("sample_sigmas")
    steps = 0 if sigmas is None else len(sigmas) - 1
    step = (
        0
        if sigmas is None
        else int((sigmas.cpu() - arguments["sigma"].flatten()[0].cpu()).abs().argmin()) + 1
    )
    return Look(
        step=step,
        steps=steps,
        log_snr=level.log_snr,
        noisy=latents / math.hypot(level.signal, level.noise),
        noise=(latents - level.signal * clean) / level.noise,
        clean=clean,
        tokens={},
        text=_text(arguments.get("cond"), latents),
        prompts=(None,) * rows,
    )


def _text(cond: Any, latents: Tensor) -> Tensor:
    """(B, L, E) embeddings of the prompt; NaN where there are several, of regions or times, or none.

    Detectors that read the prompt then come to no score.
    """
    found = [
        part["model_conds"]["c_crossattn"].cond for part in cond or () if "c_crossattn" in part["model_conds"]
    ]
    rows = len(latents)
    if len(found) != 1 or len(cond) != 1 or len(found[0]) not in (1, rows):
        return latents.new_full((rows, 1, 1), math.nan)
    text: Tensor = found[0]
    return text.expand(rows, -1, -1)


class ArbiterDetector:
    """Node: loads the detector of a diffusion pipeline."""

    RETURN_TYPES: ClassVar = ("ARBITER_DETECTOR",)
    FUNCTION = "load"
    CATEGORY = "arbiter"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        """The node's inputs, as ComfyUI reads them."""
        return {
            "required": {
                "pipeline": (
                    "STRING",
                    {"default": "", "tooltip": "The same model as a pipeline of diffusers."},
                ),
                "detector": (
                    "STRING",
                    {"default": "", "tooltip": "Folder of a trained detector, or decoded:CLASSIFIER."},
                ),
            }
        }

    def load(self, pipeline: str, detector: str) -> tuple[Detector]:
        """The detector in a folder; or, as `decoded:CLASSIFIER`, a classifier of decoded pictures."""
        from judge.classifiers import load_classifier

        from .baselines import DecodedPicture
        from .pipelines import load_pipeline
        from .saved import load_detector

        loaded = load_pipeline(pipeline)
        kind, _, name = detector.partition(":")
        if kind == "decoded":
            return (DecodedPicture(loaded, load_classifier(name)),)
        return (load_detector(detector, loaded),)


class ArbiterGuard:
    """Node: a model whose samplers are guarded."""

    RETURN_TYPES: ClassVar = ("MODEL",)
    FUNCTION = "guard"
    CATEGORY = "arbiter"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        """The node's inputs, as ComfyUI reads them."""
        return {
            "required": {
                "model": ("MODEL",),
                "detector": ("ARBITER_DETECTOR",),
                "taxonomy": (
                    "STRING",
                    {"default": "", "tooltip": "A taxonomy's YAML file, or one that ships."},
                ),
                "threshold": ("FLOAT", {"default": DEFAULT_THRESHOLD, "min": 0.0, "max": 1.0, "step": 0.01}),
                "looks": (
                    "STRING",
                    {"default": "", "tooltip": "Log-SNRs, such as -2, 0, 2; empty: the detector's."},
                ),
                "on_stop": (["interrupt", "blank"],),
            }
        }

    def guard(
        self, model: Any, detector: Detector, taxonomy: str, threshold: float, looks: str, on_stop: str
    ) -> tuple[Any]:
        """A clone of a model patcher with the guard in its sampling."""
        from prompts.taxonomy_file import load_taxonomy

        if on_stop not in ("interrupt", "blank"):
            raise ConfigError(f"on_stop is interrupt or blank; got {on_stop!r}.")
        try:
            at = tuple(float(part) for part in looks.replace(",", " ").split()) or None
        except ValueError:
            raise ConfigError(f"Looks are log-SNRs, such as -2, 0, 2; got {looks!r}.") from None
        # ComfyUI's own modules, which exist only inside it.
        interrupt = importlib.import_module("comfy.model_management").InterruptProcessingException
        wrappers = importlib.import_module("comfy.patcher_extension").WrappersMP
        guard = SamplerGuard(
            detector,
            load_taxonomy(taxonomy),
            threshold,
            at=at,
            interrupt=interrupt if on_stop == "interrupt" else None,
        )

        def sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
            guard.begin()
            return guard.end(executor(*args, **kwargs))

        guarded = model.clone()
        guarded.set_model_sampler_post_cfg_function(guard.after_guidance)
        guarded.add_wrapper_with_key(wrappers.OUTER_SAMPLE, "arbiter", sample)
        return (guarded,)


NODE_CLASS_MAPPINGS = {"ArbiterDetector": ArbiterDetector, "ArbiterGuard": ArbiterGuard}
NODE_DISPLAY_NAME_MAPPINGS = {"ArbiterDetector": "Arbiter detector", "ArbiterGuard": "Arbiter guard"}
