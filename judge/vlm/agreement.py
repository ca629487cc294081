"""Check at load that our inputs to a base model equal those of its own processor.

The judge builds tokens, positions and pixels itself, in order to cache policies and pack answers. Families differ in
the text around an image and in further inputs; a judge that leaves some out still gives scores, but wrong ones. So
sample conversations are encoded both ways when a base is loaded, and any difference is an error. For families outside
`VERIFIED`, which no test covers end to end, the model's outputs are compared as well, at the cost of two forward passes
per sample.
"""

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
from .pack import Visual
from .positions import chain_positions
from .tree import Continuation

if TYPE_CHECKING:
    from PIL.Image import Image

VERIFIED = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Model types whose scores the tests compare with those of their own processor and model."""
SIZES = ((96, 40), (40, 64))
"""Width and height of the sample images: families that tile images tile these two differently."""
SAMPLE = Taxonomy("sample", "1", (Category("blood", "wounds"),))
_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


def check_agreement(model: Any, processor: Any) -> None:
    """Compare our tokens, positions and pixels with the processor's for two sample conversations.

    Raises:
        CheckpointError: they differ; names the family and the difference.
    """
    family = str(model.config.model_type)
    encoder = ChatEncoder(processor)
    chat = _sample(encoder)
    try:
        for size in SIZES:
            image = _picture(size)
            theirs = _processor_inputs(processor, chat, image)
            ours, visual = _our_inputs(encoder, chat, image)
            difference = (
                _tokens_differ(processor, ours.prefix + ours.chain, theirs)
                or _inputs_differ(visual, theirs)
                or _positions_differ(model, ours, visual, theirs)
                or (family not in VERIFIED and _answers_differ(model, processor, ours, visual, theirs))
            )
            if difference:
                raise CheckpointError(_message(family, difference))
    except CheckpointError:
        raise
    except Exception as error:  # processors and models raise exceptions of any kind on unsuitable inputs
        raise CheckpointError(_message(family, f"Comparing them failed with {error!r}")) from error


def _message(family: str, difference: str) -> str:
    return (
        f"Bases of the family {family!r} cannot be judges: for a chat with an image, the inputs of their processor and "
        f"those of the judge differ. {difference.rstrip('.')}. "
        f"Use one of {', '.join(VERIFIED)}, or serve the model and give its URL as judge."
    )


def _sample(encoder: ChatEncoder) -> Chat:
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


def _picture(size: tuple[int, int]) -> "Image":
    """A radial gradient of grey, so that no two regions are equal."""
    from PIL import Image

    return Image.radial_gradient("L").resize(size).convert("RGB")


def _processor_inputs(processor: Any, chat: Chat, image: "Image") -> Mapping[str, Tensor]:
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


def _our_inputs(encoder: ChatEncoder, chat: Chat, image: "Image") -> tuple[Encoded, Visual]:
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


def _inputs_differ(visual: Visual, theirs: Mapping[str, Tensor]) -> str:
    """Compare pixel tensors; attention masks and token types must be trivial, as the judge leaves them out."""
    mask = theirs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        return "The processor hides tokens by its attention_mask"
    types = theirs.get("token_type_ids")
    if types is not None and bool(types.any()):
        return "The processor marks the image's tokens by token_type_ids, which the judge does not feed"
    others = {key: value for key, value in theirs.items() if key not in _TEXT}
    if others.keys() != visual.keys():
        return f"The processor gives {sorted(others)} with an image and the judge {sorted(visual)}"
    for key, value in others.items():
        if value.shape != visual[key].shape or not torch.equal(value, visual[key]):
            return f"{key} depends on the text around the image ({tuple(value.shape)} and {tuple(visual[key].shape)})"
    return ""


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
    with torch.no_grad():
        inputs = {
            key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
            for key, value in theirs.items()
        }
        logits = model(**inputs, use_cache=False).logits[0, -1].float()
    likely = logits.topk(5).indices  # the five tokens as closed answers of one token each
    answers = tuple(Continuation((int(token),), 0) for token in likely)
    rows = [Encoded(ours.prefix, ours.chain, (answers,))]
    found = AnswerScorer(model).log_probabilities(visual, rows)[0].exp()
    gap = float((found.to(logits) - logits[likely].softmax(dim=0)).abs().max())
    # With 16 or 4 bits, rounding depends on how rows are packed.
    allowed = 1e-3 if model.dtype is torch.float32 and not getattr(model, "is_quantized", False) else 0.05
    return f"The probability of a next token differs by {gap:.2g}" if not gap <= allowed else ""
