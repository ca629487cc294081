"""A frozen image-text encoder: images and texts -> tokens in one joint space.

Any CLIP, SigLIP or SigLIP 2 of fixed resolution from `transformers`, and its vision-text dual encoders: an image tower
beside a BERT (`judge.encoders.towers`), whose pooling of texts is declared (`judge.encoders.text_pooling`). Heads take
an encoder's tokens only, so they fit any encoder of the same width, and features can be computed once and cached
(`judge.encoders.features`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from judge.standins.shipped import base_path

from .phrases import without_surrogates
from .pixels import look_up, preprocess
from .processor_settings import exact_preprocessing
from .text_pooling import TextPooling
from .towers import check_towers, image_tokens, text_context

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from judge.data.preprocessing import ImagePreprocessing

DUAL = "vision-text-dual-encoder"
FAMILIES = ("clip", "siglip", DUAL)
"""Supported values of `model_type`; SigLIP 2 of fixed resolution is a `siglip`."""
MAX_WINDOWS = 32
"""Most windows of the text encoder's context that one text may take."""
_MODEL_SETTINGS = ("model_type", "hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id")
_IMAGE_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
_PROBE = "A photo of 2 FÜSSE,  isn't it?\nÀ \U0001f642"
"""Tokenised for the fingerprint: case, accents, spaces and characters outside any vocabulary."""


