"""Making pictures to learn from: what each look showed, and what the finished picture turned out to be."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Classifier, score_each_category
from prompts.taxonomy import Taxonomy

from .latent_colours import decoded
from .look import Look
from .observer import Observer
from .pairs import STORE, Pair, PairStore, create_store
from .saved import architecture


def collect_pairs(
    pipeline: Any,
    pairs: Sequence[Pair],
    classifier: Classifier,
    taxonomy: Taxonomy,
    folder: str | Path,
    *,
    steps: int = 20,
    at: Sequence[int] = (4, 6, 9),
    guidance: float = 5.0,
    batch_size: int = 32,
    layers: Sequence[str] = (),
    encoder: DualEncoder | None = None,
    perceived: Sequence[int] | None = None,
    part: tuple[int, int] = (0, 1),
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairStore:
    """Make the pictures of N pairs, label each as it turned out, and keep what was seen on the way.

    Each picture's noise comes from a generator of its own seed, so a row does not depend on its batch. A folder that
    holds a part of the same collection is gone on with. Several processes may fill one folder, each its part.

    Args:
        pipeline: any diffusers pipeline that can be watched.
        pairs: what to make.
        classifier: labels the finished pictures, alone: it is not shown the prompts.
        taxonomy: of K categories; those that the classifier cannot judge are NaN.
        folder: of the store.
        steps: denoising steps of a picture.
        at: steps after which to look, from 1 to `steps`.
        guidance: scale of classifier-free guidance.
        batch_size: pictures made at a time.
        layers: names of the attention layers whose tokens are kept.
        encoder: keeps its tokens of the finished pictures too, as a target that needs no labels.
        perceived: steps of `at` whose predicted picture is decoded and encoded too; by default every second one,
            from the last, as each costs a pass of decoder and encoder.
        part: (number, parts): make the rows of this number, counted modulo the parts.
        call: further arguments of the pipeline's call, ready for JSON, such as `max_sequence_length`.
        progress: called with (rows done, N) after each batch.

    Raises:
        ConfigError: no pairs, or steps to look at that do not exist.
        PipelineError: the pipeline cannot be watched.
        CheckpointError: the folder holds another collection, or a service that labels gave no answer.
    """
    folder, at = Path(folder), tuple(sorted({int(step) for step in at}))
    if not pairs or not at or at[0] < 1 or at[-1] > steps:
        raise ConfigError(
            f"Cannot collect {len(pairs)} pairs with looks after the steps {at} of {steps}: "
            f"give at least one pair, and steps from 1 to {steps}."
        )
    about = {
        "architecture": architecture(pipeline),
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": steps,
        "at": list(at),
        "guidance": guidance,
        "call": dict(call or {}),
        "layers": list(layers),
        "taxonomy": taxonomy.to_dict(),
        "labelled_by": classifier.name,
        "encoder": encoder and encoder.fingerprint,
    }
    store = _opened(folder, pairs, about)
    missing = np.arange(part[0], len(pairs), part[1])
    if store is not None:
        missing = missing[~store.done[missing]]
    with Observer(pipeline, layers) as observer:
        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            some = [pairs[row] for row in rows]
            looks, final, images, flagged = _make(pipeline, observer, some, at, about)
            unknown = flagged | ~torch.isfinite(final).flatten(1).all(1).cpu().numpy() | _uniform(images)
            values = _values(looks, final)
            values["labels"] = _labels(classifier, images, taxonomy, unknown)
            if encoder is not None:
                values["features"] = _half(encoder.encode_images(images))
                for step in at[::-2] if perceived is None else perceived:
                    values[f"step_{step:02d}.perceived"] = _half(
                        _encoded(pipeline, encoder, looks[step].clean)
                    )
            made = {**about, "timesteps": int(pipeline.num_timesteps)}
            store = store or _created(folder, pairs, made, looks, values)
            store.write(rows, values)
            if progress is not None:
                progress(int(store.done.sum()), len(pairs))
    return store or PairStore(folder)


def _opened(folder: Path, pairs: Sequence[Pair], about: Mapping[str, Any]) -> PairStore | None:
    """The store in a folder; None where there is none yet."""
    if not (folder / STORE).exists():
        return None
    store = PairStore(folder)
    different = [name for name, value in about.items() if store.about.get(name) != value]
    if store.pairs != tuple(pairs):
        different.append("pairs")
    if different:
        raise CheckpointError(
            f"{folder} holds a collection of other {', '.join(different)}; choose another folder, or remove it."
        )
    return store


def _created(
    folder: Path,
    pairs: Sequence[Pair],
    about: Mapping[str, Any],
    looks: Mapping[int, Look],
    values: Mapping[str, NDArray[Any]],
) -> PairStore:
    """A store of the shapes that the first batch has; another process may have made it in the meantime."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / STORE).exists():
            log_snrs = {str(step): looks[step].log_snr for step in about["at"]}
            shapes = {name: (value.shape[1:], str(value.dtype)) for name, value in values.items()}
            shapes["done"] = ((), "bool")
            create_store(folder, pairs, {**about, "log_snrs": log_snrs, "shapes": shapes})
    return _opened(folder, pairs, about) or PairStore(folder)


