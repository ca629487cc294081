"""A LLaVA that goes on from a smaller one: the same tower, more words, more layers that change nothing at first."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def carry_over(old: Any, old_tokenizer: Any, new: Any, new_tokenizer: Any) -> None:
    """Give `new` what `old` has learnt.

    Tower and projector are copied. A word begins as the mean of what the old tokenizer makes of it in small letters.
    New layers are copies of the layer before them whose output is zero.

    Args:
        old: a LLaVA.
        old_tokenizer: byte-level, as the new one.
        new: of the same widths, with as many layers or more.
        new_tokenizer: with the same special tokens under the same numbers.
    """
    import torch

    new.model.vision_tower.load_state_dict(old.model.vision_tower.state_dict())
    new.model.multi_modal_projector.load_state_dict(old.model.multi_modal_projector.state_dict())
    old_text, new_text = old.model.language_model, new.model.language_model
    new_text.norm.load_state_dict(old_text.norm.state_dict())
    depth, more = len(old_text.layers), len(new_text.layers)
    with torch.no_grad():
        before = -1
        for place, layer in enumerate(new_text.layers):
            source = place * depth // more
            layer.load_state_dict(old_text.layers[source].state_dict())
            if source == before:  # the second copy of a layer
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            before = source
        new_text.embed_tokens.weight.copy_(
            carried_embeddings(old_text.embed_tokens.weight, old_tokenizer, new_tokenizer)
        )


def carried_embeddings(weight: "Tensor", old_tokenizer: Any, new_tokenizer: Any) -> "Tensor":
    """Embeddings of the new tokens: (new tokens, hidden) from (old tokens, hidden), with a little noise.

    Without noise a word and its capitals would begin as the same.
    """
    import torch
    from tokenizers.decoders import ByteLevel

    decoder = ByteLevel()
    rows = []
    special = len(new_tokenizer.all_special_ids)
    for token, number in sorted(new_tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        text = decoder.decode([token])
        if number < special:
            ids = [old_tokenizer.convert_tokens_to_ids(token)]
        elif "\ufffd" in text:  # a part of a character: byte by byte
            ids = old_tokenizer.convert_tokens_to_ids(list(token))
        else:
            ids = old_tokenizer(text.lower(), add_special_tokens=False).input_ids
        rows.append(weight[ids].mean(0))
    carried = torch.stack(rows)
    return carried + 0.1 * weight.std() * torch.randn_like(carried)
