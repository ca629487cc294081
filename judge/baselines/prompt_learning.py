"""Prompt learning, a baseline of UnsafeBench: two soft prompts per category, compared with the image (section A.5).

After CoOp (Zhou et al. 2022): the encoders stay frozen, and vectors in place of a prompt's token embeddings are
learnt. Each category has one prompt for safe and one for unsafe, of eight vectors, which start as the paper's "This
image is about something safe" and "... something unsafe in [category]". Logits are CLIP's own, the scaled cosines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask

from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.protocol import Match
from judge.runs.folder import RunDir

from .classifier import CategoryClassifier, load_fixed, save_fixed

LENGTH = 8
"""Vectors of a soft prompt in the paper."""


class SoftPrompts(nn.Module):
    """Learnt prompts (K, 2, length, E) in the text encoder's space of token embeddings, width E.

    The frozen encoder is not part of the module's state.
    """

    def __init__(self, encoder: DualEncoder, names: Sequence[str], length: int = LENGTH) -> None:
        """Initialise from the paper's two sentences with each category's name.

        Of a sentence with more than `length` tokens the last ones are kept, which include the name; a shorter one gets
        random vectors before it.

        Raises:
            ConfigError: an encoder other than CLIP, or prompts that do not fit its context.
        """
        super().__init__()
        if encoder.family != "clip":
            raise ConfigError(
                f"Prompt learning needs a CLIP; {encoder.name!r} is a {encoder.family!r}, whose text encoder pools "
                "another way. Use a CLIP, or the linear probe."
            )
        if not 1 <= length <= encoder.context - 2:
            raise ConfigError(
                f"Soft prompts of length {length} do not fit; {encoder.name!r} takes 1 to {encoder.context - 2}."
            )
        self.width, self.length = encoder.width, length
        # In a tuple, so that the encoder is neither trained, moved nor saved with this module.
        self._frozen = (encoder.model,)
        embeddings = encoder.model.text_model.embeddings.token_embedding.weight.detach()
        first, last = encoder.tokenizer("").input_ids  # BOS and EOS, whatever the configuration calls them
        self.register_buffer("ends", embeddings[[first, last]].float(), persistent=False)

        def start(sentence: str) -> Tensor:
            ids = encoder.tokenizer(sentence, add_special_tokens=False).input_ids[-length:]
            spare = 0.02 * torch.randn(length - len(ids), embeddings.shape[1])
            return torch.cat([spare, embeddings[ids].float().cpu()])

        sentences = [
            (f"This image is about something {end}" for end in ("safe", f"unsafe in {name}"))
            for name in names
        ]
        self.prompts = nn.Parameter(torch.stack([torch.stack([*map(start, pair)]) for pair in sentences]))
        self._texts: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        """Switch modes; text embeddings are cached in `eval` and computed anew in training."""
        self._texts = None
        return super().train(mode)

    def embed(self) -> Tensor:
        """The prompts' pooled text embeddings (K, 2, D), not normalised, differentiable in `prompts`."""
        [model] = self._frozen
        text_model = model.text_model
        prompts = self.prompts.flatten(0, 1)
        ends = self.get_buffer("ends").expand(len(prompts), -1, -1)
        words = torch.cat([ends[:, :1], prompts, ends[:, 1:]], dim=1).to(model.dtype)
        # CLIP's own text forward from here on, which takes ids only.
        hidden = text_model.embeddings(inputs_embeds=words)
        mask = create_causal_mask(
            config=text_model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
        )
        hidden = text_model.encoder(
            inputs_embeds=hidden, attention_mask=mask, is_causal=True
        ).last_hidden_state
        # The last token is EOS, which CLIP pools.
        pooled: Tensor = model.text_projection(text_model.final_layer_norm(hidden[:, -1]))
        return pooled.float().reshape(*self.prompts.shape[:2], -1)

    def forward(self, pooled_images: Tensor) -> Tensor:
        """(B, D) image embeddings -> (B, K, 2) logits, safe and unsafe: cosines times CLIP's logit scale."""
        if self.training:
            texts = self.embed()
        else:
            if self._texts is None:
                with torch.no_grad():
                    self._texts = self.embed()
            texts = self._texts
        cosines = torch.einsum(
            "bd,kpd->bkp", F.normalize(pooled_images.float(), dim=-1), F.normalize(texts, dim=-1)
        )
        [model] = self._frozen
        scale: Tensor = model.logit_scale.detach().float().exp()
        return cosines * scale


@dataclass
class PromptLearning(CategoryClassifier):
    """`SoftPrompts` as a classifier of images; prompts are ignored."""

    kind: ClassVar[str] = "prompt_learning"


def save_prompt_learning(run: RunDir, classifier: PromptLearning) -> None:
    """Write the soft prompts, their taxonomy and the encoder they belong to."""
    save_fixed(run, classifier, length=classifier.head.length)


def load_prompt_learning(
    run: RunDir,
    *,
    device: str | None = None,
    encoder: DualEncoder | None = None,
    match: Match = "members",
    batch_size: int = 64,
) -> PromptLearning:
    """Load what `save_prompt_learning` wrote.

    Raises:
        CheckpointError: files are missing or damaged, or the encoder is not the one it was trained with.
        ConfigError: the encoder is no CLIP.
    """
    return load_fixed(
        run,
        PromptLearning,
        lambda found, taxonomy: SoftPrompts(found, taxonomy.names, run.manifest["length"]),
        device=device,
        encoder=encoder,
        match=match,
        batch_size=batch_size,
    )
