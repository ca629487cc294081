"""Answers of a vision-language model behind an OpenAI-compatible API, in free text."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from judge.errors import ConfigError
from judge.vlm.remote import RemoteJudge
from judge.vlm.replies import NoAnswerError, RefusedRequestError, UnjudgedError, data_url, read_choice

from .chats import Reply

if TYPE_CHECKING:
    from PIL.Image import Image

SAFEGUARDS = ("content_filter", "content_policy_violation", "moderation_blocked")
"""Codes with which OpenAI and Azure refuse a request because of what is in it."""


class ServedChat:
    """A model on a server: address, key, retries and requests at a time are those of `RemoteJudge`.

    Args:
        server: where it is; its template and `constrain` have no effect here.
        max_tokens: of an answer; a longer one is cut off.

    Raises:
        ConfigError: `max_tokens` under 1.
    """

    def __init__(self, server: RemoteJudge, *, max_tokens: int = 256) -> None:
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}; give at least 1.")
        self.server, self.max_tokens = server, max_tokens
        self._found = False

    @property
    def name(self) -> str:
        """The model's name on the server."""
        return self.server.name

    def ask(self, images: "Sequence[Image]", texts: Sequence[str]) -> list[Reply]:
        """The replies to N questions, each about its own image, at temperature 0; one that fails says why.

        Raises:
            ConfigError: at first use no server or no such model; at any time a refused key, or HTTP 404.
        """
        if not self._found:
            self.server.ping()
            self._found = True
        # Encoded once for all questions about an image; `id` is safe while the images are held.
        urls = {id(image): data_url(image) for image in {id(image): image for image in images}.values()}
        with ThreadPoolExecutor(self.server.concurrency) as pool:
            asked = [
                pool.submit(self._ask, urls[id(image)], text)
                for image, text in zip(images, texts, strict=True)
            ]
            try:
                return [one.result() for one in asked]
            except BaseException:  # an interrupt as well: do not wait for the queued requests
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, image_url: str, text: str) -> Reply:
        content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": text}]
        try:
            body = self.server.complete(
                model=self.server.model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                seed=0,
                max_tokens=self.max_tokens,
            )
            choice = read_choice(body)
        except RefusedRequestError as error:
            return Reply(str(error), "refused" if error.code in SAFEGUARDS else "failed")
        except UnjudgedError as error:
            return Reply(str(error), "failed", unanswered=isinstance(error, NoAnswerError))
        if choice.refusal or choice.finish == "content_filter":
            return Reply(str(choice.refusal or choice.text or ""), "refused")
        if not isinstance(choice.text, str):
            return Reply("the server's reply holds no text", "failed")
        return Reply(choice.text, "cut" if choice.finish == "length" else "whole")
