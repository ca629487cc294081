"""Costs of cascades around a generator in a run: priced on its pipeline, compared on its test pictures."""

from collections.abc import Sequence
from typing import Any

from judge.cascade.prompt_filter import PromptFilter
from judge.cascade.similarity import Platt, Similarities
from judge.diffusion.detector import Detector
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

from .costs import compare_costs
from .prices import measure_prices
from .stage_scores import Questions, split_prompts


def measure_savings(
    questions: Questions,
    pipeline: Any,
    student: Classifier,
    encoder: DualEncoder,
    detector: Detector,
    taxonomy: Taxonomy,
    *,
    at: Sequence[int],
    steps: int,
    guidance: float,
    batch_size: int,
    promises: Sequence[float],
    false_alarms: float,
    unsafe_share: float,
    seed: int = 0,
) -> dict[str, Any]:
    """What stopping early saves against drawing everything and filtering the finished pictures, at equal misses.

    Args:
        questions: of the test pictures; a third of the prompts each tunes, calibrates and tests.
        pipeline: that made them.
        student: that labelled them.
        encoder: of the prompt filter.
        detector: that looked at them.
        taxonomy: for timing.
        at: steps of the looks.
        steps: of a picture.
        guidance: of a picture.
        batch_size: pictures that are timed together.
        promises: total miss rates.
        false_alarms: share of safe pictures that may be stopped early.
        unsafe_share: of what is asked for.
        seed: of the thirds.

    Returns:
        As `costs.compare_costs`; or `reason` alone, where there are too few pictures to promise anything.
    """
    try:
        parts = split_prompts(questions, (1, 1, 1), seed)
        curve = Platt.fit(parts[0].unsafe.astype(float), parts[0].similarity)
        prices = measure_prices(
            pipeline,
            questions.prompts[:batch_size].tolist(),
            taxonomy,
            detector=detector,
            prompt_filter=PromptFilter(Similarities(encoder), curve),
            student=student,
            steps=steps,
            guidance=guidance,
        )
        return compare_costs(
            parts,
            prices,
            at,
            steps,
            promises=promises,
            false_alarms=false_alarms,
            unsafe_share=unsafe_share,
            seed=seed,
        )
    except ConfigError as error:
        return {"reason": str(error)}
