"""A text encoder as a differentiable function of token embeddings, for gradient-based prompt search.

`DualEncoder.encode_texts` takes texts, and tokenising has no gradient. Here the input is embedded tokens: rows of the
embedding table, or mixtures of rows. For a text's own tokens the result is that of `DualEncoder.encode_texts`.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from judge.errors import ConfigError

from .dual import DualEncoder
from .phrases import without_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBE = "a b"
"""Any text; shows which special tokens the tokenizer puts around its tokens."""


class SoftText:
    """The text side of a `DualEncoder`, from embedded tokens on.

    Attributes:
        encoder: the encoder whose text tower is used.
        table: (V, W) float32 token embeddings.
        allowed: (A,) ids of tokens that are text: not special, printable, and ASCII if `ascii_only`.
        max_tokens: tokens that fit beside the special ones.
    """

    def __init__(self, encoder: DualEncoder, *, ascii_only: bool = True) -> None:
        """Prepare an encoder.

        Args:
            encoder: of any family.
            ascii_only: restrict `allowed` to ASCII, as GCG does.
        """
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self._embedding = encoder.model.text_model.get_input_embeddings()
        self.table: Tensor = self._embedding.weight.detach().float()
        whole, own = tokenizer(_PROBE).input_ids, self._token_ids(_PROBE)
        at = next(start for start in range(len(whole)) if whole[start : start + len(own)] == own)
        self._before, self._after = whole[:at], whole[at + len(own) :]
        self.max_tokens = encoder.context - len(self._before) - len(self._after)
        # Special tokens and ids beyond the vocabulary (padding of the table) are no text.
        special = set(tokenizer.all_special_ids)
        ids = [id_ for id_ in range(min(len(tokenizer), len(self.table))) if id_ not in special]
        texts = tokenizer.batch_decode([[id_] for id_ in ids], clean_up_tokenization_spaces=False)
        good = [id_ for id_, text in zip(ids, texts, strict=True) if _is_text(text, ascii_only)]
        if not good:
            raise ConfigError(f"{encoder.name!r} has no token that is text; set ascii_only to False.")
        self.allowed = torch.tensor(good)

    def encode(self, text: str) -> Tensor:
        """Token ids (L,) of a text, without special ones and not truncated."""
        return torch.tensor(self._token_ids(text), dtype=torch.long)

    def decode(self, ids: Tensor) -> str:
        """The text of token ids (L,), without special ones."""
        text: str = self.encoder.tokenizer.decode(
            ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> embeddings (B, L, W)."""
        return self.table[ids.to(self.table.device)]

    def encode_embedded(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """B prompts of L embedded tokens -> (B, 1 + L, D) tokens and (B, 1 + L) mask, as `DualEncoder.encode_texts`.

        Args:
            embedded: (B, L, W) rows of `table`, or mixtures of rows; gradients flow to it.

        Raises:
            ConfigError: no tokens, or more than fit the context.
        """
        count, length, _ = embedded.shape
        if not 1 <= length <= self.max_tokens:
            raise ConfigError(
                f"Got {length} tokens; {self.encoder.name!r} reads 1 to {self.max_tokens} at once."
            )
        # The ids only mark positions: the embeddings of the middle ones are replaced below.
        layout = [*self._before, *[int(self.allowed[0])] * length, *self._after]
        if self.encoder.family == "siglip":
            layout += [self.encoder.tokenizer.pad_token_id] * (self.encoder.context - len(layout))
        ids = torch.tensor(layout, device=self.encoder.device).expand(count, -1)
        with self._replace_embeddings(embedded):
            pooled, tokens = self.encoder.encode_token_ids(ids, torch.ones_like(ids))
        own = tokens[:, len(self._before) : len(self._before) + length]  # (B, L, D), without special tokens
        encoded = torch.cat([pooled[:, None], own], dim=1)
        return encoded, torch.ones(encoded.shape[:2], dtype=torch.bool, device=encoded.device)

    @contextmanager
    def _replace_embeddings(self, embedded: Tensor) -> "Iterator[None]":
        """A context in which the token embedding layer returns `embedded` at the text's own positions.

        transformers' text models take ids only, so a hook replaces the layer's output. Not thread-safe.
        """
        start, end = len(self._before), len(self._before) + embedded.shape[1]

        def replace(module: Any, inputs: Any, output: Tensor) -> Tensor:
            own = embedded.to(device=output.device, dtype=output.dtype)
            return torch.cat([output[:, :start], own, output[:, end:]], dim=1)

        handle = self._embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self.encoder.tokenizer(
            without_surrogates(text), add_special_tokens=False, verbose=False
        ).input_ids
        return ids


def text_similarity(encoder: DualEncoder) -> Callable[[str, str], float]:
    """A function of two texts: the cosine of their pooled embeddings, for searches of prompts with the same meaning.

    Embeddings are cached, since a search compares many candidates with one original.
    """

    @lru_cache(maxsize=1024)
    def pooled(text: str) -> Tensor:
        return encoder.encode_texts([text])[0][0, 0]

    def similarity(original: str, candidate: str) -> float:
        return float(F.cosine_similarity(pooled(original), pooled(candidate), dim=0))

    return similarity


def _is_text(text: str, ascii_only: bool) -> bool:
    return (
        bool(text.strip())
        and text.isprintable()
        and "\ufffd" not in text
        and (not ascii_only or text.isascii())
    )
