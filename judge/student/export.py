"""A student as ONNX files, image side and taxonomy side apart, in float32 or with int8 weights.

The files, and what runs them without torch: `judge.student.onnx`. Every export is checked against the student it
was made from: both score the same noise under the same categories, with and without prompts.

int8 is ONNX Runtime's dynamic quantisation of the encoders' matrix products: weights in 7 bits with a scale for each
output, activations in 8 bits with a scale for each pass. The eighth bit of the weights is left unused because
processors without VNNI add pairs of products in 16 bits, where it would overflow; so all processors give the same
answers. The head stays in float32: it is small, and its similarities decide.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from judge.encoders.dual import MAX_WINDOWS, DualEncoder
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.runs.files import file_hash
from judge.runs.folder import RunDir
from prompts.taxonomy import Category, Taxonomy

from .head import CrossAttentionHead, Queries
from .onnx import (
    MANIFEST,
    SIDES,
    ImagePreprocessing,
    OnnxStudent,
    TextPreprocessing,
    make_manifest,
)
from .student import Student, load_student

TOLERANCE = 1e-3
"""Largest difference of a probability between PyTorch and a float32 export; a larger one is a mistake somewhere."""
PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")
"""Image processors whose steps are known to `ImagePreprocessing`; each also with `Pil` behind its name."""
_ANY = torch.export.Dim.DYNAMIC


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from PyTorch."""

    files: tuple[Path, ...]
    difference: float
    """Largest absolute difference of any probability, over noise and random prompts."""

    @property
    def megabytes(self) -> float:
        """Size of all files, in 10^6 bytes."""
        return sum(file.stat().st_size for file in self.files) / 1e6


def export_student(student: Student | str | Path, out: str | Path, *, int8: bool = False) -> Exported:
    """Write a student as ONNX files and compare them with it.

    Args:
        student: a student in float32 on the CPU, or the folder of its run.
        out: path of the image side, ending in `.onnx`; the other files lie beside it, with the same stem.
        int8: quantise the encoders' matrix products.

    Raises:
        CheckpointError: the run holds no student, its encoder has steps that are not known here, or the export does
            not answer as the student does.
        ConfigError: a file is there already, `out` has another ending, or the student is elsewhere or not in float32.
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
    manifest = make_manifest(
        image_preprocessing(student.encoder), text_preprocessing(student.encoder), **_about(student, int8)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
        made = {name: Path(folder) / target.name for name, target in targets.items()}
        _write_graphs(student, made, int8)
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
    return Exported(tuple(targets.values()), difference)


def image_preprocessing(encoder: DualEncoder) -> ImagePreprocessing:
    """The settings of the encoder's image processor.

    Raises:
        CheckpointError: another kind of processor, or a setting that is not known here.
    """
    processor = encoder.image_processor
    kind = type(processor).__name__
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    size = {key: int(value) for key, value in size.items() if value}
    square = {"height", "width"}
    known = set(size) in (square, {"shortest_edge"}) and not getattr(processor, "do_pad", None)
    cropped = bool(getattr(processor, "do_center_crop", None))
    fixed = cropped or (processor.do_resize and set(size) == square)
    if kind.removesuffix("Pil") not in PROCESSORS or not known or not fixed:
        raise CheckpointError(
            f"{encoder.name!r} prepares images by {kind} with size {size}, which an export cannot: known are "
            f"{' and '.join(PROCESSORS)} that end at one size."
        )
    resize = size.get("shortest_edge") or (size["height"], size["width"])
    normalised = processor.do_normalize
    return ImagePreprocessing(
        resize=resize if processor.do_resize else None,
        resample=int(processor.resample),
        crop=(int(crop["height"]), int(crop["width"])) if cropped else None,
        scale=float(processor.rescale_factor) if processor.do_rescale else None,
        mean=tuple(map(float, processor.image_mean)) if normalised else None,
        deviation=tuple(map(float, processor.image_std)) if normalised else None,
    )


def text_preprocessing(encoder: DualEncoder) -> TextPreprocessing:
    """The settings of the encoder's tokenizer.

    Raises:
        CheckpointError: a tokenizer without a file of its own, or one that pads or cuts on the left.
    """
    tokenizer = encoder.tokenizer
    sides = {getattr(tokenizer, "padding_side", "right"), getattr(tokenizer, "truncation_side", "right")}
    if not hasattr(tokenizer, "backend_tokenizer") or sides != {"right"} or tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"{encoder.name!r} has a {type(tokenizer).__name__} that an export cannot take along: it must be a fast "
            "tokenizer that pads and cuts on the right."
        )
    return TextPreprocessing(
        encoder.context, int(tokenizer.pad_token_id), encoder.family == "siglip", MAX_WINDOWS
    )


class ImageSide(nn.Module):
    """Pixels, prompt tokens and one taxonomy -> logits."""

    def __init__(self, encoder: DualEncoder, head: CrossAttentionHead) -> None:
        super().__init__()
        self.encoder, self.model, self.head = encoder, encoder.model, head

    def forward(
        self,
        pixel_values: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor,
        phrases: Tensor,
        where: Tensor,
        kinds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), (B, L, D), (B, L), (K, M, D), (K, M, H, d), (K, M) -> (B,), (B, K)."""
        queries = Queries(phrases[None], where[None], kinds[None])
        image = self.encoder.encode_pixel_values(pixel_values)
        whole, categories = self.head(image[None], prompt[None], prompt_mask[None], queries)
        return whole[0], categories[0]


