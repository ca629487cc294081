"""How the text side of a vision-text dual encoder makes one embedding of a text's tokens.

transformers' `VisionTextDualEncoderModel` takes the text model's pooler; sentence encoders average their tokens
instead. So config.json may declare, as `text_pooling`:

    mode        "pooler" (the default), "mean" over the tokens, special ones included, or "cls"
    normalize   whether embeddings get unit length; false by default
    centre      D numbers that are subtracted afterwards, such as the mean over many texts; none by default
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from judge.errors import CheckpointError

Mode = Literal["pooler", "mean", "cls"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class TextPooling:
    """From the hidden states of a text model to embeddings of texts and of their tokens."""

    mode: Mode = "pooler"
    normalize: bool = False
    centre: tuple[float, ...] | None = None
    """(D,), subtracted last."""

    @classmethod
    def declared(cls, config: Any, *, name: str) -> Self:
        """The pooling that a model's config declares.

        Args:
            config: of the whole model; `projection_dim` is D.
            name: of the encoder, for messages.

        Raises:
            CheckpointError: an unknown entry or mode, or a centre that is not D finite numbers.
        """
        found = getattr(config, "text_pooling", None) or {}
        what = f"{name!r} declares text_pooling"
        if not isinstance(found, dict) or not set(found) <= {"mode", "normalize", "centre"}:
            entries = sorted(map(str, found)) if isinstance(found, dict) else found
            raise CheckpointError(f"{what} with {entries}; its entries are mode, normalize and centre.")
        mode, normalize = found.get("mode", "pooler"), found.get("normalize", False)
        centre = found.get("centre")
        if mode not in MODES or not isinstance(normalize, bool):
            raise CheckpointError(
                f"{what} of mode {mode!r} and normalize {normalize!r}; a mode is one of {', '.join(MODES)}, "
                "and normalize true or false."
            )
        if centre is not None:
            width = int(config.projection_dim)
            if not isinstance(centre, list | tuple) or not all(map(_finite, centre)):
                raise CheckpointError(f"{what} with a centre that is not a list of {width} finite numbers.")
            if len(centre) != width:
                raise CheckpointError(
                    f"{what} with a centre of {len(centre)} numbers; its joint space has {width}."
                )
            centre = tuple(map(float, centre))
        return cls(mode, normalize, centre)

    def __call__(self, model: Any, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (W, D) and token (W, L, D) float32 embeddings of W windows.

        A token takes the path of a text that is this token alone.

        Args:
            model: a `VisionTextDualEncoderModel`.
            ids: (W, L) token ids.
            attention: (W, L), 1 at tokens and 0 at padding.
        """
        output = model.text_model(input_ids=ids, attention_mask=attention)
        tokens = output.last_hidden_state  # (W, L, width of the text model)
        if self.mode == "pooler":
            pooled = output.pooler_output
            tokens = model.text_model.pooler(tokens.flatten(0, 1)[:, None]).view_as(tokens)
        elif self.mode == "cls":
            pooled = tokens[:, 0]
        else:
            own = attention[..., None].to(tokens.dtype)
            pooled = (tokens * own).sum(1) / own.sum(1)
        return self._finish(model.text_projection(pooled)), self._finish(model.text_projection(tokens))

    def _finish(self, embeddings: Tensor) -> Tensor:
        embeddings = embeddings.float()
        if self.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        if self.centre is not None:
            embeddings = embeddings - torch.tensor(self.centre, device=embeddings.device)
        return embeddings


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
