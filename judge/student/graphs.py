"""The four ONNX graphs of a student: image side, text side, taxonomy side and head, in float32 or with int8 weights.

int8 is ONNX Runtime's dynamic quantisation of the encoders' matrix products: weights in 7 bits with a scale for each
output, activations in 8 bits with a scale for each pass. Tables of embeddings, half of a small text model, are stored
in 7 bits too. The eighth bit of the weights stays unused because processors without VNNI add pairs of products in 16
bits, where it would overflow; so all processors give the same scores. The head stays in float32: it is small, and its
cosines decide.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from judge.encoders.dual import DualEncoder

from .head import CrossAttentionHead, Queries
from .student import Student

_ANY = torch.export.Dim.DYNAMIC


class ImageSide(nn.Module):
    """Pixels -> image tokens."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder, self.model = encoder, encoder.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> tokens (B, 1 + P, D), the pooled embedding first."""
        return self.encoder.encode_pixel_values(pixel_values)


class HeadSide(nn.Module):
    """Image tokens, prompt tokens and one taxonomy -> logits."""

    def __init__(self, head: CrossAttentionHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        image: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor,
        phrases: Tensor,
        where: Tensor,
        kinds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits (R,) that anything is violated and (R, K) of the categories, of R readings.

        Args:
            image: (R, 1 + P, D) image tokens.
            prompt: (R, L, D) prompt tokens.
            prompt_mask: (R, L).
            phrases: (K, M, D), `Queries.phrases` of one taxonomy.
            where: (K, M, H, inner / H), its `Queries.attention`; the name is that of the graph's input.
            kinds: (K, M).
        """
        queries = Queries(phrases[None], where[None], kinds[None])
        whole, categories = self.head(image[None], prompt[None], prompt_mask[None], queries)
        return whole[0], categories[0]


class TextSide(nn.Module):
    """Token ids -> pooled and token embeddings."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder, self.model = encoder, encoder.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Token ids (W, L) and a mask (W, L) -> pooled (W, D) and token (W, L, D) embeddings.

        CLIP and SigLIP go without the mask: a CLIP is causal, so padding behind a text does not reach its tokens; a
        SigLIP has none.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.encoder.encode_token_ids(input_ids, mask)


class TaxonomySide(nn.Module):
    """Embeddings of phrases -> the head's queries."""

    def __init__(self, head: CrossAttentionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (K, M, D) -> `Queries.phrases` (K, M, D) and `Queries.attention` (K, M, H, inner / H)."""
        kinds = torch.zeros(embeddings.shape[:2], dtype=torch.long)
        queries = self.head.queries(embeddings[None], kinds[None])
        return queries.phrases[0], queries.attention[0]


def write_graphs(student: Student, size: tuple[int, int], made: dict[str, Path], *, int8: bool) -> None:
    """Write the four graphs and the tokenizer of a student.

    Args:
        student: in float32 on the CPU.
        size: height and width of the encoder's images.
        made: the file of each side, by its name.
        int8: quantise the encoders' matrix products and tables of embeddings.
    """
    encoder, head = student.encoder, student.head
    width = encoder.width
    # Dimensions with a name or `_ANY` may have any length at run time; the others are those of the examples.
    taxonomy = {0: "categories", 1: "phrases"}
    per_phrase = {0: _ANY, 1: _ANY}
    with _quiet(), torch.no_grad():
        pixels = torch.randn(2, 3, *size)
        _export(
            ImageSide(encoder),
            {"pixel_values": (pixels, {0: "images"})},
            ["tokens"],
            made["image"],
            _quantised if int8 else None,
        )
        queries = head.queries(torch.randn(1, 3, 4, width), torch.zeros(1, 3, 4, dtype=torch.long))
        _export(
            HeadSide(head),
            {
                "image": (encoder.encode_pixel_values(pixels), {0: "readings"}),
                "prompt": (torch.randn(2, 5, width), {0: _ANY, 1: "words"}),
                "prompt_mask": (torch.ones(2, 5, dtype=torch.bool), per_phrase),
                "phrases": (queries.phrases[0], taxonomy),
                "where": (queries.attention[0], per_phrase),
                "kinds": (queries.kinds[0], per_phrase),
            },
            ["whole", "categories"],
            made["head"],
            None,
        )
        # SigLIP pads to its context; the others have a dynamic length.
        fixed = encoder.family == "siglip"
        ids = torch.full((2, encoder.context if fixed else 7), encoder.tokenizer.pad_token_id)
        axes = {0: "windows"} if fixed else {0: "windows", 1: "tokens"}
        texts = {"input_ids": (ids, axes)}
        if encoder.pooling is not None:
            texts["attention_mask"] = torch.ones_like(ids), per_phrase
        _export(
            TextSide(encoder),
            texts,
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
    """Trace a side with example inputs and their dynamic dimensions, write it, and call `then` with the file."""
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
    """Quantise the matrix products and tables of embeddings in a graph, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        file,
        file,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    # The float weights that a large graph was saved with.
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notices, which concern other models."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # torch 2.13 uses a way of copying trees that it has deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