class TextSide(nn.Module):
    """Token ids -> pooled and token embeddings."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder, self.model = encoder, encoder.model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(W, L) -> (W, D), (W, L, D).

        No mask: a CLIP reads from left to right, so the padding behind a text reaches none of its tokens; a SigLIP
        has none.
        """
        return self.encoder.encode_token_ids(input_ids, torch.ones_like(input_ids))


class TaxonomySide(nn.Module):
    """Embeddings of phrases -> what the head compares and looks for."""

    def __init__(self, head: CrossAttentionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(K, M, D) -> (K, M, D), (K, M, H, d)."""
        kinds = torch.zeros(embeddings.shape[:2], dtype=torch.long)
        queries = self.head.queries(embeddings[None], kinds[None])
        return queries.phrases[0], queries.attention[0]


def largest_difference(student: Student, exported: OnnxStudent) -> float:
    """Largest absolute difference of their probabilities on noise; NaN where one gives no number."""
    from PIL import Image

    noise = np.random.default_rng(0)
    sizes = ((96, 64), (48, 80), (64, 64), (200, 301))
    images = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    prompts = [None, "two dogs", "", "neon " * student.encoder.context]  # the last one takes several windows
    few = (Category("dogs", "dog; cat", ("toy",)), Category("rain", "rain"))
    many = tuple(Category(f"no {number}", "red") for number in range(11))
    taxonomies = [Taxonomy("few", "1", few), Taxonomy("many", "1", many).names_only()]
    worst = [0.0]
    for taxonomy in taxonomies:
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
    }


def _write_graphs(student: Student, made: dict[str, Path], int8: bool) -> None:
    encoder, head = student.encoder, student.head
    width, context = encoder.width, encoder.context
    steps = image_preprocessing(encoder)
    size = steps.crop or steps.resize
    taxonomy = {0: "categories", 1: "phrases"}
    per_phrase = {0: _ANY, 1: _ANY}
    with _quiet(), torch.no_grad():
        pair = head.queries(torch.randn(1, 3, 4, width), torch.zeros(1, 3, 4, dtype=torch.long))
        _export(
            ImageSide(encoder, head),
            {
                "pixel_values": (torch.randn(2, 3, *size), {0: "images"}),  # type: ignore[misc]
                "prompt": (torch.randn(2, 5, width), {0: _ANY, 1: "words"}),
                "prompt_mask": (torch.ones(2, 5, dtype=torch.bool), per_phrase),
                "phrases": (pair.phrases[0], taxonomy),
                "where": (pair.attention[0], per_phrase),
                "kinds": (pair.kinds[0], per_phrase),
            },
            ["whole", "categories"],
            made["image"],
            _quantised if int8 else None,
        )
        ids = torch.full((2, context if encoder.family == "siglip" else 7), encoder.tokenizer.pad_token_id)
        axes = {0: "windows"} if encoder.family == "siglip" else {0: "windows", 1: "tokens"}
        _export(
            TextSide(encoder),
            {"input_ids": (ids, axes)},
            ["pooled", "tokens"],
            made["text"],
            _quantised if int8 else None,
        )
        _export(
            TaxonomySide(head),
            {"embeddings": (torch.randn(3, 4, width), taxonomy)},
            ["phrases", "where"],
            made["taxonomy"],
            None,
        )
    made["tokenizer"].write_text(encoder.tokenizer.backend_tokenizer.to_str(), encoding="utf-8")


def _export(
    side: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, Any]]],
    outputs: list[str],
    file: Path,
    then: Callable[[Path], None] | None,
) -> None:
    """Trace a side with example inputs, whose named axes may have any length; `then` works on the file."""
    program = torch.onnx.export(
        side.eval(),
        tuple(example for example, _ in inputs.values()),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple(axes for _, axes in inputs.values()),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(file)
    if then is not None:
        then(file)


def _quantised(file: Path) -> None:
    """Replace the encoder's matrix products in a graph by ones of 8 bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(file, load_external_data=False).graph
    head = [node.name for node in graph.node if _of_head(node)]
    quantize_dynamic(
        file,
        file,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=head,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)


def _of_head(node: Any) -> bool:
    """Whether a node came from the head; the exporter notes the modules each one lies in."""
    return any(
        "'head'" in entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notices, which are about other people's models, out of the output."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # torch 2.13 copies its own trees in a way it has deprecated itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


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
