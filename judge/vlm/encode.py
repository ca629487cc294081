"""Chats -> tokens: one joint tokenisation for training, scoring and attacks, split where parts can be shared.

    <s> policy USER:  |  <image> x 576  |  question ASSISTANT: unsafe : Hate </s>
                                        |  Prompt: "..." question ASSISTANT: unsafe : Hate </s>
    `prefix`             `chain`           `continuations`

The prefix is everything before the image: under `policy_first` it is the same for all images of one taxonomy. The chain
is what all questions about an image share. The continuations are the questions (without the prompt, with each window of
it, about single categories), each with its closed set of answers; what they share is one branch of a token tree.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from judge.errors import CheckpointError
from prompts.errors import TemplateError
from prompts.taxonomy import Taxonomy
from prompts.template import Answer, Chat, render

from .tree import Continuation

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MAX_CACHED_TEXTS = 512
"""Size of the cache of tokenised chats; the least recently used is evicted."""
_NOT_VISUAL = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "text_replacement_offsets",
}


@dataclass(frozen=True)
class Variant:
    """One question about an image: its chat, and which scores it gives."""

    chat: Chat
    taxonomy: int = 0
    """Index of its taxonomy in the call."""
    focus: int | None = None
    """Index of the single category it asks about, or None for the whole taxonomy."""
    reading: int = 0
    """Number of the reading in the call: the image alone, or with a window of its prompt (`judge.readings`)."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one image's questions."""

    prefix: tuple[int, ...]
    chain: tuple[int, ...]
    """From the image's tokens to where the questions differ."""
    questions: tuple[tuple[Continuation, ...], ...]
    """For each variant, one continuation per answer."""

    @property
    def continuations(self) -> tuple[Continuation, ...]:
        """Those of all questions, in order."""
        return tuple(chain.from_iterable(self.questions))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each question with its longest answer, from the first of the prefix on."""
        before = len(self.prefix) + len(self.chain)
        return tuple(before + max(len(c.tokens) for c in question) for question in self.questions)

    def __len__(self) -> int:
        return max(self.lengths)


@dataclass
class ChatEncoder:
    """Tokenises chats for one processor and template."""

    processor: Any
    template: str = "policy_first"
    _answers: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict, repr=False)
    _splits: "LRUCache[str, tuple[tuple[int, ...], tuple[int, ...]]]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TEXTS), repr=False
    )

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
        """Id of the image token."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.image_token))

    def variants(
        self, taxonomy: Taxonomy, prompt: str | None, *, multilabel: bool, index: int = 0, reading: int = 0
    ) -> list[Variant]:
        """The question about the whole taxonomy and, with `multilabel`, one about each category."""
        whole = [Variant(render(taxonomy, prompt, template=self.template), index, None, reading)]
        if not multilabel:
            return whole
        return whole + [
            Variant(render(taxonomy, prompt, template=self.template, focus=name), index, position, reading)
            for position, name in enumerate(taxonomy.names)
        ]

    def policy_tokens(self, taxonomy: Taxonomy) -> int:
        """Tokens of a question under a policy, without image and prompt."""
        return len(self.encode_row(self.variants(taxonomy, None, multilabel=False), image_tokens=()))

    def text(self, chat: Chat) -> str:
        """The chat as the model's own template writes it, up to where the answer begins.

        Raises:
            CheckpointError: the base's chat template cannot write it (without system turns, say).
            TemplateError: the text has not exactly one image token.
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
        # Some chat templates write the start token themselves; twice would be another prompt.
        special = not (start and text.startswith(start))
        return list(self.processor.tokenizer(text, add_special_tokens=special).input_ids)

    def split(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the image of a rendered text, tokenised jointly."""
        found = self._splits.get(text)  # every image is asked the same question without its prompt
        if found is None:
            # The image is still one token here; `encode_image` gives all its tokens.
            before, after = self._around
            ids = self.ids(text.replace(self.image_token, f"{before}{self.image_token}{after}"))
            place = ids.index(self.image_token_id)
            found = self._splits[text] = tuple(ids[:place]), tuple(ids[place + 1 :])
        return found

    def answer_ids(self, text: str, answer: Answer) -> tuple[int, ...]:
        """Tokens of an answer and the end of the turn, as in a joint tokenisation with `text`.

        Raises:
            TemplateError: the answer would change how the text before it is tokenised.
        """
        # Tokenising the last line again is cheap, and it is all that an answer's first token depends on.
        tail = text[text.rindex(self.image_token) :]
        tail = tail[max(tail.rfind("\n"), 0) :]
        key = (tail[-64:], answer.text)
        if key not in self._answers:
            tokenizer = self.processor.tokenizer
            # Templates that end in a space have the separator in `text` already.
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
            B encodings, and for each image its pixel tensors: `pixel_values` (B, 3, H, W) with B = 1 (patches
            for Qwen-VL); some families add `image_sizes` or `image_grid_thw`.
        """
        processed = [self.encode_image(image) for image in images]
        encoded = [
            self.encode_row(variants, tokens) for variants, (tokens, _) in zip(rows, processed, strict=True)
        ]
        return encoded, [visual for _, visual in processed]

    def encode_image(self, image: "Image") -> tuple[tuple[int, ...], dict[str, "Tensor"]]:
        """The tokens of an image in a text, and its pixel tensors, such as `pixel_values` (B, 3, H, W) with B = 1."""
        inputs = self._process(image)
        ids = inputs["input_ids"][0].tolist()
        written = self._written(inputs)
        if (written.before, written.after) != self._around:
            raise CheckpointError(
                f"{type(self.processor).__name__} writes {written.before!r} before this image and {self._around[0]!r} "
                "before another; turn off what cuts images into crops (do_pan_and_scan)."
            )
        first = ids.index(written.first)
        last = len(ids) - ids[::-1].index(written.last)
        return tuple(ids[first:last]), {key: value for key, value in inputs.items() if key not in _NOT_VISUAL}

    @cached_property
    def _around(self) -> tuple[str, str]:
        """Ordinary text that the processor writes before and after an image: Gemma-3 has empty lines there.

        It is tokenised with the text around it, which it may merge with.
        """
        from PIL import Image

        written = self._written(self._process(Image.new("RGB", (64, 64))))
        return written.before, written.after

    def _process(self, image: "Image") -> Any:
        return self.processor(
            text=[self.image_token], images=[image], return_tensors="pt", return_text_replacement_offsets=True
        )

    def _written(self, inputs: Any) -> "_Written":
        """What the processor wrote for an image: from the first of its special tokens to the last, and text around it.

        Tokenizers cut text at special tokens before anything else, so between these the tokens depend on nothing else.
        """
        text = inputs["text_replacement_offsets"][0][0]["replacement"]
        tokens = self._special.findall(text)
        numbers = self.processor.tokenizer.convert_tokens_to_ids([tokens[0], tokens[-1]])
        first, last = text.index(tokens[0]), text.rindex(tokens[-1]) + len(tokens[-1])
        return _Written(text[:first], numbers[0], numbers[1], text[last:])

    @cached_property
    def _special(self) -> "re.Pattern[str]":
        """Any of the tokenizer's added tokens, longer ones first; not white space (Gemma), which grows."""
        added = [token for token in self.processor.tokenizer.get_added_vocab() if token.strip(" \t\n▁")]
        return re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))

    def encode_row(self, variants: Sequence[Variant], image_tokens: tuple[int, ...]) -> Encoded:
        """Tokenise the questions about one image.

        Raises:
            TemplateError: they differ before the image, or an answer changes the tokens before it.
        """
        texts = [self.text(variant.chat) for variant in variants]
        halves = [self.split(text) for text in texts]
        prefixes, tails = {before for before, _ in halves}, [after for _, after in halves]
        if len(prefixes) != 1:
            raise TemplateError("The questions of one row differ before the image; score them separately.")
        # All questions share the chain; each continuation is the rest of its question with one answer.
        shared = _common_length(tails)
        questions = tuple(
            tuple(
                Continuation(tail[shared:] + self.answer_ids(text, answer), len(tail) - shared)
                for answer in variant.chat.answers
            )
            for variant, text, tail in zip(variants, texts, tails, strict=True)
        )
        return Encoded(prefixes.pop(), image_tokens + tails[0][:shared], questions)


@dataclass(frozen=True)
class _Written:
    """What a processor puts in the place of an image: ordinary text, tokens from `first` to `last`, ordinary text."""

    before: str
    first: int
    last: int
    after: str


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix; the smallest and largest sequence in order have the shortest one."""
    first, last = min(sequences), max(sequences)
    for place, (left, right) in enumerate(zip(first, last, strict=False)):
        if left != right:
            return place
    return min(len(first), len(last))
