"""Chats -> tokens. One joint tokenisation for training, scoring and attacks, cut where it may be shared.

    <s> policy USER:  |  <image> x 576  prompt  question ASSISTANT:  |  unsafe : Hate </s>
    `prefix`             `chain`, one for each image                    `continuations`

The prefix is everything before the image: under `policy_first` it is the same for all images of one taxonomy.
The continuations are the closed set of answers, or questions and their answers where several are asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from judge.errors import CheckpointError
from prompts.errors import TemplateError
from prompts.taxonomy import Taxonomy
from prompts.template import Answer, Chat, render

from .tree import Continuation

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_NOT_VISUAL = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


@dataclass(frozen=True)
class Variant:
    """One question about an image: its chat, and where its scores go."""

    chat: Chat
    taxonomy: int = 0
    """Which of the call's taxonomies it belongs to."""
    focus: int | None = None
    """The category it asks about alone, or None for the whole taxonomy."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one image's questions."""

    prefix: tuple[int, ...]
    chain: tuple[int, ...]
    """Begins with the image's tokens, ends where the questions part."""
    continuations: tuple[Continuation, ...]
    """For each variant in turn, one per answer."""

    def __len__(self) -> int:
        longest = max(len(c.tokens) for c in self.continuations)
        return len(self.prefix) + len(self.chain) + longest


@dataclass
class ChatEncoder:
    """Renders and tokenises chats for one processor and template."""

    processor: Any
    template: str = "policy_first"
    _answers: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not getattr(self.processor, "chat_template", None):
            raise CheckpointError(
                "The base model has no chat template, so a policy cannot be written the way it was trained. "
                "Use a chat checkpoint (such as llava-hf/llava-1.5-7b-hf), or put a chat_template.jinja beside it."
            )

    @cached_property
    def image_token(self) -> str:
        """The placeholder that the processor expands into one token per image patch."""
        token = getattr(self.processor, "image_token", None)
        if not token:
            raise CheckpointError(
                f"{type(self.processor).__name__} names no image token; use a vision-language checkpoint."
            )
        return str(token)

    @cached_property
    def image_token_id(self) -> int:
        """Its number."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.image_token))

    def variants(
        self, taxonomy: Taxonomy, prompt: str | None, *, multilabel: bool, index: int = 0
    ) -> list[Variant]:
        """The question about the whole taxonomy and, for per-category scores, one about each category."""
        whole = [Variant(render(taxonomy, prompt, template=self.template), index)]
        if not multilabel:
            return whole
        return whole + [
            Variant(render(taxonomy, prompt, template=self.template, focus=name), index, position)
            for position, name in enumerate(taxonomy.names)
        ]

    def text(self, chat: Chat) -> str:
        """The chat as the model's own template writes it, up to where the answer begins.

        Raises:
            CheckpointError: the base's chat template cannot write it (no system turn, say).
        """
        try:
            text = self.processor.apply_chat_template(
                list(chat.messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # Jinja templates raise what they like
            raise CheckpointError(
                f"The base's chat template refused the {self.template!r} template ({error}); "
                "for a base without system turns use --template perspective."
            ) from error
        if text.count(self.image_token) != 1:
            raise TemplateError(
                f"A rendered chat holds {text.count(self.image_token)} image tokens instead of one. "
                "Is an image token spelled out in the taxonomy, or does the chat template drop images?"
            )
        return str(text)

    def ids(self, text: str) -> list[int]:
        """Tokens of a rendered text, with the tokenizer's own start token unless the text has it already."""
        start = self.processor.tokenizer.bos_token
        special = not (start and text.startswith(start))
        return list(self.processor.tokenizer(text, add_special_tokens=special).input_ids)

    def split(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the image of a rendered text, tokenised jointly."""
        ids = self.ids(text)
        place = ids.index(self.image_token_id)
        return tuple(ids[:place]), tuple(ids[place + 1 :])

    def answer_ids(self, text: str, answer: Answer) -> tuple[int, ...]:
        """Tokens of an answer and the end of the turn, as they follow `text` in one tokenisation.

        Raises:
            TemplateError: the answer would change how the text before it is tokenised.
        """
        tail = text[text.rindex(self.image_token) :]
        tail = tail[max(tail.rfind("\n"), 0) :]
        key = (tail[-64:], answer.text)
        if key not in self._answers:
            tokenizer = self.processor.tokenizer
            joint = tail + ("" if tail[-1:].isspace() else " ") + answer.text + tokenizer.eos_token
            before = tokenizer(tail, add_special_tokens=False).input_ids
            both = tokenizer(joint, add_special_tokens=False).input_ids
            if both[: len(before)] != before or len(both) == len(before):
                raise TemplateError(
                    f"The answer {answer.text!r} does not start a token of its own after {tail[-20:]!r}; "
                    "end the chat template's generation prompt in a space or a newline."
                )
            self._answers[key] = tuple(both[len(before) :])
        return self._answers[key]

    def encode(
        self, rows: Sequence[Sequence[Variant]], images: "Sequence[Image]"
    ) -> tuple[list[Encoded], list[dict[str, "Tensor"]]]:
        """Tokenise B rows of questions about B images.

        Returns:
            B encodings, and for each image the tensors of its pixels with a leading dimension of one
            (`pixel_values`; some families add `image_sizes` or `image_grid_thw`).
        """
        seen = [self.encode_image(image) for image in images]
        encoded = [self.encode_row(variants, run) for variants, (run, _) in zip(rows, seen, strict=True)]
        return encoded, [visual for _, visual in seen]

    def encode_image(self, image: "Image") -> tuple[tuple[int, ...], dict[str, "Tensor"]]:
        """The run of tokens that stands for an image, and its pixel tensors."""
        seen = self.processor(text=[self.image_token], images=[image], return_tensors="pt")
        ids = seen["input_ids"][0].tolist()
        first = ids.index(self.image_token_id)
        last = len(ids) - ids[::-1].index(self.image_token_id)
        return tuple(ids[first:last]), {key: value for key, value in seen.items() if key not in _NOT_VISUAL}

    def encode_row(self, variants: Sequence[Variant], run: tuple[int, ...]) -> Encoded:
        """Tokenise the questions about one image whose tokens are `run`."""
        texts = [self.text(variant.chat) for variant in variants]
        halves = [self.split(text) for text in texts]
        prefixes, tails = {before for before, _ in halves}, [after for _, after in halves]
        if len(prefixes) != 1:
            raise TemplateError("The questions of one row differ before the image; score them separately.")
        shared = _common_length(tails)
        continuations = tuple(
            Continuation(tail[shared:] + self.answer_ids(text, answer), len(tail) - shared)
            for variant, text, tail in zip(variants, texts, tails, strict=True)
            for answer in variant.chat.answers
        )
        return Encoded(prefixes.pop(), run + tails[0][:shared], continuations)


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many leading tokens all sequences share."""
    first, last = min(sequences), max(sequences)
    for place, (left, right) in enumerate(zip(first, last, strict=False)):
        if left != right:
            return place
    return min(len(first), len(last))
