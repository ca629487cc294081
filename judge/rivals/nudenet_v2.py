"""NudeNet's classifier (versions 1 and 2, gone since 3): an Xception, or a lite network, as an ONNX file.

UnsafeBench measures this one. Its files are `classifier_model.onnx`, whose input is (B, 256, 256, 3), and
`classifier_lite.onnx`, (B, 3, 256, 256); both give [unsafe, safe]. Nothing ships them; the user names the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from .graphs import Graph
from .one_score import OneScoreClassifier

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 256


@dataclass(kw_only=True)
class NudeNetV2(OneScoreClassifier):
    """NudeNet's classifier: its probability of the first of two classes.

    Attributes:
        graph: pixels in [0, 1] -> (B, 2) probabilities, unsafe and safe.
    """

    graph: Graph = field(repr=False)
    channels_first: bool = field(init=False)
    """Whether its input is (B, 3, 256, 256), as of the lite network."""

    kind: ClassVar[str] = "nudenet_v2"
    covers: ClassVar[tuple[str, ...]] = ("Sexual",)
    why_no_gradients: ClassVar[str] = "it is an ONNX graph, which has no backward pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.graph.shape
        self.channels_first = len(shape) == 4 and shape[1] == 3
        if not self.channels_first and not (len(shape) == 4 and shape[3] == 3):
            raise self.graph.refused(f"its input is {shape}, with three channels neither second nor last")

    def probabilities(self, images: "Sequence[Image]") -> NDArray[np.float64]:
        """(B,) probabilities of unsafe."""
        batch = np.stack([prepare(image) for image in images])
        if self.channels_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        found = self.graph(batch)
        if found.shape != (len(images), 2):
            raise self.graph.refused(f"its output is {found.shape}, not ({len(images)}, 2)")
        return found[:, 0].astype(np.float64)


def prepare(image: "Image") -> NDArray[np.float32]:
    """An RGB image -> (256, 256, 3) floats in [0, 1]: squeezed, by the nearest pixel, as Keras did by default."""
    from PIL import Image

    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def load_nudenet_v2(*, path: str | Path, batch_size: int = 16, threads: int = 0) -> NudeNetV2:
    """Load NudeNet's classifier.

    Args:
        path: `classifier_model.onnx` or `classifier_lite.onnx`.
        batch_size: images in one pass; 1 where the file takes no more.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        CheckpointError: the file is missing, damaged, or another network.
        MissingExtraError: onnxruntime is not installed.
    """
    graph = Graph(
        path,
        who=NudeNetV2.kind,
        advice="give classifier_model.onnx or classifier_lite.onnx of NudeNet 2",
        threads=threads,
    )
    return NudeNetV2(graph=graph, batch_size=graph.most(batch_size))
