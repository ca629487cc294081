"""A text encoder as a differentiable function of its tokens, for whoever searches prompts by gradient.

`DualEncoder.read` takes texts, and from a text to its tokens there is no gradient. Here reading begins one step later,
at embedded tokens: a row of the embedding table each, or any mixture of rows (one-hot times table). For a text's own
tokens the result is that of `DualEncoder.read`.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from judge.errors import ConfigError
from prompts.taxonomy import Taxonomy

from .dual import DualEncoder
from .phrase_embeddings import PhraseEmbeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBE = "a b"
"""Any text with tokens of its own; tells which special tokens stand around them."""


class SoftText:
    """The text side of a `DualEncoder`, from embedded tokens on.

    Attributes:
        encoder: whose text tower reads.
        table: (V, W) float32 token embeddings.
        allowed: (A,) ids of tokens that are text: not special, printable, and ASCII if so chosen.
        room: tokens that fit beside the special ones.
    """

    def __init__(self, encoder: DualEncoder, *, ascii_only: bool = True) -> None:
        """Prepare an encoder.

        Args:
            encoder: a CLIP or SigLIP.
            ascii_only: let `allowed` hold ASCII only, as prompts are typed (GCG does so too).
        """
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self._embedding = encoder.model.text_model.embeddings.token_embedding
        self.table: Tensor = self._embedding.weight.detach().float()
        whole, own = tokenizer(_PROBE).input_ids, self._own(_PROBE)
        at = next(start for start in range(len(whole)) if whole[start : start + len(own)] == own)
        self._before, self._after = whole[:at], whole[at + len(own) :]
        self.max_tokens = encoder.context - len(self._before) - len(self._after)
        special = set(tokenizer.all_special_ids)
        ids = [id_ for id_ in range(min(len(tokenizer), len(self.table))) if id_ not in special]
        texts = tokenizer.batch_decode([[id_] for id_ in ids], clean_up_tokenization_spaces=False)
        good = [id_ for id_, text in zip(ids, texts, strict=True) if _is_text(text, ascii_only)]
        if not good:
            raise ConfigError(f"{encoder.name!r} has no token that is text; set ascii_only to False.")
        self.allowed = torch.tensor(good)

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        return len(self.table)

    def encode(self, text: str) -> Tensor:
        """The text's own tokens (L,), without special ones, not cut to the context."""
        return torch.tensor(self._own(text), dtype=torch.long)

    def decode(self, ids: Tensor) -> str:
        """The text of (L,) tokens, special ones left out."""
        text: str = self.encoder.tokenizer.decode(
            ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) tokens -> (B, L, W) embedded."""
        return self.table[ids.to(self.table.device)]

    def encode_embedded(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """B prompts of L embedded tokens -> (B, 1 + L, D) tokens and (B, 1 + L) mask, as `DualEncoder.read`.

        Args:
            embedded: (B, L, W) rows of `table`, or mixtures of them; with gradient.

        Raises:
            ConfigError: more tokens than the text encoder reads at once, or none.
        """
        count, length, _ = embedded.shape
        if not 1 <= length <= self.max_tokens:
            raise ConfigError(
                f"Got {length} tokens; {self.encoder.name!r} reads 1 to {self.max_tokens} at once."
            )
        layout = [*self._before, *[int(self.allowed[0])] * length, *self._after]
        if self.encoder.family == "siglip":
            layout += [self.encoder.tokenizer.pad_token_id] * (self.encoder.context - len(layout))
        ids = torch.tensor(layout, device=self.encoder.device).expand(count, -1)
        with self._in_place_of_ids(embedded):
            pooled, tokens = self.encoder.encode_token_ids(ids, torch.ones_like(ids))
        own = tokens[:, len(self._before) : len(self._before) + length]
        read = torch.cat([pooled[:, None], own], dim=1)
        return read, torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)

    def encode_one_hot(self, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """`encode_embedded` of (B, L, V) one-hot tokens, or of weights over the vocabulary."""
        return self.encode_embedded(one_hot.to(self.table) @ self.table)

    def pooled(self, embedded: Tensor) -> Tensor:
        """(B, L, W) embedded tokens -> (B, D) pooled embeddings."""
        return self.encode_embedded(embedded)[0][:, 0]

    @contextmanager
    def _in_place_of_ids(self, embedded: Tensor) -> "Iterator[None]":
        """While this lasts, the token embedding gives `embedded` where the text's own tokens stand.

        transformers' text models take ids only, so the output of their embedding is exchanged by a hook. Not for
        several threads at once.
        """
        start, end = len(self._before), len(self._before) + embedded.shape[1]

        def exchange(module: Any, inputs: Any, output: Tensor) -> Tensor:
            own = embedded.to(device=output.device, dtype=output.dtype)
            return torch.cat([output[:, :start], own, output[:, end:]], dim=1)

        handle = self._embedding.register_forward_hook(exchange)
        try:
            yield
        finally:
            handle.remove()

    def _own(self, text: str) -> list[int]:
        readable = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = self.encoder.tokenizer(readable, add_special_tokens=False, verbose=False).input_ids
        return ids


def phrase_cosines(soft: SoftText, taxonomy: Taxonomy) -> Callable[[Tensor], Tensor]:
    """A text filter's similarities as a function of the prompt's embedded tokens.

    Returns:
        A function (B, L, W) -> (B, K): the largest cosine of the pooled embedding with a phrase of each category, with
        gradient; for a text's own tokens what `judge.cascade.similarity.Similarities.prompt_similarities` gives.
    """
    embeddings, kinds = PhraseEmbeddings(soft.encoder).embed([taxonomy])
    device = soft.encoder.device
    phrases, missing = F.normalize(embeddings[0].to(device), dim=-1), (kinds[0] < 0).to(device)

    def cosines(embedded: Tensor) -> Tensor:
        pooled = F.normalize(soft.pooled(embedded), dim=-1)
        found = torch.einsum("bd,kmd->bkm", pooled, phrases)
        return found.masked_fill(missing, -torch.inf).amax(dim=-1)

    return cosines


def text_similarity(encoder: DualEncoder) -> Callable[[str, str], float]:
    """Cosine of two texts' pooled embeddings, as a search for prompts of the same meaning asks for it.

    What was read lately is kept, as originals come again and again.
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
