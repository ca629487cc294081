"""Export a student as ONNX files, and compare their scores with the student's.

`judge.student.onnx` runs the files without torch, `judge.student.graphs` writes them. Every export is checked: both
score the same noise under the same categories, with and without prompts.
"""

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from judge.encoders.dual import MAX_WINDOWS, DualEncoder
from judge.encoders.processor_settings import image_preprocessing
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.lessons.outside import beyond_lessons
from judge.lessons.record import Record, record_to_dict
from judge.runs.files import file_hash
from judge.runs.folder import RunDir
from prompts.taxonomy import Category, Taxonomy

from .graphs import write_graphs
from .onnx import OnnxStudent
from .onnx_files import MANIFEST, SIDES, make_manifest
from .preprocessing import TextPreprocessing
from .student import Student, load_student

TOLERANCE = 1e-3
"""Largest allowed difference of a probability between PyTorch and a float32 export; a larger one is a bug."""


@dataclass(frozen=True)
class ExportResult:
    """The written files, and how far their scores are from PyTorch's."""

    files: tuple[Path, ...]
    difference: float
    """Largest absolute difference of any probability, over noise images and a few prompts."""

    @property
    def megabytes(self) -> float:
        """Size of all files, in 10^6 bytes."""
        return sum(file.stat().st_size for file in self.files) / 1e6


def export_student(student: Student | str | Path, out: str | Path, *, int8: bool = False) -> ExportResult:
    """Write a student as ONNX files and compare them with it.

    Args:
        student: a student in float32 on the CPU, or the folder of its run.
        out: path of the image side, ending in `.onnx`; the other files get the same stem, beside it.
        int8: quantise the encoders' matrix products and tables of embeddings.

    Raises:
        CheckpointError: the run holds no student, its encoder has unsupported preprocessing, or the export's scores
            differ from the student's.
        ConfigError: a file exists already, `out` has another suffix, or the student is not in float32 on the CPU.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    out = Path(out)
    _check_extra()
    targets = {name: out.with_suffix(suffix) for name, suffix in (*SIDES.items(), ("manifest", MANIFEST))}
    _check_targets(out, targets)
    if not isinstance(student, Student):
        student = load_student(RunDir.open(student, kind="student"), device="cpu")
    if student.encoder.device.type != "cpu" or student.encoder.model.dtype != torch.float32:
        raise ConfigError("A student is exported from float32 on the CPU; load it there.")
    encoder = student.encoder
    images = image_preprocessing(encoder.image_processor, name=encoder.name)
    manifest = make_manifest(images, text_preprocessing(encoder), **_about(student, int8))
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that files can be renamed into place after the check.
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
        made = {name: Path(folder) / target.name for name, target in targets.items()}
        write_graphs(student, _input_size(student.encoder), made, int8=int8)
        if any(Path(folder).glob("*.data")):
            raise CheckpointError(
                f"{student.encoder.name!r} does not fit into one ONNX file of 2 GB in float32; export it with int8."
            )
        manifest["sha256"] = {side: file_hash(made[side]) for side in SIDES}
        RunDir(folder).write_text(
            made["manifest"].name, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        )
        difference = largest_difference(student, OnnxStudent(made["image"]))
        if not int8 and not difference <= TOLERANCE:
            raise CheckpointError(
                f"The exported student differs from PyTorch by {difference:.2g} in a probability, more than "
                f"{TOLERANCE:g}; nothing was written. Please report it with the versions of torch and onnxruntime."
            )
        for name, target in targets.items():
            made[name].replace(target)
    return ExportResult(tuple(targets.values()), difference)


def text_preprocessing(encoder: DualEncoder) -> TextPreprocessing:
    """The settings of the encoder's tokenizer.

    Raises:
        CheckpointError: a tokenizer that is not a fast one, or that pads or truncates on the left.
    """
    tokenizer = encoder.tokenizer
    sides = {getattr(tokenizer, "padding_side", "right"), getattr(tokenizer, "truncation_side", "right")}
    if not hasattr(tokenizer, "backend_tokenizer") or sides != {"right"} or tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"{encoder.name!r} has a {type(tokenizer).__name__} that cannot be exported: it must be a fast "
            "tokenizer that pads and truncates on the right."
        )
    return TextPreprocessing(
        encoder.context, int(tokenizer.pad_token_id), encoder.family == "siglip", MAX_WINDOWS
    )


def _input_size(encoder: DualEncoder) -> tuple[int, int]:
    """Height and width of the encoder's images."""
    steps = image_preprocessing(encoder.image_processor, name=encoder.name)
    size = steps.crop or steps.resize
    if not isinstance(size, tuple):  # `image_preprocessing` refuses such processors
        raise CheckpointError(f"{encoder.name!r} has no fixed image size.")
    return size


def largest_difference(student: Student, exported: OnnxStudent) -> float:
    """Largest absolute difference of their probabilities on noise; NaN if either gives NaN."""
    from PIL import Image

    noise = np.random.default_rng(0)
    sizes = ((96, 64), (48, 80), (64, 64), (200, 301))
    images = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    prompts = [None, "two dogs", "", "neon " * student.encoder.context]  # the last one takes several windows
    few = (
        Category("dogs", "dog; cat", ("toy",)),
        Category("rain", "rain"),
        Category("nights", "a dog, if the prompt mentions neon"),
    )
    many = tuple(Category(f"no {number}", "red") for number in range(11))
    taxonomies = [Taxonomy("few", "1", few), Taxonomy("many", "1", many).names_only()]
    # Lists, not running maxima, because `max` would drop NaN.
    worst = [0.0]
    for taxonomy in taxonomies:
        with beyond_lessons(student), beyond_lessons(exported):
            ours, theirs = (one.score(images, prompts, taxonomy) for one in (student, exported))
        worst += [
            np.abs(ours.unsafe - theirs.unsafe).max(),
            np.abs(ours.category_probabilities - theirs.category_probabilities).max(),
        ]
    return float(np.max(worst))


def _about(student: Student, int8: bool) -> dict[str, Any]:
    own = student.default_taxonomy
    return {
        "name": student.name,
        "precision": "int8" if int8 else "float32",
        "encoder": student.encoder.name,
        "encoder_fingerprint": student.encoder.fingerprint,
        "family": student.encoder.family,
        "head": asdict(student.head.config),
        "taxonomy": None if own is None else own.to_dict(),
        "lessons": record_to_dict(Record(student.envelope, student.evidence)),
    }


def _check_extra() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Exporting needs {', '.join(missing)}; install with `pip install 'arbiter-vision[onnx]'`."
        )


def _check_targets(out: Path, targets: dict[str, Path]) -> None:
    if out.suffix != ".onnx" or not out.stem:
        raise ConfigError(f"{out} must end in .onnx; the other files take its stem.")
    there = [str(path) for path in targets.values() if path.exists()]
    if there:
        raise ConfigError(
            f"{', '.join(there)}: there already, and nothing is overwritten; choose another name."
        )
