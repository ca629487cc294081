"""Check at load that our inputs to a base model equal those of its own processor.

The judge builds tokens, positions and pixels itself, in order to cache policies and pack answers. Families differ in
the text around an image and in further inputs; a judge that leaves some out still gives scores, but wrong ones. So
sample conversations are encoded both ways when a base is loaded, and where they differ it is judged on the plain path.
For families and language models that `judge.vlm.families` does not list, so that no test covers them end to end, the
model's outputs are compared as well, at the cost of two forward passes per sample.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from judge.errors import CheckpointError
from prompts.errors import ArbiterError
from prompts.taxonomy import Category, Taxonomy
from prompts.template import Chat, render

from .answers import AnswerScorer
from .encode import ChatEncoder, Encoded, Variant
from .families import Path, family_of, fast_families, is_compared
from .masks import FULL, SLIDING, layer_kinds, own_image
from .pack import Visual
from .plain import check_plain
from .positions import chain_positions
from .tree import Continuation

if TYPE_CHECKING:
    from PIL.Image import Image

LOG = logging.getLogger("arbiter")
SIZES = ((96, 40), (40, 64))
"""Width and height of the sample images: families that tile images tile these two differently."""
SAMPLE = Taxonomy("sample", "1", (Category("blood", "wounds"),))
_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


def choose_path(model: Any, processor: Any) -> Path:
    """How a base that was just loaded is judged: fast where that gives what its own processor and model give.

    Raises:
        CheckpointError: not even ordinary calls of its processor and model agree; names the family and the difference.
    """
    family = str(model.config.model_type)
    reason = _why_plain(model) or find_difference(model, processor)
    if not reason:
        return "fast"
    check_plain(model, processor)
    LOG.warning(
        "%r is judged on the plain path, which is slower and as exact: %s.", family, reason.rstrip(".")
    )
    return "plain"


def _why_plain(model: Any) -> str:
    from transformers.integrations import is_deepspeed_zero3_enabled

    known = family_of(str(model.config.model_type))
    if known.path == "plain":
        return known.reason
    others = set(layer_kinds(model)) - {FULL, SLIDING}
    if others:  # as short samples may not show
        return f"layers of the kind {min(others)!r} keep more, or less, than the tokens before them"
    if is_compared(model) and is_deepspeed_zero3_enabled():
        return "under ZeRO-3 no process holds all weights, so an unknown family cannot be compared"
    return ""


def check_agreement(model: Any, processor: Any) -> None:
    """Compare our tokens, positions and pixels with the processor's for two sample conversations.

    Raises:
        CheckpointError: they differ; names the family and the difference.
    """
    difference = find_difference(model, processor)
    if difference:
        raise CheckpointError(
            f"Bases of the family {str(model.config.model_type)!r} cannot be judges on the fast path: for a chat with "
            f"an image, the inputs of their processor and those of the judge differ. {difference.rstrip('.')}. "
            f"Use one of {', '.join(fast_families())}, or serve the model and give its URL as judge."
        )


def find_difference(model: Any, processor: Any) -> str:
    """How our inputs for two sample conversations differ from the processor's, or the model's answers; empty if not.

    Raises:
        CheckpointError: the base has no chat template, or one that writes no chat with an image.
    """
    compared, encoder = is_compared(model), ChatEncoder(processor)
    chat = sample_chat(encoder)
    try:
        for size in SIZES:
            image = sample_picture(size)
            theirs = processor_inputs(processor, chat, image)
            ours, visual = our_inputs(encoder, chat, image)
            difference = (
                _tokens_differ(processor, ours.prefix + ours.chain, theirs)
                or _inputs_differ(model, ours, visual, theirs)
                or _positions_differ(model, ours, visual, theirs)
                or (compared and _answers_differ(model, processor, ours, visual, theirs))
            )
            if difference:
                return str(difference)
    except Exception as error:  # processors and models raise exceptions of any kind on unsuitable inputs
        return f"Comparing them failed with {error!r}"
    return ""


def sample_chat(encoder: ChatEncoder) -> Chat:
    """A chat in the first template that the base's chat template accepts."""
    first = None
    for template in ("policy_first", "perspective"):
        chat = render(SAMPLE, "a photo", template=template)
        try:
            encoder.text(chat)
        except ArbiterError as error:
            first = first or error
        else:
            return chat
    raise first or AssertionError


def sample_picture(size: tuple[int, int] = SIZES[0]) -> "Image":
    """A radial gradient of grey, so that no two regions are equal."""
    from PIL import Image

    return Image.radial_gradient("L").resize(size).convert("RGB")


