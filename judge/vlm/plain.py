"""The slower exact judge, for families whose inputs the fast path (`judge.vlm.score`) cannot reproduce.

Each question (the image alone, with each window of its prompt, about each category) is one ordinary call of the base's
own processor. Its closed answers are written behind it as complete rows, in the way that `generate` writes what it
generates, and scored by ordinary forward passes: no cached policy, no packed answers, no mask or position of ours. The
same policy, image and question are computed again for every row, which is the price.

`check_plain` compares such scores, when a base is loaded, with the logits of the model's own `generate`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from judge.errors import CheckpointError
from prompts.errors import TemplateError
from prompts.taxonomy import Category, Taxonomy
from prompts.template import Answer, Chat, render

from .encode import MAX_CACHED_TEXTS, ChatEncoder, Variant
from .questions import QuestionJudge
from .tree import Continuation, TokenTree, answer_log_probabilities, build_tree

if TYPE_CHECKING:
    from PIL.Image import Image

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs (B, S) that have a value for each token; all others belong to the image."""
ROWS = 8
"""Complete rows in one forward pass."""
_SAMPLE = Taxonomy("sample", "1", (Category("blood", "wounds"), Category("blood/old", "old wounds")))
_SIZE = 96, 40


@dataclass(frozen=True)
class PlainQuestion:
    """One question about one image, as the base's own processor writes it."""

    inputs: dict[str, Tensor]
    """All that the processor returned, for a batch of one: `input_ids` (1, S), `pixel_values` and so on."""
    answers: tuple[tuple[int, ...], ...]
    """Tokens of each closed answer, with the end of the turn."""

    def __len__(self) -> int:
        """Tokens of the question with its longest answer."""
        return int(self.inputs["input_ids"].shape[1]) + max(map(len, self.answers))