def _make(
    pipeline: Any, observer: Observer, pairs: Sequence[Pair], at: Sequence[int], about: Mapping[str, Any]
) -> tuple[dict[int, Look], Tensor, list[Any], NDArray[np.bool_]]:
    """Looks after some steps, the last one's predicted latents, the B finished pictures, and (B,) which are blackened.

    Some schedulers make more steps than they are asked for: PNDM one, those of the second order nearly twice as many.
    """
    prompts = [pair.prompt for pair in pairs]
    looks: dict[int, Look] = {}
    final: list[Tensor] = []

    def watch(_: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last = index + 1 == pipeline.num_timesteps
        if last or index + 1 in at:
            look = observer.look(pipeline, index, prompts)
            if index + 1 in at:
                looks[index + 1] = look
            if last:
                final.append(look.clean)
        return tensors

    with warnings.catch_warnings():
        # Pictures of NaN become black ones with a warning; here they are rows without labels.
        warnings.filterwarnings(
            "ignore", message="invalid value encountered in cast", category=RuntimeWarning
        )
        output = pipeline(
            prompts,
            num_inference_steps=about["steps"],
            guidance_scale=about["guidance"],
            generator=[torch.Generator().manual_seed(pair.seed) for pair in pairs],
            callback_on_step_end=watch,
            **about["call"],
        )
    flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(pairs)
    return looks, final[0], list(output.images), np.array(flagged, bool)


def _uniform(images: Sequence[Any]) -> NDArray[np.bool_]:
    """(B,) which pictures have one colour only, as those have whose decoder came to NaN: nothing is seen on them."""
    pixels = [np.asarray(image) for image in images]
    return np.array([bool((one == one[:1, :1]).all()) for one in pixels])


def _values(looks: Mapping[int, Look], final: Tensor) -> dict[str, NDArray[Any]]:
    """Arrays of a batch by name, as `PairStore` keeps them."""
    values = {"final": _half(final)}
    for step, look in looks.items():
        values["text"] = _half(look.text)
        for name, tensor in {"clean": look.clean, "noise": look.noise, **look.tokens}.items():
            values[f"step_{step:02d}.{name}"] = _half(tensor)
    return values


def _encoded(pipeline: Any, encoder: DualEncoder, latents: Tensor) -> Tensor:
    """(B, 1 + P, D) tokens of predicted pictures in the image encoder."""
    pixels = decoded(pipeline, torch.nan_to_num(latents)) / 2 + 0.5
    with torch.no_grad():
        return encoder.encode_pixels(pixels.clamp(0, 1))


def _labels(
    classifier: Classifier, images: Sequence[Any], taxonomy: Taxonomy, unknown: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(B, K) scores of finished pictures; NaN where the classifier did not judge, or there is nothing to judge.

    Raises:
        CheckpointError: a service left pictures unanswered; what was made before is kept, and is gone on with.
    """
    scores = score_each_category(classifier, images, [None] * len(images), taxonomy)
    if scores.unanswered is not None and any(scores.unanswered):
        place = scores.unanswered.index(True)
        raise CheckpointError(
            f"{classifier.name} left {sum(scores.unanswered)} pictures unanswered ({scores.reasons[place]}). What was "
            "made before is kept; the same command goes on, once the service answers."
        )
    labels = scores.category_probabilities.astype(np.float32)
    unjudged = np.array([reason is not None for reason in scores.reasons]) | unknown
    labels[unjudged] = np.nan
    return labels


def _half(tensor: Tensor) -> NDArray[np.float16]:
    """As stored; what float16 cannot hold becomes its largest number, and NaN stays NaN."""
    limit = float(np.finfo(np.float16).max)
    return tensor.detach().float().clamp(-limit, limit).half().cpu().numpy()
