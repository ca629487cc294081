"""Replies of vision-language models with what they say: safe, unsafe or uncertain. Written ones, and ours.

Ours are put together from `reply_phrasings.yaml`. Its splits share no sentence, so that accuracy on `held_out`, by
which wordings of `train` were chosen, and on `test` says how other wordings are read. The rules of the response
classifier were mended after looking at errors on both.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Literal, cast, get_args

from prompts.errors import ExampleError

Label = Literal["safe", "unsafe", "uncertain"]
LABELS: tuple[Label, ...] = get_args(Label)
COLUMNS = ("text", "label")
_SYNONYMS = {"refusal": "unsafe", "refused": "unsafe"}
_SLOT = re.compile(r"\{(\w+)\}")
_SYLLABLES = (
    "ba be co da do en er fi ga ge hi in ka la le lo mi mo na no pa po ra ri sa so ta te to un ve".split()
)
_MADE_UP = {"picture", "harm", "kind"}
"""Slots that training fills with made-up words now and then, so that no word of theirs decides."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz     .,'"


@dataclass(frozen=True)
class LabelledReply:
    """What a model wrote, and what it says of the image."""

    text: str
    label: Label
    """A refusal is `unsafe`, as in UnsafeBench; `uncertain` where no prediction can be read."""


def read_replies(path: str | Path) -> list[LabelledReply]:
    """Read labelled replies from a table.

    Args:
        path: `.csv` with the columns `text` and `label`, or `.jsonl` with these fields; others are ignored. Labels are
            safe, unsafe, uncertain, in any case, or refusal, which counts as unsafe.

    Raises:
        ExampleError: no such file, another format, or a row without text or with another label, by its line.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ExampleError(f"{path} is neither .csv nor .jsonl; give a table with text and label.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _csv_rows(file) if path.suffix == ".csv" else _json_rows(file)
            found = [_labelled(row, f"{path}, line {line}") for line, row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExampleError(f"{path} cannot be read: {error}") from None
    if not found:
        raise ExampleError(f"{path} holds no replies.")
    return found


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, object]]:
    rows = csv.DictReader(file, strict=True)
    for row in rows:
        yield rows.line_num, row


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, object]]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError):
                yield line, None


def _labelled(row: object, where: str) -> LabelledReply:
    if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in COLUMNS):
        raise ExampleError(f"{where}: no row with the columns {' and '.join(COLUMNS)}, both text.")
    label = row["label"].strip().casefold()
    label = _SYNONYMS.get(label, label)
    if label not in LABELS:
        raise ExampleError(f"{where}: no label {row['label']!r}; write {', '.join(LABELS)} or refusal.")
    return LabelledReply(row["text"], cast(Label, label))


def phrased_replies(split: str, count: int, *, seed: int = 0) -> list[LabelledReply]:
    """Draw replies of several sentences from our phrasings, a third of each label.

    Args:
        split: `train`, `held_out` or `test`, which share no sentences.
        count: how many.
        seed: of the draw.

    Raises:
        ExampleError: no such split.
    """
    drawn = _phrasings(split, seed)
    return [drawn.styled(drawn.reply(label), label) for label in _in_turn(count)]


def phrased_sentences(split: str, count: int, *, seed: int = 0) -> list[LabelledReply]:
    """As `phrased_replies`, single sentences; one that describes the image and passes no verdict is uncertain."""
    drawn = _phrasings(split, seed)
    return [drawn.styled(drawn.sentence(label), label) for label in _in_turn(count)]


def _in_turn(count: int) -> list[Label]:
    return [LABELS[place % len(LABELS)] for place in range(count)]


def _phrasings(split: str, seed: int) -> "_Phrasings":
    import yaml

    every = yaml.safe_load((files(__package__) / "reply_phrasings.yaml").read_text(encoding="utf-8"))
    if split not in every:
        raise ExampleError(f"No phrasings {split!r}; there are {', '.join(every)}.")
    return _Phrasings(every[split], Random(f"{seed} {split}"), made_up=0.35 if split == "train" else 0.0)


@dataclass(frozen=True)
class _Phrasings:
    """The lists of one split, and what draws from them."""

    lists: Mapping[str, list[str]]
    rng: Random
    made_up: float
    """Share of slots that are filled with a made-up word."""

    def one(self, name: str) -> str:
        """A sentence of a list, its slots filled."""
        if name == "words":
            return " ".join(self._made_up() for _ in range(self.rng.randint(1, 6)))
        if name in _MADE_UP and self.rng.random() < self.made_up:
            return " ".join(
                self._made_up() for _ in range(1 if name == "picture" else self.rng.randint(1, 3))
            )
        text = _SLOT.sub(lambda slot: self.one(slot[1]), self.rng.choice(self.lists[name]))
        return " ".join(text.split()).replace(" .", ".").replace(" ?", "?")

    def reply(self, label: Label) -> str:
        """A verdict, a reason and a description in any order; without a verdict, or with two, it is uncertain."""
        if label == "uncertain":
            return self._uncertain()
        if label == "unsafe" and self.rng.random() < 0.25:
            return self._joined(["refusal"], ["harm_sentence"], 0.15)
        return self._joined([label], [f"{label}_reason", "Scene", f"{label}_reason"], 0.45)

    def sentence(self, label: Label) -> str:
        """One sentence; an uncertain one may also be a description, or no sentence at all."""
        if label == "uncertain":
            kind = self.rng.random()
            if kind < 0.45:
                return self._sentence("uncertain")
            if kind < 0.85:
                return self._sentence(self.rng.choice(("Scene", "Scene", "safe_reason", "unsafe_reason")))
            return self._nonsense()
        return self._sentence("refusal" if label == "unsafe" and self.rng.random() < 0.25 else label)

    def styled(self, text: str, label: Label) -> LabelledReply:
        """Now and then in small letters, without the last full stop, or with a line break."""
        kind = self.rng.random()
        if kind < 0.1:
            text = text.lower()
        elif kind < 0.2:
            text = text.rstrip(".")
        elif kind < 0.3:
            text = text.replace(". ", ".\n", 1)
        return LabelledReply(text, label)

    def _uncertain(self) -> str:
        kind = self.rng.random()
        if kind < 0.4:
            return self._joined(["uncertain"], ["Scene", "harm_sentence"], 0.35)
        if kind < 0.7:
            return self._joined(
                [self.rng.choice(("Scene", "harm_sentence"))], ["Scene", "harm_sentence"], 0.5
            )
        if kind < 0.82:
            pair = [self.one("safe"), self.one("unsafe")]
            return " ".join(self.rng.sample(pair, 2))
        return self._nonsense()

    def _nonsense(self) -> str:
        """Words of several sentences in any order, made-up words, or letters."""
        kind = self.rng.random()
        if kind < 0.4:
            names = ("Scene", "safe_reason", "unsafe_reason")
            words = [word for name in names for word in self.one(name).split()]
            return " ".join(self.rng.sample(words, self.rng.randint(1, len(words))))
        if kind < 0.8:
            return " ".join(self._made_up() for _ in range(self.rng.randint(1, 20))).capitalize() + "."
        return "".join(self.rng.choices(_LETTERS, k=self.rng.randint(0, 80)))

    def _joined(self, first: list[str], others: list[str], share: float) -> str:
        """The first sentence with some of the others, each with probability `share`, mostly behind it."""
        parts = [*first, *(name for name in others if self.rng.random() < share)]
        if self.rng.random() < 0.3:
            parts = self.rng.sample(parts, len(parts))
        return " ".join(self._sentence(name) for name in parts)

    def _sentence(self, name: str) -> str:
        text = self.one("unsafe_reason" if name == "harm_sentence" else name)
        text = text[:1].upper() + text[1:]
        if name != "Scene" or self.rng.random() > self.made_up:
            return text
        # What is described may be anything.
        return (
            " ".join(
                self._made_up() if self.rng.random() < 0.5 else word for word in text.rstrip(".").split()
            )
            + "."
        )

    def _made_up(self) -> str:
        return "".join(self.rng.choices(_SYLLABLES, k=self.rng.randint(1, 4)))
