"""Batches of lessons about signs, as `judge.standins.batches` lays them out: questions share a picture or a list."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from judge.standins.batches import Batch, Encoded, Group, Pieces, encode_pieces, pack

from .talk import PICTURE, Talk
from .words import Thing

Draw = Callable[[], tuple[list[Thing], Tensor]]
"""A picture: what it shows, and its patches (P, width), which become image tokens."""
FORMS = {"each": 0.7, "chosen": 0.25, "naming": 0.05}
"""Share of the steps that each form of question gets."""
EACH = 32
"""Words that are asked about one picture."""
PICTURES = 6
"""Pictures that share a list."""


class SignLessons:
    """Endless batches of lessons about signs, in words or about pictures."""

    def __init__(
        self,
        talk: Talk,
        tokenizer: Any,
        draw: Draw,
        *,
        patches: int,
        in_words: float = 0.35,
        tokens: int = 1500,
    ) -> None:
        """Draw with the generator of `talk`.

        Args:
            talk: what is asked.
            tokenizer: of the language model, with the image token.
            draw: gives a picture.
            patches: tokens an image takes.
            in_words: share of batches in which words stand in the place of a picture.
            tokens: about as many in a step, padding included.
        """
        self.talk, self.tokenizer, self.draw = talk, tokenizer, draw
        self.patches, self.in_words, self.tokens = patches, in_words, tokens
        self.pictures: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[Batch, list[Tensor]]]:
        """Batches, and the patches of their pictures in the order of their image tokens."""
        r = self.talk.random
        while True:
            form = r.choices(tuple(FORMS), tuple(FORMS.values()))[0]
            yield self.batch(form, r.random() < self.in_words)

    def batch(self, form: str, in_words: bool) -> tuple[Batch, list[Tensor]]:
        """One step of a form of `FORMS`."""
        self.pictures = []
        groups: list[Group] = []
        while not groups or self.size([*groups, groups[-1]]) <= self.tokens:
            groups.append(getattr(self, form)(in_words))
        batch = pack(groups)
        return batch, [self.pictures[number] for number in batch.pictures]

    @staticmethod
    def size(groups: list[Group]) -> int:
        """Tokens of a step, padding included."""
        longest = max(group.longest for group in groups)
        return len(groups) * (max(len(g.policy) for g in groups) + max(len(g.rows) for g in groups) * longest)

    def picture(self, in_words: bool) -> tuple[list[Thing], str, int | None]:
        """What is shown, what stands for it in a text, and its number, None for words."""
        if in_words:
            shown = self.talk.shown()
            return shown, self.talk.described(shown), None
        shown, patches = self.draw()
        self.pictures.append(patches)
        return shown, PICTURE, len(self.pictures) - 1

    def encode(self, rows: list[Pieces]) -> list[Encoded]:
        """Tokens and labels of rows."""
        return encode_pieces(self.tokenizer, rows, self.patches)

    def each(self, in_words: bool) -> Group:
        """Yes or no to many words about one picture."""
        shown, picture, number = self.picture(in_words)
        opening, lines = self.talk.each(shown, picture, EACH)
        (policy, _), *rows = self.encode([((opening, False),), *lines])
        return Group(policy, [(None, row) for row in rows], number)

    def chosen(self, in_words: bool) -> Group:
        """A list, and which of its entries fits each of several pictures; in half of them one does, if possible."""
        entries = self.talk.entries()
        rows: list[Pieces] = [((self.talk.listing(entries), False),)]
        numbers = []
        for place in range(PICTURES):
            for _ in range(12):
                before = len(self.pictures)
                shown, picture, number = self.picture(in_words)
                if any(entry.holds(shown) for entry in entries) == (place % 2 == 0):
                    break
                del self.pictures[before:]
            else:
                shown, picture, number = self.picture(in_words)
            numbers.append(number)
            rows.append(self.talk.chosen(entries, shown, picture))
        (policy, _), *encoded = self.encode(rows)
        return Group(policy, list(zip(numbers, encoded, strict=True)))

    def naming(self, in_words: bool) -> Group:
        """Name what several pictures show."""
        del in_words  # to repeat words teaches nothing
        pictures = [self.picture(False) for _ in range(PICTURES)]
        encoded = self.encode([self.talk.naming(shown, picture) for shown, picture, _ in pictures])
        start = encoded[0][0][:1]  # all begin with the same token
        rows = [
            (number, (ids[1:], wanted[1:]))
            for (_, _, number), (ids, wanted) in zip(pictures, encoded, strict=True)
        ]
        return Group(start, rows)
