"""A base is accepted only if it reads here what its own processor would give it.

The judge lays out tokens, positions and pixels itself, so that policies are cached and answers packed. Families
differ in what they write around an image and in what else they feed their model; a judge that leaves some of it out
answers all the same, and wrongly. So a sample conversation goes both ways when a base is loaded, and any difference
is an error. Of families outside `VERIFIED`, whose whole way to the answer no test compares, the model's answers are
compared as well; that costs two forward passes for each sample.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from judge.errors import CheckpointError
from prompts.errors import ArbiterError
from prompts.taxonomy import Category, Taxonomy
from prompts.template import Chat, render

from .encode import ChatEncoder, Encoded, Variant
from .pack import Visual
from .positions import chain_positions
from .score import VisionLanguageJudge
from .tree import Continuation

if TYPE_CHECKING:
    from PIL.Image import Image

VERIFIED = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Model types whose scores the tests compare with answers that processor and model give on their own."""
SIZES = ((96, 40), (40, 64))
"""Width and height of the sample images: families that cut images into tiles cut these two differently."""
SAMPLE = Taxonomy("sample", "1", (Category("blood", "wounds"),))
_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


def check_agreement(model: Any, processor: Any) -> None:
    """Compare our tokens, positions and pixels with the processor's for two sample conversations.

    Raises:
        CheckpointError: they differ; the message names the family and the difference.
    """
    family = str(model.config.model_type)
    encoder = ChatEncoder(processor)
    chat = _sample(encoder)
    try:
        for size in SIZES:
            image = _picture(size)
            theirs = _their_inputs(processor, chat, image)
            ours, visual = _our_inputs(encoder, chat, image)
            difference = (
                _tokens_differ(processor, ours.prefix + ours.chain, theirs)
                or _inputs_differ(visual, theirs)
                or _positions_differ(model, ours, visual, theirs)
                or (family not in VERIFIED and _answers_differ(model, processor, ours, visual, theirs))
            )
            if difference:
                raise CheckpointError(_refused(family, difference))
    except CheckpointError:
        raise
    except Exception as error:  # processors and models raise what they like on inputs that do not suit them
        raise CheckpointError(_refused(family, f"Comparing them failed with {error!r}")) from error


def _refused(family: str, difference: str) -> str:
    return (
        f"Bases of the family {family!r} cannot be judges: what their processor makes of a chat with an image and "
        f"what the judge feeds the model differ. {difference.rstrip('.')}. "
        f"Use one of {', '.join(VERIFIED)}, or serve the model and judge by its address."
    )


def _sample(encoder: ChatEncoder) -> Chat:
    """A chat in the first template that the base can write at all."""
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
    """Grey that grows from the middle outwards, so that pixels differ from place to place."""
    from PIL import Image

    return Image.radial_gradient("L").resize(size).convert("RGB")


def _their_inputs(processor: Any, chat: Chat, image: "Image") -> Mapping[str, Tensor]:
    """All that the processor makes of the chat, as it documents it."""
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
    run, visual = encoder.encode_image(image)
    return encoder.encode_row([Variant(chat)], run), visual


def _tokens_differ(processor: Any, ours: tuple[int, ...], theirs: Mapping[str, Tensor]) -> str:
    ids = tuple(theirs["input_ids"][0].tolist())
    if ours == ids:
        return ""
    place = next((n for n, pair in enumerate(zip(ours, ids, strict=False)) if pair[0] != pair[1]), len(ours))
    shown = [
        " ".join(map(str, processor.tokenizer.convert_ids_to_tokens(list(tokens[place : place + 4]))))
        for tokens in (ids, ours)
    ]
    return (
        f"The processor writes {len(ids)} tokens and the judge {len(ours)}; from token {place} on they are "
        f"{shown[0]!r} and {shown[1]!r}"
    )


def _inputs_differ(visual: Visual, theirs: Mapping[str, Tensor]) -> str:
    """Pixels and what goes with them; masks and token types that say more than "all of it is read"."""
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
    """Where the model counts positions by rows and columns of the image, they are the judge's."""
    counted = getattr(getattr(model, "model", None), "get_rope_index", None)
    if counted is None:
        return ""
    grids = {key: value for key, value in visual.items() if key.endswith("_grid_thw")}
    expected, _ = counted(
        theirs["input_ids"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
        attention_mask=theirs["attention_mask"],
        **grids,
    )
    chains, offset = torch.tensor([ours.chain]), len(ours.prefix)
    found = chain_positions(model, chains, torch.tensor([len(ours.chain)]), visual, offset)
    before = torch.arange(offset).expand(*found.shape[:-1], offset)
    found = torch.cat([before, found], dim=-1)
    if found.shape == expected.shape and torch.equal(found, expected.to(found)):
        return ""
    return f"Positions of the tokens differ: the model counts to {int(expected.max())}, the judge to {int(found.max())}"


def _answers_differ(
    model: Any, processor: Any, ours: Encoded, visual: Visual, theirs: Mapping[str, Tensor]
) -> str:
    """Chances of the five likeliest next tokens among themselves, by the model alone and by the judge's way."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return ""  # no process holds the weights; the judge that is asked after training is loaded anew, and checked
    with torch.no_grad():
        inputs = {
            key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
            for key, value in theirs.items()
        }
        logits = model(**inputs, use_cache=False).logits[0, -1].float()
    likely = logits.topk(5).indices
    rows = [Encoded(ours.prefix, ours.chain, tuple(Continuation((int(token),), 0) for token in likely))]
    found = VisionLanguageJudge(model, processor).log_probabilities(visual, rows)[0].exp()
    gap = float((found.to(logits) - logits[likely].softmax(dim=0)).abs().max())
    # 16 bits and 4 bits round differently where rows are packed differently.
    allowed = 1e-3 if model.dtype is torch.float32 and not getattr(model, "is_quantized", False) else 0.05
    return f"The chance of a next token differs by {gap:.2g}" if not gap <= allowed else ""
