"""Batches of generic conversations: tokens, labels and the pictures they are about.

Several pictures share one list before them (`judge.vlm.training.attention`), so the list is processed once for its
pictures. Lists of similar length share a step, and a step has about the same number of tokens whatever their length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .conversations import Conversations
from .digits import CANVAS
from .entries import Entry

if TYPE_CHECKING:
    from torch import Tensor

PATCH = 8
"""Side of a patch in pixels."""
IMAGE_TOKENS = (CANVAS // PATCH) ** 2

Pieces = Sequence[tuple[str, bool]]
Encoded = tuple[list[int], list[int]]
"""Token ids, and labels: -100 where not supervised."""


@dataclass(frozen=True)
class Batch:
    """A step: which pictures, in the order of their image tokens, inputs of the language model and labels (N, S)."""

    pictures: list[int]
    inputs: dict[str, Any]
    labels: "Tensor"


@dataclass(frozen=True)
class Group:
    """A list, and questions about pictures (None: about words alone)."""

    policy: list[int]
    rows: list[tuple[int | None, Encoded]]
    picture: int | None = None
    """A picture inside the list, which all rows are about."""

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(len(ids) for _, (ids, _) in self.rows)


class Shown:
    """Pictures by the digits they show."""

    def __init__(self, shown: Sequence[frozenset[int]]) -> None:
        """Collect the numbers of pictures with the same digits."""
        self.by_digits: dict[frozenset[int], list[int]] = {}
        for number, digits in enumerate(shown):
            self.by_digits.setdefault(digits, []).append(number)

    def choose(self, entries: Sequence[Entry], rng: Any, *, fits: bool) -> int | None:
        """A picture that an entry fits, or that none fits but that shows what they speak of where there is one."""
        possible = [
            digits for digits in self.by_digits if any(entry.holds(digits) for entry in entries) == fits
        ]
        if fits:
            # Each entry is right equally often, however few pictures it fits.
            right = [entry for entry in entries if any(entry.holds(digits) for digits in possible)]
            wanted = rng.choice(right) if right else None
            possible = [digits for digits in possible if wanted is not None and wanted.holds(digits)]
        elif rng.random() < 0.6:
            spoken_of = frozenset().union(*(entry.spoken_of for entry in entries))
            possible = [digits for digits in possible if digits & spoken_of] or possible
        if not possible:
            return None
        digits = rng.choices(possible, [len(self.by_digits[digits]) for digits in possible])[0]
        return int(rng.choice(self.by_digits[digits]))


class Batches:
    """Endless batches of conversations over the pictures of one split."""

    def __init__(
        self,
        conversations: Conversations,
        shown: Sequence[frozenset[int]],
        captions: Sequence[str | None],
        tokenizer: Any,
        *,
        tokens: int = 6000,
        each: int = 8,
        longest: int = 1500,
    ) -> None:
        """Draw with the conversations' generator.

        Args:
            conversations: what is asked.
            shown: digits in each picture.
            captions: of the pictures.
            tokenizer: of the model.
            tokens: about as many in a step, padding included.
            each: pictures that share a list.
            longest: most tokens of a list and one picture's questions; longer ones are drawn anew.
        """
        self.conversations, self.shown, self.captions, self.tokenizer = (
            conversations,
            shown,
            captions,
            tokenizer,
        )
        self.tokens, self.each, self.longest = tokens, each, longest
        self.pictures = Shown(shown)

    def encode(self, rows: Sequence[Pieces]) -> list[Encoded]:
        """Token ids and labels of several rows, without a start token."""
        return encode_pieces(self.tokenizer, rows, IMAGE_TOKENS)

    def singles(self, count: int) -> list[Group]:
        """Conversations of four questions about one picture, its list before or after it or missing."""
        r = self.conversations.random
        chosen = [r.randrange(len(self.shown)) for _ in range(count)]
        rows = [self.conversations.row(i, self.shown[i], self.captions[i]).pieces for i in chosen]
        start = [self.tokenizer.bos_token_id]
        return [Group(start, [(i, row)]) for i, row in zip(chosen, self.encode(rows), strict=True)]

    def group(self) -> Group:
        """A list and questions about several pictures; an entry fits half of them, where that is possible."""
        talk = self.conversations
        while True:
            entries, text, described = talk.shared_list()
            # Long captions come to all pictures of a list or to none, which saves padding.
            length = talk.random.choices((0, 150, 400, 700), (80, 10, 7, 3))[0]
            group = self.asked(entries, text, described, length)
            if len(group.policy) + group.longest <= self.longest:
                return group

    def recited(self) -> Group:
        """A list and questions about its words."""
        text, rows = self.conversations.recited()
        (policy, _), *encoded = self.encode([((f"{text} USER: ", False),), *rows])
        return Group([self.tokenizer.bos_token_id, *policy], [(None, row) for row in encoded])

    def asked(
        self, entries: list[Entry], text: str, described: bool, caption: int, questions: int = 3
    ) -> Group:
        """A list and `questions` about each of its pictures, which have captions of up to `caption` characters."""
        talk = self.conversations
        pictures: list[int] = []
        for number in range(self.each):
            fits = number < self.each // 2
            chosen = self.pictures.choose(entries, talk.random, fits=fits)
            if chosen is None:
                chosen = self.pictures.choose(entries, talk.random, fits=not fits)
            pictures.append(0 if chosen is None else chosen)
        rows: list[Pieces] = [((f"{text} USER: ", False),)]
        for i in pictures:
            remark = talk.remark(self.captions[i], caption)
            rows.append(talk.about(entries, described, self.shown[i], remark, questions))
        (policy, _), *encoded = self.encode(rows)
        return Group([self.tokenizer.bos_token_id, *policy], list(zip(pictures, encoded, strict=True)))

    def __iter__(self) -> Iterator[Batch]:
        """About nine of ten batches have shared lists; one in eight of these is about words alone."""
        r = self.conversations.random
        while True:
            batches = [
                *self._by_length([self.group() for _ in range(160)]),
                *self._by_length([self.recited() for _ in range(24)]),
                *self._by_length(self.singles(80)),
            ]
            r.shuffle(batches)
            yield from map(pack, batches)

    def _by_length(self, groups: list[Group]) -> list[list[Group]]:
        """Groups of similar lengths together, as many as the tokens of a step allow, padding included."""
        groups.sort(key=lambda group: (group.longest // 64, len(group.policy)))
        batches: list[list[Group]] = []
        policy = longest = 0
        for group in groups:
            policy, longest = max(policy, len(group.policy)), max(longest, group.longest)
            size = policy + len(group.rows) * longest
            if not batches or (len(batches[-1]) + 1) * size > self.tokens:
                batches.append([])
                policy, longest = len(group.policy), group.longest
            batches[-1].append(group)
        return batches


def encode_pieces(tokenizer: Any, rows: Sequence[Pieces], image_tokens: int) -> list[Encoded]:
    """Token ids and labels of several rows, each image as `image_tokens` tokens, without a start token."""
    texts = [text.replace("<image>", "<image>" * image_tokens) for pieces in rows for text, _ in pieces]
    encodings = iter(tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    encoded: list[Encoded] = []
    for pieces in rows:
        ids: list[int] = []
        labels: list[int] = []
        for _, supervised in pieces:
            piece = next(encodings).ids
            ids += piece
            labels += piece if supervised else [-100] * len(piece)
        encoded.append((ids, labels))
    return encoded


def pack(groups: Sequence[Group]) -> Batch:
    """The layout of `judge.vlm.training.collate.pack`, with several answers per row."""
    import torch

    each = len(groups[0].rows)
    policy = max(len(group.policy) for group in groups)
    length = max(group.longest for group in groups)
    size = (len(groups), policy + each * length)
    ids, labels = torch.zeros(size, dtype=torch.long), torch.full(size, -100)  # (groups, S) each
    # Every answer starts at the position behind its list, as if it were the only one.
    positions = torch.arange(size[1]).repeat(len(groups), 1)
    # Each answer attends to its list and, causally, to itself: (groups, answers, S, policy + S).
    visible = torch.zeros(len(groups), each, length, policy + length, dtype=torch.bool)
    visible[..., policy:] = torch.ones(length, length, dtype=torch.bool).tril()
    for number, group in enumerate(groups):
        before = group.policy
        ids[number, : len(before)] = torch.tensor(before)
        visible[number, :, :, : len(before)] = True
        for slot, (_, (tokens, wanted)) in enumerate(group.rows):
            start = policy + slot * length
            ids[number, start : start + len(tokens)] = torch.tensor(tokens)
            labels[number, start : start + len(wanted)] = torch.tensor(wanted)
            positions[number, start : start + length] = len(before) + torch.arange(length)
    inputs = {"input_ids": ids, "attention_mask": visible, "position_ids": positions}
    asked = [picture for group in groups for picture in (group.picture, *(row for row, _ in group.rows))]
    pictures = [picture for picture in asked if picture is not None]
    return Batch(pictures, inputs, labels)
