"""Greedy answers of a local vision-language model: any chat model of transformers, and InstructBLIP."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from judge.errors import CheckpointError, ConfigError

from .chats import Reply
from .checkpoints import Checkpoint, checkpoint_name, load_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class LocalChat:
    """A model and its processor; `ask` puts a question to an image and returns what the model writes.

    Args:
        model: what `generate` is called on.
        processor: its own, with a chat template; InstructBLIP's has none and needs none.
        name: of the model.
        max_new_tokens: of an answer; a longer one is cut off.
        batch_size: images in one pass. Rows of a batch are padded on the left.

    Raises:
        CheckpointError: no chat template.
        ConfigError: numbers under 1.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, *, max_new_tokens: int = 256, batch_size: int = 8
    ) -> None:
        self._plain = model.config.model_type == "instructblip"
        if not self._plain and not getattr(processor, "chat_template", None):
            raise CheckpointError(f"{name} has no chat template, so it cannot be asked; use a chat model.")
        if max_new_tokens < 1 or batch_size < 1:
            raise ConfigError(f"max_new_tokens {max_new_tokens}, batch_size {batch_size}: give at least 1.")
        self.model, self.processor, self.name = model.eval(), processor, name
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    @classmethod
    def load(cls, checkpoint: Checkpoint, **options: Any) -> "LocalChat":
        """Load the model that a folder or the hub holds; errors as of `load_checkpoint`."""
        model, processor = load_checkpoint(checkpoint)
        return cls(model, processor, checkpoint_name(checkpoint.path), **options)

    def ask(self, images: "Sequence[Image]", texts: Sequence[str]) -> list[Reply]:
        """The replies to N questions, each about its own image."""
        return [reply for reply, _ in self.generate(images, [self.render(text) for text in texts])]

    def render(self, text: str, edit: Callable[[str], str] = lambda chat: chat) -> str:
        """The model's input for a question about an image, as text; `edit` may change what the template wrote."""
        if self._plain:
            return text
        content = [{"type": "image"}, {"type": "text", "text": text}] if text else [{"type": "image"}]
        chat = [{"role": "user", "content": content}]
        written: str = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return edit(written)

    def generate(
        self, images: "Sequence[Image]", chats: Sequence[str], *, first: bool = False
    ) -> "list[tuple[Reply, Tensor | None]]":
        """The replies to N rendered chats.

        Args:
            images: one for each chat.
            chats: what `render` returned.
            first: whether to return, beside each reply, the (V,) logits of its first token that is no blank.
        """
        found: list[tuple[Reply, Tensor | None]] = []
        for start in range(0, len(chats), self.batch_size):
            stop = start + self.batch_size
            found += self._generate_batch(images[start:stop], chats[start:stop], first)
        return found

    def _generate_batch(
        self, images: "Sequence[Image]", chats: Sequence[str], first: bool
    ) -> "list[tuple[Reply, Tensor | None]]":
        import torch

        inputs = self._encode(images, chats)
        with torch.no_grad():
            output = self.model.generate(**inputs, generation_config=self._greedy(first))
        sequences, asked = output.sequences, inputs["input_ids"]
        length = asked.shape[1]
        # Models with an encoder for the text return the answer alone.
        if sequences.shape[1] >= length and torch.equal(sequences[:, :length], asked):
            sequences = sequences[:, length:]
        replies = [self._reply(ids) for ids in sequences.tolist()]
        if not first:
            return [(reply, None) for reply in replies]
        places = [self._first_word(ids) for ids in sequences.tolist()]
        return [
            (reply, None if place is None else output.logits[place][row].double().cpu())
            for row, (reply, place) in enumerate(zip(replies, places, strict=True))
        ]

    def _encode(self, images: "Sequence[Image]", chats: Sequence[str]) -> Any:
        tokenizer = self.processor.tokenizer
        # Many chat templates write the first token themselves.
        begun = bool(tokenizer.bos_token) and chats[0].startswith(tokenizer.bos_token)
        special = {"add_special_tokens": False} if begun else {}
        tokenizer.padding_side = "left"
        # In lists of their own, because some processors would give all images to the first text.
        each = list(images) if self._plain else [[image] for image in images]
        inputs = self.processor(images=each, text=list(chats), padding=True, return_tensors="pt", **special)
        if self._plain:
            # The Q-Former reads the beginning of a long policy; the language model behind it reads all.
            most = self.model.config.qformer_config.max_position_embeddings
            for name in ("qformer_input_ids", "qformer_attention_mask"):
                inputs[name] = inputs[name][:, :most]
        return inputs.to(self.model.device, self.model.dtype)

    def _greedy(self, logits: bool) -> Any:
        """Greedy decoding, without the sampling that a checkpoint's own settings may ask for."""
        from transformers import GenerationConfig

        tokenizer, own = self.processor.tokenizer, self.model.generation_config
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=logits,
            eos_token_id=self._ends,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=own.bos_token_id or tokenizer.bos_token_id,
            decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
        )

    @property
    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        own = self.model.generation_config.eos_token_id
        named = own if isinstance(own, list) else [own]
        return sorted({end for end in (*named, self.processor.tokenizer.eos_token_id) if end is not None})

    def _reply(self, ids: list[int]) -> Reply:
        ends = set(self._ends)
        length = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self.processor.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        return Reply(text, "cut" if length is None else "whole")

    def _first_word(self, ids: list[int]) -> int | None:
        """The place of the first token that writes something."""
        decode = self.processor.tokenizer.decode
        for place, token in enumerate(ids):
            if decode([token], skip_special_tokens=True).strip():
                return place
        return None
