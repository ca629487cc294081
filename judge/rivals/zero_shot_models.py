"""The zero-shot models of UnsafeBench, loaded: LLaVA, InstructBLIP, any chat model, and whatever a server serves."""

from judge.vlm.remote import parse_remote

from .checkpoints import Checkpoint
from .generation import LocalChat
from .response_classifier import SHIPPED, ResponseClassifier
from .served_chat import ServedChat
from .zero_shot import Protocol, ZeroShot


def load_chat_model(
    *,
    path: str,
    responses: str = SHIPPED,
    protocol: Protocol = "strict",
    seed: int = 0,
    device: str | None = None,
    dtype: str = "auto",
    revision: str = "main",
    batch_size: int = 8,
    max_new_tokens: int = 256,
) -> ZeroShot:
    """Load any chat model of transformers that has safetensors, or InstructBLIP.

    Args:
        path: a folder or hub id.
        responses: what reads the answers; a folder, or the one that ships.
        protocol: as of `ZeroShot`.
        seed: of what `paper` draws.
        device: by default a GPU where there is one.
        dtype: as saved, or a name.
        revision: branch, tag or commit on the hub.
        batch_size: questions in one pass.
        max_new_tokens: of an answer.

    Raises:
        CheckpointError: model or response classifier cannot be loaded.
        ConfigError: no such protocol.
    """
    reader = ResponseClassifier.load(responses)
    chat = LocalChat.load(
        Checkpoint(path, device, dtype, revision), batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    return ZeroShot(chat, reader, protocol=protocol, seed=seed)


def load_served(
    *,
    url: str,
    responses: str = SHIPPED,
    protocol: Protocol = "strict",
    seed: int = 0,
    concurrency: int = 8,
    timeout: float = 60.0,
    retries: int = 4,
    max_tokens: int = 256,
) -> ZeroShot:
    """A model behind an OpenAI-compatible API, such as GPT-4o; images are sent there.

    Args:
        url: `https://HOST/v1#MODEL`; the key is the environment's OPENAI_API_KEY.
        responses: what reads the answers; a folder, or the one that ships.
        protocol: as of `ZeroShot`.
        seed: of what `paper` draws.
        concurrency: requests in flight at a time.
        timeout: seconds to wait for the server's next bytes.
        retries: further tries after a timeout, a lost connection, or HTTP 408, 409, 429 or 5xx.
        max_tokens: of an answer.

    Raises:
        ConfigError: no URL, or no such protocol.
        CheckpointError: the response classifier cannot be loaded.
        MissingExtraError: the client library is not installed.
    """
    server = parse_remote(url, concurrency=concurrency, timeout=timeout, retries=retries)
    reader = ResponseClassifier.load(responses)
    return ZeroShot(ServedChat(server, max_tokens=max_tokens), reader, protocol=protocol, seed=seed)
