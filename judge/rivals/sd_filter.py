"""SD_Filter: the safety checker of Stable Diffusion (CompVis; Rando et al. 2022 took it apart).

An image is compared with 17 concepts and 3 of special care, whose embeddings are published and whose words are not:

    special = round(cos(image, special care) - threshold, 3)
    scores = round(cos(image, concepts) - threshold + (0.01 if any special > 0 else 0), 3); unsafe if any score > 0

(The authors also carry 0.01 from one special concept to the next, which changes no verdict.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from judge.baselines.coverage import asked_outputs
from judge.encoders.pixels import preprocess
from judge.errors import CheckpointError, first_line
from prompts.taxonomy import Taxonomy

from .one_score import OneScoreClassifier
from .weights import read_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS = "model.safetensors"
CARE = 0.01
DECIMALS = 3
HALF_STEP = 0.5 * 10**-DECIMALS
"""A rounded score is over 0 where the score itself is over this."""


class SafetyChecker(nn.Module):
    """The image tower of a CLIP with its projection, and the concepts.

    Attributes:
        concept_embeds, special_care_embeds: (17, D) and (3, D).
        concept_embeds_weights, special_care_embeds_weights: (17,) and (3,), each concept's threshold of the cosine.
    """

    def __init__(self, config: Any, concepts: int, special: int) -> None:
        """Make one for a `CLIPConfig`."""
        from transformers import CLIPVisionModel

        super().__init__()
        self.vision_model = CLIPVisionModel(config.vision_config)
        width = config.projection_dim
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.concept_embeds = nn.Parameter(torch.zeros(concepts, width))
        self.special_care_embeds = nn.Parameter(torch.zeros(special, width))
        self.concept_embeds_weights = nn.Parameter(torch.zeros(concepts))
        self.special_care_embeds_weights = nn.Parameter(torch.zeros(special))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> cosines less thresholds, of the concepts (B, 17) and of special care (B, 3), float32."""
        pooled = self.vision_model(pixel_values).pooler_output
        images = F.normalize(self.visual_projection(pooled).float(), dim=-1)
        return (
            images @ F.normalize(self.concept_embeds, dim=-1).T - self.concept_embeds_weights,
            images @ F.normalize(self.special_care_embeds, dim=-1).T - self.special_care_embeds_weights,
        )


@dataclass(kw_only=True)
class SdFilter(OneScoreClassifier):
    """The safety checker as a classifier.

    Its score is the sigmoid of 2s, with s the largest rounded score less half a step, as exactly 0 is safe; UnsafeBench
    attacks the same softmax of (-s, s). Scores stay close to 0.5, because cosines differ little.

    It covers Sexual, as in Table 4 and Figure 3 of UnsafeBench; the mark under Shocking in some copies of Table 3
    disagrees with both.

    Attributes:
        model: the checker.
        image_processor: what resizes, crops and normalises.
    """

    model: SafetyChecker = field(repr=False)
    image_processor: Any = field(repr=False)

    kind: ClassVar[str] = "sd_filter"
    covers: ClassVar[tuple[str, ...]] = ("Sexual",)

    def modules(self) -> tuple[nn.Module, ...]:
        """The checker."""
        return (self.model,)

    @torch.no_grad()
    def probabilities(self, images: "Sequence[Image]") -> NDArray[np.float64]:
        """(B,) scores, over 0.5 where the checker says unsafe."""
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        concepts, special = (
            found.double().cpu().numpy() for found in self.model(pixels.to(self.model.concept_embeds.device))
        )
        care = (special.round(DECIMALS) > 0).any(axis=1, keepdims=True)
        scores = (concepts + CARE * care).round(DECIMALS).max(axis=1)
        result: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-2.0 * (scores - HALF_STEP)))
        return result

    def pixel_margins(
        self,
        pixels: Tensor,
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> Tensor:
        """The logit of the score without rounding, differentiable in pixels (B, 3, H, W) in [0, 1].

        Returns:
            (B,) float32; prompts are ignored.

        Raises:
            ConfigError: a category that is not covered.
            TaxonomyError: no such category.
        """
        asked_outputs(self.name, self.default_taxonomy, taxonomy, self.match, category)
        concepts, special = self.model(
            preprocess(self.image_processor, pixels).to(self.model.concept_embeds.device)
        )
        care = (special > HALF_STEP).any(dim=1, keepdim=True)
        margins: Tensor = 2.0 * ((concepts + CARE * care).amax(dim=1) - HALF_STEP)
        return margins


def load_sd_filter(*, folder: str | Path, device: str | None = None, batch_size: int = 32) -> SdFilter:
    """Load the safety checker.

    Args:
        folder: of the hub's CompVis/stable-diffusion-safety-checker: config.json, preprocessor_config.json and
            model.safetensors, which `scripts/convert_rival.py` makes of pytorch_model.bin where it is missing.
        device: such as `cpu` or `cuda`; by default a GPU where there is one.
        batch_size: images in one pass.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoImageProcessor, CLIPConfig

    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}; give the folder of CompVis/stable-diffusion-safety-checker, whose "
                f"pytorch_model.bin scripts/convert_rival.py makes {WEIGHTS} of."
            )
    tensors = {_plain_name(name): t for name, t in read_tensors(folder / WEIGHTS, who=SdFilter.kind).items()}
    # A buffer of older versions of transformers: 0, 1, 2 ...
    tensors.pop("vision_model.embeddings.position_ids", None)
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        config = CLIPConfig.from_pretrained(folder)
        concepts, special = len(tensors["concept_embeds"]), len(tensors["special_care_embeds"])
        # Sizes are compared before memory is taken for them: the configuration may be a stranger's.
        with torch.device("meta"):
            SafetyChecker(config, concepts, special).load_state_dict(tensors, assign=True)
        model = SafetyChecker(config, concepts, special)
        model.load_state_dict(tensors)
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
        StrictDataclassError,
    ) as error:
        raise CheckpointError(f"{folder} holds no safety checker: {first_line(error)}") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.requires_grad_(False).eval().to(device)
    return SdFilter(model=model, image_processor=processor, batch_size=batch_size)


def _plain_name(name: str) -> str:
    """Name of a weight in this version of transformers, whose image towers have one level less."""
    old = "vision_model.vision_model."
    return f"vision_model.{name.removeprefix(old)}" if name.startswith(old) else name