class DualEncoder:
    """A frozen CLIP, SigLIP or vision-text dual encoder.

    Attributes:
        name: as it was given to `load`.
        fingerprint: SHA-256 of the weights and of every setting that changes a feature (image processor and tokenizer
            included); caches and heads belong to it.
        width: D, the width of the joint space.
        context: tokens of one window of a text, special ones included.
        pooling: how a vision-text dual encoder pools texts; None of the other families, which have a way of their own.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, *, name: str) -> None:
        """Wrap a loaded model; `load` takes a name or path."""
        family = model.config.model_type
        if family not in FAMILIES:
            raise CheckpointError(
                f"{name!r} is a {family!r} model; an encoder is one of {', '.join(FAMILIES)}."
            )
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor
        self.model.requires_grad_(False)
        self.name, self.family = name, family
        text = model.config.text_config
        self.width = int(text.projection_size if family == "siglip" else model.config.projection_dim)
        self.context = int(text.max_position_embeddings)
        self.pooling: TextPooling | None = None
        if family == DUAL:
            self.pooling = TextPooling.declared(model.config, name=name)
            check_towers(model, name=name, pooler=self.pooling.mode == "pooler")
            self.context = text_context(text, tokenizer)
            if self.pooling.mode != "pooler":
                model.text_model.pooler = None  # unused, and often not among the weights
        self.fingerprint = self._fingerprint()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str = "main",
        device: str | torch.device | None = None,
        dtype: str = "float32",
    ) -> Self:
        """Load by hub id, folder, or the name of a shipped encoder (`tiny-clip`, `small-clip`).

        Raises:
            CheckpointError: it cannot be loaded, is of another family, or lacks weights.
        """
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        path = base_path(str(name_or_path))
        common = {"revision": revision, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **common)
            image_processor = AutoImageProcessor.from_pretrained(path, **common)
            # Loaded in float32 for the fingerprint, so that it does not depend on `dtype`.
            model, found = AutoModel.from_pretrained(
                path, **common, dtype="float32", use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise CheckpointError(
                f"{str(name_or_path)!r} could not be loaded as an image-text encoder: "
                f"{str(error).strip().splitlines()[0]} Give a CLIP, SigLIP or {DUAL} by hub id or "
                "folder, or tiny-clip or small-clip."
            ) from error
        encoder = cls(model, tokenizer, image_processor, name=str(name_or_path))
        missing = sorted(found["missing_keys"] & encoder.model.state_dict().keys())
        if missing:  # transformers draws them at random, with a warning
            raise CheckpointError(
                f"{str(name_or_path)!r} lacks {len(missing)} of its model's weights, such as {missing[0]}; get it anew."
            )
        encoder.model.to(device=device, dtype=getattr(torch, dtype))
        return encoder

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return torch.device(self.model.device)

    def pixel_values(self, images: "Sequence[Image]") -> Tensor:
        """The image processor's output for B RGB images: (B, 3, H, W), normalised."""
        values: Tensor = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    def encode_pixel_values(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + P, D) float32: the pooled embedding, then one token a patch, in row order.

        Differentiable in `pixel_values`.
        """
        pixels = pixel_values.to(device=self.device, dtype=self.model.dtype, non_blocking=True)
        tokens = image_tokens(self.model.vision_model, pixels)
        if self.family != "siglip":
            tokens = self.model.visual_projection(tokens)
        return tokens.float()

    def encode_images(self, images: "Sequence[Image]") -> Tensor:
        """`encode_pixel_values` of B RGB images, without gradients: (B, 1 + P, D) float32."""
        with torch.no_grad():
            return self.encode_pixel_values(self.pixel_values(images))

    @cached_property
    def image_preprocessing(self) -> "ImagePreprocessing | None":
        """The image processor as settings, for other processes to apply; None where they would not give the same."""
        return exact_preprocessing(self.image_processor)

    def encode_resized(self, pixels: "NDArray[np.uint8]") -> Tensor:
        """`encode_images` of B images (B, H, W, 3), as `image_preprocessing.resized` gave them.

        Raises:
            ConfigError: there is no such `image_preprocessing`.
        """
        if self.image_preprocessing is None:
            raise ConfigError(
                f"{self.name!r} prepares images in a way that cannot be split in two; give the images to encode_images."
            )
        if self.device.type == "cpu":
            values = torch.from_numpy(self.image_preprocessing.normalised(pixels))
        else:  # bytes are a quarter of floats to send
            values = look_up(torch.from_numpy(pixels).to(self.device), self.image_preprocessing.values)
        with torch.no_grad():
            return self.encode_pixel_values(values)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """`encode_pixel_values` of pixels (B, 3, H, W) in [0, 1] at any size, differentiable: (B, 1 + P, D)."""
        return self.encode_pixel_values(preprocess(self.image_processor, pixels))

    def token_count(self, text: str) -> int:
        """Tokens of a text, special ones included; more than `context` take several windows."""
        return len(self.tokenizer(without_surrogates(text), truncation=False, verbose=False).input_ids)

    def too_long(self, text: str) -> bool:
        """Whether a text takes more than `MAX_WINDOWS` windows, which `encode_texts` refuses."""
        special = int(self.tokenizer.num_special_tokens_to_add())
        limit = MAX_WINDOWS * (self.context - special)
        # A token covers at least one ASCII character, so short ASCII texts need no tokenising. Other characters may
        # take more tokens than bytes, because tokenizers normalise them (NFC, NFKC).
        return not (text.isascii() and len(text) <= limit) and self.token_count(text) - special > limit

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B texts -> (B, 1 + L, D) float32 tokens and (B, 1 + L) bool mask, without gradients.

        Token 0 is the pooled embedding, the others are the text's own tokens without special ones. A text longer
        than the context is split into windows: all their tokens, and the mean of their pooled embeddings.

        Raises:
            CheckpointError: a text of more than `MAX_WINDOWS` windows.
        """
        windows = self.tokenizer(
            [without_surrogates(text) for text in texts],
            truncation=True,
            max_length=self.context,
            padding="max_length" if self.family == "siglip" else "longest",
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        # One row per window; `owner` (W,) is the text that each belongs to.
        owner = windows["overflow_to_sample_mapping"]
        most = int(owner.bincount().max())
        if most > MAX_WINDOWS:
            raise CheckpointError(
                f"A text takes {most} windows of {self.context} tokens; at most {MAX_WINDOWS} are read."
            )
        with torch.no_grad():
            pooled, tokens = self.encode_token_ids(windows["input_ids"], windows["attention_mask"])
        # The text's own tokens: neither padding nor special ones.
        own = (windows["attention_mask"].bool() & ~windows["special_tokens_mask"].bool()).to(self.device)
        # A text's windows are joined: the mean of their pooled embeddings, then all their own tokens.
        rows = []
        for number in range(len(texts)):
            mine = (owner == number).nonzero().flatten().tolist()
            rows.append(torch.cat([pooled[mine].mean(0, keepdim=True), *(tokens[i][own[i]] for i in mine)]))
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

    def encode_token_ids(self, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (W, D) and token (W, L, D) float32 embeddings of W windows of token ids (W, L).

        `attention` (W, L) is 1 at tokens and 0 at padding.
        """
        ids, attention = ids.to(self.device), attention.to(self.device)
        if self.pooling is not None:
            return self.pooling(self.model, ids, attention)
        if self.family == "clip":
            output = self.model.text_model(input_ids=ids, attention_mask=attention)
            project = self.model.text_projection
            return project(output.pooler_output).float(), project(output.last_hidden_state).float()
        output = self.model.text_model(input_ids=ids)  # SigLIP was trained without a mask, on padded texts
        return output.pooler_output.float(), self.model.text_model.head(output.last_hidden_state).float()

    def _fingerprint(self) -> str:
        """SHA-256 of everything that changes features: weights, and settings that do not show in their shapes."""
        config, tokenizer, processor = self.model.config, self.tokenizer, self.image_processor
        parts = (config.vision_config, config.text_config)
        settings: dict[str, Any] = {
            "model": [[_plain(getattr(part, name, None)) for name in _MODEL_SETTINGS] for part in parts],
            "image": {name: _plain(getattr(processor, name, None)) or None for name in _IMAGE_SETTINGS},
            "vocabulary": sorted(tokenizer.get_vocab().items()),
            "probe": list(tokenizer(_PROBE).input_ids),
        }
        if self.pooling is not None:
            settings["text"] = [self.context, asdict(self.pooling)]
        # Weights by name in sorted order, as float32: independent of file format and dtype.
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def _plain(value: Any) -> Any:
    """A setting as JSON, independent of the processor class that holds it."""
    if isinstance(value, list | tuple):
        return list(value)
    # Sizes are a dict, or a class that acts as one.
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return {key: entry for key, entry in dict(value).items() if entry is not None}
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def check_encoder(run: RunDir, encoder: DualEncoder) -> None:
    """Check that the encoder is the one that a run's head was trained with.

    Raises:
        CheckpointError: another width, or other weights.
    """
    found = run.manifest
    for what, wanted, has in (
        ("width", found.get("width"), encoder.width),
        ("fingerprint", found.get("encoder_fingerprint"), encoder.fingerprint),
    ):
        if wanted != has:
            raise CheckpointError(
                f"The head in {run.path} was trained on {found.get('encoder')!r} of {what} {str(wanted)[:16]}, and "
                f"{encoder.name!r} has {what} {str(has)[:16]}; load that encoder and revision, or train the head again."
            )
