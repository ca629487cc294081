"""The phrases of several taxonomies, each once, so that a student looks for all of them in one pass of its head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.encoders.phrases import KINDS, Phrase, phrases
from prompts.taxonomy import Taxonomy

from .head import PADDED_LOGIT, CrossAttentionHead, Queries


class AskedPhrases(NamedTuple):
    """P different phrases of G taxonomies of up to K categories of up to M phrases."""

    queries: Queries
    """Of one group with P categories of one phrase."""
    places: Tensor
    """(G, K, M) which of the P phrases each is; P where there is none."""
    kinds: Tensor
    """(G, K, M) indices into `phrases.KINDS`; -1 where there is no phrase."""

    def policy_logits(self, head: CrossAttentionHead, found: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (G, N) of the whole and (G, N, K) of the categories, from those of the phrases (1, N, P, 1)."""
        padded = torch.nn.functional.pad(found[0, :, :, 0], (0, 1), value=PADDED_LOGIT)
        # (N, P + 1) -> (N, G, K, M) -> (G, N, K, M)
        return head.policy_logits(padded[:, self.places].transpose(0, 1), self.kinds)


def ask_phrases(
    taxonomies: Sequence[Taxonomy], embeddings: PhraseEmbeddings, head: CrossAttentionHead
) -> AskedPhrases:
    """The phrases of at least one taxonomy, as queries of a head on the encoder's device.

    Raises:
        ConfigError: a phrase is longer than all windows of the text encoder.
    """
    listed = [[phrases(category) for category in taxonomy] for taxonomy in taxonomies]
    order: dict[Phrase, int] = {}
    for phrase in (phrase for taxonomy in listed for category in taxonomy for phrase in category):
        order.setdefault(phrase, len(order))
    shape = len(listed), max(map(len, listed)), max(len(own) for taxonomy in listed for own in taxonomy)
    places = torch.full(shape, len(order))
    for g, taxonomy in enumerate(listed):
        for k, own in enumerate(taxonomy):
            places[g, k, : len(own)] = torch.tensor([order[phrase] for phrase in own])
    kinds = torch.tensor([KINDS.index(phrase.kind) for phrase in order])
    device = embeddings.encoder.device
    with torch.no_grad():
        embedded = embeddings.encode([phrase.text for phrase in order])  # (P, D)
        queries = head.queries(embedded[None, :, None].to(device), kinds[None, :, None].to(device))
    return AskedPhrases(queries, places.to(device), torch.cat([kinds, torch.tensor([-1])])[places].to(device))
