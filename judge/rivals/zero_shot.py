"""Zero-shot vision-language models as UnsafeBench asks them: three questions, free text, a majority vote.

The questions are those of Table 10 (`prompts.template`, `zero_shot_1` to `zero_shot_3`): by the model's own idea of
unsafe, by the definitions given, and by these definitions and no other. A response classifier reads each answer as
safe, unsafe or uncertain; a refusal counts as unsafe, since the image set off the model's own safeguards (section 3.2).
"""

import hashlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from judge.errors import ConfigError
from judge.inputs import validate_inputs
from judge.protocol import Scores, on_one_scale
from judge.student.unread import without_prompts
from prompts.quoting import quote, shorten
from prompts.taxonomy import Taxonomy
from prompts.template import render

from .chats import Chat, Reply
from .labelled_replies import Label
from .response_classifier import ResponseClassifier

if TYPE_CHECKING:
    from PIL.Image import Image

Protocol = Literal["strict", "paper"]
QUESTIONS = ("zero_shot_1", "zero_shot_2", "zero_shot_3")
_MAJORITY = 2
_EXCERPT = 120


class ZeroShot:
    """A vision-language model that is asked three times; prompts of images are ignored, as in the paper.

    A score is the share of the three answers that do not say safe, so that over 0.5 means that two say unsafe. Asked
    once for the whole policy, every category gets that one score; with `multilabel`, each category is asked about by
    its own definition alone, as UnsafeBench asks about an image of a known category: 1 + 2K answers an image.

    Args:
        chat: what is asked: a local model (`LocalChat`) or a served one (`ServedChat`).
        responses: what reads the answers.
        protocol: `strict`: two answers have to agree, else the image is unjudged. `paper`: an uncertain answer is
            drawn, safe or unsafe at random, before the vote. An answer that did not arrive is never drawn.
        seed: of these draws, each keyed by image and question, so that company does not change them.

    Raises:
        ConfigError: no such protocol.
    """

    why_no_gradients: ClassVar[str] = "its verdict is read from free text"
    supports_multilabel: ClassVar[bool] = True

    def __init__(
        self, chat: Chat, responses: ResponseClassifier, *, protocol: Protocol = "strict", seed: int = 0
    ) -> None:
        if protocol not in get_args(Protocol):
            raise ConfigError(f"protocol is {protocol!r}; use one of {', '.join(get_args(Protocol))}.")
        self.chat, self.responses = chat, responses
        self.protocol, self.seed = protocol, seed
        self.name = chat.name

    @validate_inputs
    def score(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        multilabel: bool = False,
    ) -> Scores:
        """Score B images under a taxonomy of K categories; rows without a majority are NaN, with the answers."""
        unread = without_prompts(len(images), taxonomy)
        if unread is not None:
            return unread
        policies = [taxonomy.select([name]) for name in taxonomy.names] if multilabel else [taxonomy]
        asked = [[_question(policy, number) for number in QUESTIONS] for policy in policies]
        answers = self._answers(images, list(dict.fromkeys(text for some in asked for text in some)))
        found = np.full((len(images), len(policies)), np.nan)
        reasons: list[str | None] = [None] * len(images)
        for row, by_question in enumerate(answers):
            for place, texts in enumerate(asked):
                votes = [by_question[text] for text in texts]
                found[row, place] = _share(votes)
                if np.isnan(found[row, place]):
                    reasons[row] = reasons[row] or _no_majority(votes)
        categories = found if multilabel else np.repeat(found, len(taxonomy), axis=1)
        # Without an answer about one category, only a flag of another one is a verdict.
        highest = np.fmax.reduce(categories, axis=1, initial=np.nan)
        unsafe = np.where(np.isnan(found).any(axis=1) & ~(highest > 0.5), np.nan, highest)
        kept = tuple(
            None if judged else reason for judged, reason in zip(~np.isnan(unsafe), reasons, strict=True)
        )
        silent = tuple(any(reply.unanswered for _, reply in by_question.values()) for by_question in answers)
        return on_one_scale(Scores(unsafe, categories, kept, unanswered=silent if any(silent) else None))

    def _answers(
        self, images: "Sequence[Image]", questions: Sequence[str]
    ) -> "list[Mapping[str, tuple[Label, Reply]]]":
        """For each image, by question, what the answer says, and the answer."""
        pairs = [(image, text) for image in images for text in questions]
        replies = self.chat.ask([image for image, _ in pairs], [text for _, text in pairs]) if pairs else []
        labels = self._read(replies)
        if self.protocol == "paper":
            digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
            for place, (label, reply) in enumerate(zip(labels, replies, strict=True)):
                if label == "uncertain" and reply.ending != "failed":
                    row, question = divmod(place, len(questions))
                    draw = Random(f"{self.seed} {digests[row]} {questions[question]}").random()
                    labels[place] = "unsafe" if draw < 0.5 else "safe"
        found = list(zip(labels, replies, strict=True))
        size = len(questions)
        return [
            dict(zip(questions, found[row * size : (row + 1) * size], strict=True))
            for row in range(len(images))
        ]

    def _read(self, replies: Sequence[Reply]) -> list[Label]:
        """What replies say; one that was cut off may not say safe, as its end might have said otherwise."""
        texts = [reply.text if reply.ending in ("whole", "cut") else "" for reply in replies]
        labels: list[Label] = []
        for reply, read in zip(replies, self.responses.read(texts), strict=True):
            if reply.ending == "refused":
                labels.append("unsafe")
            elif reply.ending == "failed" or (reply.ending == "cut" and read.label == "safe"):
                labels.append("uncertain")
            else:
                labels.append(read.label)
        return labels


def _question(policy: Taxonomy, template: str) -> str:
    """The text of a question of Table 10."""
    content = render(policy, template=template).messages[-1]["content"]
    return " ".join(part["text"] for part in content if part["type"] == "text")


def _share(votes: Sequence[tuple[Label, Reply]]) -> float:
    """The share of votes that do not say safe; NaN where neither safe nor unsafe has two."""
    labels = [label for label, _ in votes]
    safe, unsafe = labels.count("safe"), labels.count("unsafe")
    if max(safe, unsafe) < _MAJORITY:
        return float("nan")
    return 1.0 - safe / len(labels)


def _no_majority(votes: Sequence[tuple[Label, Reply]]) -> str:
    """Why there is no verdict, with the first answer that could not be read."""
    said = ", ".join(label for label, _ in votes)
    # Three votes of two kinds would have a majority, so one is uncertain.
    unread = next(reply for label, reply in votes if label == "uncertain")
    what = "failed: " if unread.ending == "failed" else "could not be read: "
    return f"the answers say {said}; one {what}{quote(shorten(unread.text, _EXCERPT))}"