def processor_inputs(processor: Any, chat: Chat, image: "Image") -> Mapping[str, Tensor]:
    """All inputs that the processor makes of the chat, in its documented way."""
    messages = [
        message | {"content": [part | _content(part, image) for part in message["content"]]}
        for message in chat.messages
    ]
    return processor.apply_chat_template(  # type: ignore[no-any-return]
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def _content(part: Mapping[str, Any], image: "Image") -> dict[str, Any]:
    return {"image": image} if part["type"] == "image" else {}


def our_inputs(encoder: ChatEncoder, chat: Chat, image: "Image") -> tuple[Encoded, Visual]:
    """The tokens of the chat and the image's tensors, as the fast path reads them."""
    tokens, visual = encoder.encode_image(image)
    return encoder.encode_row([Variant(chat)], tokens), visual


def _tokens_differ(processor: Any, ours: tuple[int, ...], theirs: Mapping[str, Tensor]) -> str:
    ids = tuple(theirs["input_ids"][0].tolist())  # (1, S) -> S ids
    if ours == ids:
        return ""
    place = next((n for n, pair in enumerate(zip(ours, ids, strict=False)) if pair[0] != pair[1]), len(ours))
    excerpts = [
        " ".join(map(str, processor.tokenizer.convert_ids_to_tokens(list(tokens[place : place + 4]))))
        for tokens in (ids, ours)
    ]
    return (
        f"The processor writes {len(ids)} tokens and the judge {len(ours)}; from token {place} on they are "
        f"{excerpts[0]!r} and {excerpts[1]!r}"
    )


def _inputs_differ(model: Any, ours: Encoded, visual: Visual, theirs: Mapping[str, Tensor]) -> str:
    """Compare pixel tensors; attention masks must be trivial, and token types say what the judge's masks do."""
    mask = theirs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        return "The processor hides tokens by its attention_mask"
    types = theirs.get("token_type_ids")
    if types is not None and not torch.equal(types[0].bool(), _seen_both_ways(model, ours)):
        return "The processor marks tokens by token_type_ids as the judge's attention masks do not"
    others = {key: value for key, value in theirs.items() if key not in _TEXT}
    if others.keys() != visual.keys():
        return f"The processor gives {sorted(others)} with an image and the judge {sorted(visual)}"
    for key, value in others.items():
        if value.shape != visual[key].shape or not torch.equal(value, visual[key]):
            return f"{key} depends on the text around the image ({tuple(value.shape)} and {tuple(visual[key].shape)})"
    return ""


def _seen_both_ways(model: Any, ours: Encoded) -> Tensor:
    """(S,) bool: the tokens that the judge's masks let see each other in both directions."""
    tokens = torch.tensor([ours.prefix + ours.chain])
    image = own_image(model, tokens)
    return torch.zeros(tokens.shape[1], dtype=torch.bool) if image is None else image[0].diagonal()


def _positions_differ(model: Any, ours: Encoded, visual: Visual, theirs: Mapping[str, Tensor]) -> str:
    """Compare position ids of families with 2-D image positions."""
    rope_index = getattr(getattr(model, "model", None), "get_rope_index", None)
    if rope_index is None:
        return ""
    grids = {key: value for key, value in visual.items() if key.endswith("_grid_thw")}
    expected, _ = rope_index(
        theirs["input_ids"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
        attention_mask=theirs["attention_mask"],
        **grids,
    )
    chains, offset = torch.tensor([ours.chain]), len(ours.prefix)
    found = chain_positions(model, chains, torch.tensor([len(ours.chain)]), visual, offset)
    # The text before the image counts up in all three dimensions.
    before = torch.arange(offset).expand(*found.shape[:-1], offset)
    found = torch.cat([before, found], dim=-1)
    if found.shape == expected.shape and torch.equal(found, expected.to(found)):
        return ""
    return f"Position ids differ: the model counts to {int(expected.max())}, the judge to {int(found.max())}"


def _answers_differ(
    model: Any, processor: Any, ours: Encoded, visual: Visual, theirs: Mapping[str, Tensor]
) -> str:
    """Compare probabilities of the five likeliest next tokens, by a plain forward pass and by the judge's."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return ""  # no process holds all weights; the judge is loaded and checked again after training
    logits = next_logits(model, theirs)
    likely = logits.topk(5).indices  # the five tokens as closed answers of one token each
    answers = tuple(Continuation((int(token),), 0) for token in likely)
    rows = [Encoded(ours.prefix, ours.chain, (answers,))]
    found = AnswerScorer(model).log_probabilities(visual, rows)[0].exp()
    return probabilities_differ(model, found.to(logits), logits[likely].softmax(dim=0))


@torch.no_grad()
def next_logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """(V,) of the token after a row, by an ordinary forward pass."""
    placed = {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in inputs.items()
    }
    logits: Tensor = model(**placed, use_cache=False).logits[0, -1]
    return logits.float()


def probabilities_differ(model: Any, found: Tensor, expected: Tensor) -> str:
    """How probabilities of next tokens differ beyond rounding; empty if they do not."""
    gap = float((found - expected).abs().max())
    # With 16 or 4 bits, rounding depends on how rows are packed.
    allowed = 1e-3 if model.dtype is torch.float32 and not getattr(model, "is_quantized", False) else 0.05
    return f"The probability of a next token differs by {gap:.2g}" if not gap <= allowed else ""
