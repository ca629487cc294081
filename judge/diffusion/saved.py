"""Detectors as folders: what they are and were trained on in JSON, weights beside it; and for which pipelines they are.

detector.json          family, sizes, architecture of the pipeline, lessons, log-SNRs, what was measured
detector.safetensors   weights, float16
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, PipelineError, first_line
from judge.lessons.envelope import LessonsEnvelope
from judge.rivals.weights import read_tensors
from judge.runs.files import nearest_path, write_atomically
from judge.standins.shipped import checkpoint_path
from prompts.errors import TaxonomyError
from prompts.taxonomy import taxonomy_from_data

from .cross_attention import InLoopDetector
from .first_noise import NoiseDetector
from .latent_colours import FlowGuardDetector
from .learned import LearnedDetector, Lessons, denoiser_of
from .text_alone import PromptOnly

ABOUT, WEIGHTS = "detector.json", "detector.safetensors"
FORMAT = 1
SHIPPED = ("tiny-detector",)
"""Names of detectors inside the package; of `tiny-diffusion`."""
FAMILIES: dict[str, type[LearnedDetector]] = {
    family.kind: family for family in (InLoopDetector, FlowGuardDetector, NoiseDetector, PromptOnly)
}


def save_detector(detector: LearnedDetector, folder: str | Path) -> None:
    """Write a trained detector; a folder that holds one is overwritten.

    Raises:
        CheckpointError: it was not trained.
    """
    from safetensors.torch import save

    folder, lessons = Path(folder), detector.lessons
    if lessons is None:
        raise CheckpointError(f"The detector {detector.name} was not trained; train it before saving it.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in detector.head.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(weights))
    about = {
        "format": FORMAT,
        "kind": detector.kind,
        "sizes": detector.sizes(),
        "layers": list(detector.layers),
        "architecture": architecture(detector.pipeline),
        "log_snrs": list(detector.log_snrs),
        "taxonomy": lessons.taxonomy.to_dict(),
        "envelope": lessons.envelope.to_dict(),
        "words": sorted(lessons.words),
        "evidence": lessons.evidence,
        "weights": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
    }
    write_atomically(folder / ABOUT, json.dumps(about, ensure_ascii=False) + "\n")


def load_detector(name_or_path: str | Path, pipeline: Any) -> LearnedDetector:
    """A trained detector for a pipeline.

    Args:
        name_or_path: a folder that `save_detector` wrote, or `tiny-detector`.
        pipeline: of the architecture that it was trained on; its weights may be others.

    Raises:
        CheckpointError: there is none, or it is damaged.
        PipelineError: it was made for another architecture; the message says for which.
    """
    folder = Path(name_or_path)
    if str(name_or_path) in SHIPPED and not folder.exists():
        folder = checkpoint_path(str(name_or_path))
    if not (folder / ABOUT).is_file():
        raise CheckpointError(
            f"{name_or_path} holds no {ABOUT}{nearest_path(str(folder))}; give the folder of a detector, or "
            f"{', '.join(SHIPPED)}."
        )
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["kind"] not in FAMILIES:
            raise ValueError(f"format {about['format']} and kind {about['kind']!r} are not known here")
        made_for, layers = dict(about["architecture"]), tuple(about["layers"])
        found = architecture(pipeline)
        if made_for != found:
            raise PipelineError(_refusal(folder, made_for, found))
        detector = FAMILIES[about["kind"]].of_sizes(pipeline, about["sizes"], layers=layers, name=folder.name)
        if hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != about["weights"]:
            raise ValueError(f"{WEIGHTS} is not the file that {ABOUT} was written with")
        detector.head.load_state_dict(read_tensors(folder / WEIGHTS, who="a detector"))
        detector.head.requires_grad_(False).to(next(denoiser_of(pipeline).parameters()).device)
        low, high = about["log_snrs"]
        lessons = Lessons(
            taxonomy_from_data(about["taxonomy"], str(folder / ABOUT)),
            LessonsEnvelope.from_dict(about["envelope"], str(folder / ABOUT)),
            frozenset(map(str, about["words"])),
            dict(about["evidence"]),
        )
        detector.finish(lessons, (float(low), float(high)), margin=0.0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, TaxonomyError) as error:
        if isinstance(error, PipelineError | CheckpointError):
            raise
        raise CheckpointError(f"{folder} holds no detector that can be read: {first_line(error)}") from error
    return detector


def architecture(pipeline: Any) -> dict[str, str]:
    """What a detector's pipeline must have in common with the one it was trained on: all but the weights.

    Fine-tuned weights and LoRAs pass, and may change what a detector sees; measure it there.
    """
    denoiser = denoiser_of(pipeline)
    # Names of files and versions say nothing about the network, and any size of picture passes through it.
    config: Any = denoiser.config
    settings = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    settings.pop("sample_size", None)
    text = json.dumps(settings, sort_keys=True, default=str)
    encoder = getattr(pipeline, "text_encoder", None)
    about = getattr(encoder, "config", None)
    return {
        "denoiser": type(denoiser).__name__,
        "config": hashlib.sha256(text.encode()).hexdigest()[:16],
        "text encoder": type(encoder).__name__,
        "text width": str(getattr(about, "hidden_size", None) or getattr(about, "d_model", None)),
    }


def _refusal(folder: Path, made_for: dict[str, str], found: dict[str, str]) -> str:
    different = [name for name in made_for if found.get(name) != made_for[name]]
    return (
        f"{folder.name} was trained for a pipeline with "
        + ", ".join(f"{name} {made_for[name]}" for name in different)
        + "; this one has "
        + ", ".join(f"{name} {found.get(name)}" for name in different)
        + ". Train a detector for it (`arbiter detector`), or use the baseline that needs no training."
    )
