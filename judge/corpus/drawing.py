"""Pictures by a diffusion pipeline of diffusers.

The noise of a picture comes from its own seed alone. Its pixels may still depend, in the last bits, on the batch it is
drawn in; so batches are a part of the plan, and are the same when a build goes on.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.diffusion.pipelines import load_pipeline
from judge.errors import ConfigError, CorpusError, PipelineError, first_line
from judge.runs.files import file_hash
from judge.standins.shipped import SHIPPED_PIPELINES, checkpoint_path
from prompts.errors import ArbiterError

from .pictures import encode_picture
from .plan import Drawing
from .rows import CorpusRow
from .stages import Result, Task

INDEX = "model_index.json"
_NEEDED = ("prompt", "generator", "num_inference_steps", "output_type")
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def find_pipeline(name: str, revision: str = "") -> tuple[Path, str]:
    """The folder of a pipeline, downloaded if need be, and the revision that rows record.

    Args:
        name: `tiny-diffusion`, a folder, or `organisation/model` of the hub.
        revision: commit or tag, on the hub only.

    Returns:
        The folder, and `sha256:` with a hash of its files, or the commit on the hub.

    Raises:
        PipelineError: there is no such pipeline; or a revision was given for a folder.
    """
    shipped = name in SHIPPED_PIPELINES and not Path(name).exists()
    folder = checkpoint_path(name) if shipped else Path(name)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise PipelineError(
                f"{name} holds no {INDEX}; give a folder that save_pretrained of diffusers wrote."
            )
        if revision:
            raise PipelineError(
                f"{name} is a folder and has no revision {revision!r}; leave the revision out."
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        lines = (f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n" for path in files)
        return folder, "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()[:32]
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise PipelineError(
            f"There is no pipeline {name!r}; give {', '.join(SHIPPED_PIPELINES)}, a folder with a {INDEX}, or "
            "organisation/model of the hub."
        )
    from diffusers import DiffusionPipeline

    try:
        downloaded = Path(DiffusionPipeline.download(name, revision=revision or None))
    except Exception as error:  # the hub's, of the network and of the disk
        raise PipelineError(f"{name} cannot be downloaded from the hub: {first_line(error)}") from error
    return downloaded, downloaded.name  # the hub's cache names a folder by its commit


def describe_drawing(
    name: str,
    *,
    steps: int,
    guidance: float,
    revision: str = "",
    scheduler: str | None = None,
    width: int | None = None,
    height: int | None = None,
    safety_checker: bool = True,
) -> tuple[Drawing, Path]:
    """What rows record of how they are drawn, and the pipeline's folder; loads no weights.

    Args:
        name: as of `find_pipeline`.
        steps: of the scheduler, at least 1.
        guidance: `guidance_scale`; at most 1 draws without guidance.
        revision: as of `find_pipeline`.
        scheduler: class of diffusers, made from the pipeline's own settings; None for the pipeline's own.
        width: in pixels; None for the pipeline's own.
        height: likewise.
        safety_checker: whether the pipeline's own one runs, where it has one.

    Raises:
        PipelineError: no such pipeline, or no such scheduler.
        ConfigError: a number out of its range.
    """
    if steps < 1 or not np.isfinite(guidance):
        raise ConfigError(
            f"steps is {steps} and guidance {guidance}; give at least one step and a finite number."
        )
    for side in (width, height):
        if side is not None and side < 8:
            raise ConfigError(f"Pictures of {width} x {height} pixels cannot be drawn; give at least 8.")
    folder, found = find_pipeline(name, revision)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        own = index["scheduler"][1]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PipelineError(
            f"{name}: its {INDEX} names no scheduler, so it is no diffusion pipeline."
        ) from error
    checker = safety_checker and (index.get("safety_checker") or [None])[0] is not None
    settings = Drawing(name, found, scheduler or own, steps, guidance, width, height, checker)
    _scheduler_class(settings.scheduler)
    return settings, folder


def _scheduler_class(name: str) -> Any:
    import diffusers
    from diffusers import SchedulerMixin

    found = getattr(diffusers, name, None)
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        raise PipelineError(f"diffusers has no scheduler {name!r}; give a class such as DDIMScheduler.")
    return found


@dataclass
class DrawPictures:
    """The stage that draws.

    Args:
        drawing: how, as rows record it.
        folder: of the pipeline; in every process at the same place.
        batch_size: pictures drawn together.
        device: as torch names it.
        dtype: of the weights, as torch names it.
        load: opens a pipeline, as `load_pipeline` does.
    """

    drawing: Drawing
    folder: Path
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    load: Callable[..., Any] = load_pipeline
    name: str = field(default="pictures", init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; draw at least one picture at a time.")

    @property
    def about(self) -> Mapping[str, Any]:
        """What pixels depend on beyond the rows themselves."""
        return {"batch_size": self.batch_size, "device": self.device.split(":")[0], "dtype": self.dtype}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "pipeline"}

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, loaded at first use.

        Raises:
            PipelineError: it takes no prompt, no number of steps or no generator, or its scheduler does not fit.
        """
        pipeline = self.load(str(self.folder), device=self.device, dtype=self.dtype)
        takes = inspect.signature(pipeline.__call__).parameters
        lacking = [name for name in _NEEDED if name not in takes]
        if lacking:
            raise PipelineError(
                f"{self.drawing.model} is a {type(pipeline).__name__}, which takes no {', '.join(lacking)}; give a "
                "text-to-image pipeline."
            )
        if not self.drawing.safety_checker and getattr(pipeline, "safety_checker", None) is not None:
            pipeline.safety_checker = None
        if type(pipeline.scheduler).__name__ != self.drawing.scheduler:
            kind = _scheduler_class(self.drawing.scheduler)
            try:
                pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
            except Exception as error:  # of whatever the class does with settings of another one
                raise PipelineError(
                    f"{self.drawing.scheduler} does not take the settings of {type(pipeline.scheduler).__name__}: "
                    f"{first_line(error)}"
                ) from error
        return pipeline

    def __call__(self, task: Task) -> Result:
        """Draw the rows of a chunk, `batch_size` at a time."""
        rows: list[CorpusRow] = []
        pictures: dict[str, bytes] = {}
        for start in range(0, len(task.rows), self.batch_size):
            batch = task.rows[start : start + self.batch_size]
            for row, drawn in zip(batch, self._draw_or_say_why(batch), strict=True):
                if isinstance(drawn, CorpusRow):
                    rows.append(drawn)
                    continue
                cut = cut_prompt(self.pipeline, row.prompt or "")
                filled, picture = encode_picture(replace(row, prompt_cut=cut), drawn)
                rows.append(filled)
                if picture is not None:
                    pictures[row.id] = picture
        return Result(task.chunk, tuple(rows), pictures)

    def _draw_or_say_why(self, rows: Sequence[CorpusRow]) -> list[CorpusRow | NDArray[Any]]:
        """Of each row its (H, W, 3) pixels in [0, 1], or the failed row."""
        import torch

        try:
            return self._draw(rows)
        except ArbiterError:
            raise
        except torch.OutOfMemoryError as error:
            raise CorpusError(
                f"{len(rows)} pictures at a time do not fit into the memory of {self.device}; build into another "
                "folder with a smaller batch_size."
            ) from error
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            if len(rows) == 1:
                return [rows[0].failed("pictures", "pipeline_error", first_line(error))]
        # One of them cannot be drawn, and must not cost the others their pictures.
        return [one for row in rows for one in self._draw_or_say_why([row])]

    def _draw(self, rows: Sequence[CorpusRow]) -> list[CorpusRow | NDArray[Any]]:
        import torch

        takes = inspect.signature(self.pipeline.__call__).parameters
        options: dict[str, Any] = {
            name: value
            for name, value in (("width", self.drawing.width), ("height", self.drawing.height))
            if value is not None
        }
        if "guidance_scale" in takes:
            options["guidance_scale"] = self.drawing.guidance
        # On the CPU: there a seed gives the same noise whatever draws the picture.
        generators = [torch.Generator("cpu").manual_seed(int(row.seed or 0)) for row in rows]
        with torch.inference_mode():
            output = self.pipeline(
                prompt=[row.prompt or "" for row in rows],
                generator=generators,
                num_inference_steps=self.drawing.steps,
                output_type="np",
                **options,
            )
        images = output.images
        if len(images) != len(rows):
            raise CorpusError(f"{self.drawing.model} drew {len(images)} pictures of {len(rows)} prompts.")
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(rows)
        return [
            row.failed(
                "pictures", "safety_checker", "the pipeline's own safety checker flagged and blackened it"
            )
            if blackened
            else image
            for row, image, blackened in zip(rows, images, flagged, strict=True)
        ]


def cut_prompt(pipeline: Any, prompt: str) -> str | None:
    """Which of a pipeline's tokenizers cut a prompt, such as `tokenizer: 91 tokens, 77 read`; None for none."""
    longest = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    found = []
    for name in _TOKENIZERS:
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        most = tokenizer.model_max_length
        # Long text encoders are given fewer tokens than they could take; CLIP's always all of theirs.
        if (
            longest is not None
            and isinstance(longest.default, int)
            and "CLIP" not in type(tokenizer).__name__
        ):
            most = min(most, max(longest.default, 77))
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if count > most:
            found.append(f"{name}: {count} tokens, {most} read")
    return "; ".join(found) or None
