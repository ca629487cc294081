"""Byte-level BPE tokenizers for stand-in models."""

from collections.abc import Iterable, Sequence
from typing import Any


def train_byte_bpe(
    texts: Iterable[str], size: int, special_tokens: Sequence[str], *, unknown: str | None = None
) -> Any:
    """Train a `tokenizers.Tokenizer` of at most `size` tokens, all bytes included, so that it encodes any text.

    Args:
        texts: to learn merges from.
        size: of the vocabulary; it is smaller if the texts have too few merges.
        special_tokens: get the first ids, in this order.
        unknown: the token for unknown input, which does not occur; one of `special_tokens`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
