"""Llama Guard 3 Vision and Llama Guard 4: a block of categories in the chat template, `safe` or `unsafe` and codes.

The user's categories, coded S1, S2, ..., replace the block that the checkpoint's own template writes. The score
is the probability of `unsafe` against `safe` at the first word of the answer. Images alone: the text beside an image
is a known way to talk these guards out of a verdict; yet Llama Guard 3's card says that it was made for images with a
prompt.
Llama Guard 4's images go through `llama4_images`, as transformers processes them with torchvision only.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from judge.errors import CheckpointError
from judge.inputs import validate_inputs
from judge.protocol import Scores, on_one_scale
from judge.student.unread import without_prompts
from prompts.quoting import quote, shorten
from prompts.taxonomy import Taxonomy

from .chats import Reply
from .checkpoints import Checkpoint
from .generation import LocalChat

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from torch.nn import Module

_BEGIN, _END = "<BEGIN UNSAFE CONTENT CATEGORIES>", "<END UNSAFE CONTENT CATEGORIES>"
_ANSWER = re.compile(r"(safe|unsafe)(?:\s*\n\s*(\S.*))?", re.IGNORECASE)
_CODES = re.compile(r"S\d{1,3}(?:\s*,\s*S\d{1,3})*", re.IGNORECASE)
_TOKENS = 32
"""Room for an answer: a word, and the codes of ten categories."""


class LlamaGuard:
    """A Llama Guard with the user's categories.

    Categories whose codes an unsafe answer lists get its probability and the others 0; where it lists none that there
    is, all are NaN and only `unsafe` is known. After a safe answer, which says nothing of single categories, each has
    the probability of `unsafe`. Any other answer leaves the image unjudged.

    Args:
        chat: the model; its template must hold the block of categories.

    Raises:
        CheckpointError: no such block, or a tokenizer that begins both answers alike.
    """

    why_no_gradients: ClassVar[str] = "its verdict is read from a generated answer"

    def __init__(self, chat: LocalChat) -> None:
        self.chat, self.name = chat, chat.name
        tokenizer = chat.processor.tokenizer
        first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("safe", "unsafe")]
        if first[0] == first[1]:
            raise CheckpointError(
                f"{self.name}: safe and unsafe begin with the same token; no score is possible."
            )
        self._words = first
        chat.render("", _check_block)

    def modules(self) -> "tuple[Module, ...]":
        """The model."""
        return (self.chat.model,)

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images under a taxonomy of K categories; an answer that cannot be read is NaN, with the reason."""
        unread = without_prompts(len(images), taxonomy)
        if unread is not None:
            return unread
        unsafe = np.full(len(images), np.nan)
        categories = np.full((len(images), len(taxonomy)), np.nan)
        reasons: list[str | None] = [None] * len(images)
        asked = self.chat.render("", lambda chat: with_categories(chat, taxonomy))
        for row, (reply, logits) in enumerate(self.chat.generate(images, [asked] * len(images), first=True)):
            flagged, listed = read_answer(reply, len(taxonomy))
            if flagged is None or logits is None:
                reasons[row] = f"the answer is neither safe nor unsafe: {quote(shorten(reply.text, 120))}"
                continue
            probability = self._probability(logits, flagged)
            if probability is None:
                reasons[row] = f"{self.name} gave no finite probability"
                continue
            unsafe[row] = probability
            if not flagged:
                categories[row] = probability
            elif listed:
                categories[row] = 0.0
                categories[row, listed] = probability
        return on_one_scale(Scores(unsafe, categories, tuple(reasons)))

    def _probability(self, logits: "Tensor", flagged: bool) -> float | None:
        """P(unsafe) of the two words; 0 or 1 where the answer was written with other tokens and they contradict it."""
        safe, unsafe = logits[self._words].softmax(-1).tolist()
        if not (0 <= safe <= 1 and 0 <= unsafe <= 1):  # NaN
            return None
        return float(unsafe) if (unsafe >= 0.5) == flagged else float(flagged)


def with_categories(chat: str, taxonomy: Taxonomy) -> str:
    """A rendered chat with the user's categories in its block.

    Raises:
        CheckpointError: the chat does not hold exactly one block.
    """
    _check_block(chat)
    blocks = [
        f"S{code}: {category.name}."
        + ("" if category.name_only else f"\n{_described(category.definition, category.examples)}")
        for code, category in enumerate(taxonomy, 1)
    ]
    before, rest = chat.split(_BEGIN)
    after = rest.split(_END)[1]
    return f"{before}{_BEGIN}\n" + "\n".join(blocks) + f"\n{_END}{after}"


def _described(definition: str, examples: Sequence[str]) -> str:
    ended = definition if definition.endswith((".", "!", "?")) else f"{definition}."
    return f"{ended} Examples include: {', '.join(examples)}." if examples else ended


def _check_block(chat: str) -> str:
    if chat.count(_BEGIN) != 1 or chat.count(_END) != 1 or chat.index(_END) < chat.index(_BEGIN):
        raise CheckpointError(
            f"The chat template writes no block of categories ({_BEGIN} ... {_END}); this is no Llama Guard."
        )
    return chat


def read_answer(reply: Reply, categories: int) -> tuple[bool | None, list[int]]:
    """What an answer says: whether it flags (None: unreadable), and the places of the categories it lists.

    Args:
        reply: `safe`, or `unsafe` and on the next line codes, separated by commas.
        categories: how many there are; with a code beyond them, no place is returned.
    """
    match = _ANSWER.fullmatch(reply.text.strip())
    if match is None or reply.ending not in ("whole", "cut"):
        return None, []
    flagged, listed = match[1].casefold() == "unsafe", match[2]
    if not flagged:
        # `safe` and a list of violations contradict each other; a safe that was cut off might have gone on.
        return (None, []) if listed or reply.ending == "cut" else (False, [])
    if listed is None or reply.ending == "cut":
        return True, []
    if not _CODES.fullmatch(listed.strip()):
        return True, []
    places = [int(code.strip()[1:]) - 1 for code in listed.split(",")]
    inside = all(0 <= place < categories for place in places)
    return True, sorted(set(places)) if inside else []


def load_llamaguard(
    *,
    path: str,
    device: str | None = None,
    dtype: str = "auto",
    revision: str = "main",
    batch_size: int = 4,
) -> LlamaGuard:
    """Load Llama Guard 3 Vision or 4 from a folder or the hub.

    Raises:
        CheckpointError: it cannot be loaded; on the hub it is gated, so accept Llama's licence and log in first.
    """
    checkpoint = Checkpoint(path, device, dtype, revision)
    return LlamaGuard(LocalChat.load(checkpoint, max_new_tokens=_TOKENS, batch_size=batch_size))
