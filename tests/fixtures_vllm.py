"""A stand-in for the parts of vLLM that Ray's multimodal stage calls, from their contract: chat messages in, a conversation
with placeholders and the images out. vLLM itself needs a machine of its own.
"""

import base64
import io
import sys
from types import ModuleType


class ModelConfig:
    """Keeps what it was given."""

    def __init__(self, **options):
        self.options = options


async def parse_chat_messages_async(messages, model_config, *, content_format):
    """As vLLM reads messages: `openai` keeps parts, `string` joins texts behind one placeholder for each image.

    A part of a known type without a content is skipped, with no more than a line in the log; an unknown type raises.
    """
    from PIL import Image

    conversation, images = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        read = []
        for part in parts:
            if part["type"] == "text":
                read.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image_url":
                url = (part["image_url"] or {}).get("url")
                if url is None:
                    continue
                images.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
                read.append({"type": "image"})
            else:
                raise NotImplementedError(f"Unknown part type: {part['type']}")
        if content_format == "string":
            shown = ["<image>"] * sum(part["type"] == "image" for part in read)
            read = "\n".join([*shown, *(part["text"] for part in read if part["type"] == "text")])
        conversation.append({"role": message["role"], "content": read})
    return conversation, {"image": images} if images else None, None


def install(monkeypatch):
    """Make the stand-in importable as `vllm`."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.config", "vllm.entrypoints")}
    chat = modules["vllm.entrypoints.chat_utils"] = ModuleType("vllm.entrypoints.chat_utils")
    modules["vllm.config"].ModelConfig = ModelConfig
    chat.parse_chat_messages_async = parse_chat_messages_async
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