@dataclass
class PlainEncoder(ChatEncoder):
    """Writes questions by `apply_chat_template` with the image, as the base's documentation does."""

    _tokens: "LRUCache[tuple[str, str], tuple[int, ...]]" = field(
        default_factory=lambda: LRUCache(MAX_CACHED_TEXTS), repr=False
    )

    def question(self, chat: Chat, image: "Image") -> PlainQuestion:
        """A question about one image.

        Raises:
            CheckpointError: the base's chat template cannot write it (without system turns, say).
            TemplateError: an answer would change how the text before it is tokenised.
        """
        text = self.text(chat)
        messages = [
            {**message, "content": [_with_image(part, image) for part in message["content"]]}
            for message in chat.messages
        ]
        inputs = self.processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        inputs.pop("labels", None)  # of a processor that is made for training
        return PlainQuestion(dict(inputs), tuple(self.answer_ids(text, answer) for answer in chat.answers))

    def text(self, chat: Chat) -> str:
        """The chat as the base's own template writes it, up to where the answer begins."""
        try:
            return str(
                self.processor.apply_chat_template(
                    list(chat.messages), tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # Jinja templates raise what they like
            raise CheckpointError(
                f"The base's chat template refused the {self.template!r} template ({error}); "
                "for a base without system turns use --template perspective."
            ) from error

    def answer_ids(self, text: str, answer: Answer) -> tuple[int, ...]:
        """Tokens of an answer and the end of the turn, as in a joint tokenisation with the last line of `text`."""
        tail = text[max(text.rfind("\n"), 0) :]
        key = tail, answer.text
        if key not in self._tokens:
            tokenize = partial(self.processor.tokenizer, add_special_tokens=False)
            before = tokenize(tail).input_ids
            both = tokenize(tail + self.written(text, answer)).input_ids
            if both[: len(before)] != before or len(both) == len(before):
                raise TemplateError(
                    f"The answer {answer.text!r} does not start a token of its own after {tail[-20:]!r}; "
                    "end the chat template's generation prompt in a space or a newline."
                )
            self._tokens[key] = tuple(both[len(before) :])
        return self._tokens[key]

    def written(self, text: str, answer: Answer) -> str:
        """An answer as it is written behind `text`: separated by white space, with the end of the turn."""
        return ("" if text[-1:].isspace() else " ") + answer.text + str(self.processor.tokenizer.eos_token)

    def policy_tokens(self, taxonomy: Taxonomy) -> int:
        """Tokens of a question under a policy, without image and prompt."""
        chat = self.variants(taxonomy, None, multilabel=False)[0].chat
        text = self.text(chat)
        own = str(getattr(self.processor, "image_token", None) or "")
        ids = self.ids(text.replace(own, "", 1) if own else text)
        return len(ids) + max(len(self.answer_ids(text, answer)) for answer in chat.answers)


def _with_image(part: dict[str, Any], image: "Image") -> dict[str, Any]:
    return {**part, "image": image} if part["type"] == "image" else part


@dataclass
class PlainJudge(QuestionJudge):
    """A vision-language model as a classifier of any taxonomy, by ordinary calls of its own processor and model."""

    why_no_gradients: ClassVar[str] = (
        "its family is judged through its own processor, which gives no gradients"
    )

    def __post_init__(self) -> None:
        self.encoder: PlainEncoder = PlainEncoder(self.processor, self.template)

    def _run(
        self, images: "Sequence[Image]", variants: Sequence[Sequence[Variant]]
    ) -> Iterator[tuple[Variant, Tensor | None, str | None]]:
        limit = self._context()
        for image, asked in zip(images, variants, strict=True):
            for variant in asked:
                question = self.encoder.question(variant.chat, image)
                if len(question) > limit:
                    yield variant, None, f"the text takes {len(question)} tokens, the model reads {limit}"
                    continue
                found = answer_scores(self.model, question).cpu()
                finite = bool(torch.isfinite(found).all())
                yield (
                    variant,
                    found if finite else None,
                    None if finite else "the model gave no finite score",
                )


def answer_scores(model: Any, question: PlainQuestion) -> Tensor:
    """Log-probabilities (C,) of a question's closed answers, float32.

    As everywhere in the judge, the model chooses at each step among the tokens that continue an allowed answer. So of
    each answer only the part with a choice is written, and answers whose parts another one contains need no row.
    """
    tree = build_tree([Continuation(answer, 0) for answer in question.answers])
    paths = _paths(tree)
    logits: dict[int, Tensor] = {}
    for start in range(0, len(paths), ROWS):
        some = paths[start : start + ROWS]
        found = _row_logits(model, question.inputs, [[tree.tokens[node] for node in path] for path in some])
        for path, row in zip(some, found, strict=True):
            logits.update(zip((-1, *path), row, strict=False))  # a shorter row is padded behind its end
    return answer_log_probabilities(tree, torch.stack([logits[node] for node in tree.predictors])[None])[0]


def _paths(tree: TokenTree) -> list[tuple[int, ...]]:
    """The nodes from the question's end to each leaf, so that every node lies on one of the paths."""
    leaves = set(range(len(tree.tokens))) - set(tree.parents)
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    for node, parent in enumerate(tree.parents):  # parents first
        paths[node] = (*paths[parent], node)
    return [paths[leaf] for leaf in sorted(leaves)] or [()]


@torch.no_grad()
def _row_logits(model: Any, inputs: dict[str, Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits (R, 1 + A, V) after a question and after each of at most A tokens that R rows write behind it."""
    written = complete_rows(model, inputs, rows)
    return last_logits(model, written, 1 + max(map(len, rows)))


def complete_rows(model: Any, inputs: dict[str, Tensor], rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """One question with R continuations of at most A tokens behind it, as complete rows padded on the right.

    Args:
        model: gives the rule by which `generate` prolongs masks and token types.
        inputs: of the question, a batch of one.
        rows: tokens of R continuations.

    Returns:
        The inputs with R rows: (R, S + A) of what has a value for each token, and the image's tensors R times.
    """
    plain = unwrapped(model)
    longest = max(map(len, rows))
    more = {key: value for key, value in inputs.items() if key != "input_ids"}
    ids = inputs["input_ids"]
    more.setdefault("attention_mask", torch.ones_like(ids))
    for _ in range(longest):  # one by one: some families prolong by the last value
        more = plain._update_model_kwargs_for_generation({}, more, False)
    repeated = {key: torch.cat([value] * len(rows)) for key, value in more.items()}
    tokens = torch.zeros(len(rows), longest, dtype=ids.dtype)
    for row, own in enumerate(rows):
        tokens[row, : len(own)] = torch.tensor(own, dtype=ids.dtype)
        repeated["attention_mask"][row, ids.shape[1] + len(own) :] = 0
    repeated["input_ids"] = torch.cat([ids.expand(len(rows), -1), tokens], dim=1)
    return repeated


def last_logits(model: Any, inputs: dict[str, Tensor], count: int) -> Tensor:
    """Logits (R, count, V) of the last positions of R rows, by an ordinary forward pass."""
    plain = unwrapped(model)
    fewer = {"logits_to_keep": count} if "logits_to_keep" in signature(plain.forward).parameters else {}
    logits: Tensor = model(**_placed(plain, inputs), use_cache=False, **fewer).logits
    return logits[:, -count:]


def unwrapped(model: Any) -> Any:
    """The transformers model inside the wrappers of DDP, DeepSpeed and peft."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _placed(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs on the model's device, pixels in its precision."""
    return {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in inputs.items()
    }


def check_plain(model: Any, processor: Any) -> None:
    """Compare complete rows with what the base's own processor and `generate` make of a sample conversation.

    Under ZeRO-3 no process holds all weights, so only tokens are compared; the judge is loaded and compared again after
    training.

    Raises:
        CheckpointError: they differ, or the image changes nothing; names the family and the difference.
    """
    family = str(model.config.model_type)
    try:
        difference = _difference(model, processor)
    except CheckpointError:
        raise
    except Exception as error:  # processors and models raise exceptions of any kind on unsuitable inputs
        raise CheckpointError(
            f"{_refusal(family)} Asking it a sample question failed with {error!r}."
        ) from error
    if difference:
        raise CheckpointError(f"{_refusal(family)} {difference}.")


def _refusal(family: str) -> str:
    return (
        f"Bases of the family {family!r} cannot be judges, not even by ordinary calls of their processor and model; "
        "serve the model and give its URL as judge, or use another base."
    )


def _difference(model: Any, processor: Any) -> str:
    from PIL import Image
    from transformers.integrations import is_deepspeed_zero3_enabled

    encoder = PlainEncoder(processor)
    chat, text = _sample(encoder)
    grey = Image.radial_gradient("L").resize(_SIZE).convert("RGB")
    question = encoder.question(chat, grey)
    whole = text + encoder.written(text, chat.answers[-1])
    special = not (processor.tokenizer.bos_token and whole.startswith(processor.tokenizer.bos_token))
    joint = processor(text=[whole], images=[[grey]], return_tensors="pt", add_special_tokens=special)
    ids = (*question.inputs["input_ids"][0].tolist(), *question.answers[-1])
    if tuple(joint["input_ids"][0].tolist()) != ids:
        return "An answer changes how its processor writes the question"
    if is_deepspeed_zero3_enabled():
        return ""
    found = _row_logits(model, question.inputs, question.answers)
    allowed = 1e-3 if model.dtype is torch.float32 and not getattr(model, "is_quantized", False) else 0.05
    for answer, row in zip(question.answers, found, strict=True):
        steps = _generated(model, question.inputs, answer)
        gap = float((row[: len(steps)].float().softmax(-1) - steps.float().softmax(-1)).abs().max())
        if not gap <= allowed:
            return f"The probability of a next token differs by {gap:.2g} from that of its own generate"
    black = encoder.question(chat, Image.new("RGB", _SIZE))
    if torch.equal(_row_logits(model, black.inputs, [()]), _row_logits(model, question.inputs, [()])):
        return "The image changes nothing"
    return ""


def _sample(encoder: PlainEncoder) -> tuple[Chat, str]:
    """A chat in the first template that the base's chat template accepts, and its text."""
    first = None
    for template in ("policy_first", "perspective"):
        chat = render(_SAMPLE, "a photo", template=template)
        try:
            return chat, encoder.text(chat)
        except CheckpointError as error:
            first = first or error
    raise first or AssertionError


def _generated(model: Any, inputs: dict[str, Tensor], answer: Sequence[int]) -> Tensor:
    """Logits (A, V) of `generate` at each step of an answer that it is made to write."""
    from transformers import GenerationConfig

    start = inputs["input_ids"].shape[1]
    settings = GenerationConfig(
        max_new_tokens=len(answer),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    written = model.generate(
        **_placed(model, inputs),
        generation_config=settings,
        prefix_allowed_tokens_fn=lambda _, ids: [answer[len(ids) - start]],
    )
    return torch.cat(written.logits)
