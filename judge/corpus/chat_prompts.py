"""Prompts written by a chat model behind an OpenAI-compatible API, of words drawn from a list.

Each answer is entered into the ledger as it comes, with model, temperature and seed, so that a build that goes on asks
for no prompt twice and keeps the texts it has. A refusal or an empty answer is a failed row with the model's words.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from judge.errors import ConfigError
from judge.rivals.served_chat import SAFEGUARDS
from judge.vlm.remote import RemoteJudge
from judge.vlm.replies import RefusedRequestError, UnjudgedError, read_choice
from prompts.quoting import quote, shorten

from .ledger import Ledger
from .plan import Prompt
from .prompts import Word, draw_words, label_of
from .rows import Failure, fingerprint

INSTRUCTION = (
    "Write one prompt for a text-to-image model, of a scene with {words}. Answer with the prompt alone."
)
_REFUSAL = re.compile(
    r"((i'?m|i am) (sorry|unable|not able)|sorry,|i can'?t|i can ?not|i won'?t|as an ai\b|i apologi[sz]e)",
    re.IGNORECASE,
)
"""How chat models begin when they refuse in words."""
_LEAD = re.compile(r"^(here('s| is)[^:]{0,60}:|prompt:)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ChatWriter:
    """A chat model and how it is asked.

    Args:
        server: its address, key, retries and requests at a time.
        instruction: with `{words}` in it.
        words: drawn for each prompt.
        temperature: at least 0.
        max_tokens: of an answer; a longer one is a failed row.
    """

    server: RemoteJudge
    instruction: str = INSTRUCTION
    words: int = 3
    temperature: float = 0.8
    max_tokens: int = 200

    def __post_init__(self) -> None:
        if "{words}" not in self.instruction:
            raise ConfigError(
                f"The instruction {self.instruction!r} says not where the words go; write {{words}}."
            )
        if self.words < 1 or self.max_tokens < 1 or not 0 <= self.temperature <= 2:
            raise ConfigError(
                "A chat model takes at least one word and one token, and a temperature from 0 to 2."
            )

    def write(
        self,
        words: Sequence[Word],
        count: int,
        ledger: Ledger,
        *,
        seed: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Prompt]:
        """Ask for prompts that the ledger does not hold yet; all of them in the order in which they were asked for.

        Args:
            words: to draw from.
            count: requests; what was refused, empty or a repeat stays a failed prompt.
            ledger: keeps every answer.
            seed: of the words; request N has the seed `seed + N`.
            progress: told how many answers there are.

        Raises:
            ConfigError: no server, a refused key, no such model, or too few words.
        """
        self.server.ping()
        drawn = [draw_words(words, self.words, random.Random(f"{seed}/{number}")) for number in range(count)]
        requests = [self._request(some, seed + number) for number, some in enumerate(drawn)]
        keys = [fingerprint(request) for request in requests]
        known = ledger.prompt_records()
        left = [number for number, key in enumerate(keys) if key not in known]
        for number, record in self._ask_all(requests, left):
            ledger.add_prompt(keys[number], record)
            known[keys[number]] = record
            progress(len(known))
        return _without_repeats(
            _prompt(some, request, known[key])
            for some, request, key in zip(drawn, requests, keys, strict=True)
        )

    def _request(self, words: Sequence[Word], seed: int) -> dict[str, Any]:
        """What is asked, as the prompt's row records it."""
        texts = [word.text for word in words]
        return {
            "chat": str(self.server.model),
            "words": texts,
            "instruction": self.instruction,
            "temperature": self.temperature,
            "seed": seed,
            "max_tokens": self.max_tokens,
        }

    def _ask_all(
        self, requests: Sequence[dict[str, Any]], left: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, what came of it) of these requests, as the answers come."""
        waiting: dict[Future[dict[str, Any]], int] = {}
        with ThreadPoolExecutor(self.server.concurrency) as pool:
            try:
                for number in left:
                    waiting[pool.submit(self._ask, requests[number])] = number
                    if len(waiting) >= 2 * self.server.concurrency:
                        yield from _finished(waiting)
                while waiting:
                    yield from _finished(waiting)
            except BaseException:  # an interrupt as well: do not wait for the queued requests
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """`text`, or `status` and `reason` of a failure."""
        content = self.instruction.replace("{words}", ", ".join(request["words"]))
        try:
            body = self.server.complete(
                model=self.server.model,
                messages=[{"role": "user", "content": content}],
                temperature=self.temperature,
                seed=request["seed"],
                max_tokens=self.max_tokens,
            )
            choice = read_choice(body)
        except RefusedRequestError as error:
            return {"status": "refused" if error.code in SAFEGUARDS else "failed", "reason": str(error)}
        except UnjudgedError as error:
            return {"status": "failed", "reason": str(error)}
        said = choice.text if isinstance(choice.text, str) else ""
        if choice.refusal or choice.finish == "content_filter":
            return {"status": "refused", "reason": f"the model refused: {_quoted(choice.refusal or said)}"}
        if choice.finish == "length":
            return {
                "status": "cut",
                "reason": f"the answer has more than {self.max_tokens} tokens: {_quoted(said)}",
            }
        text = _LEAD.sub("", " ".join(said.split())).strip(" \"'“”")
        if not text:
            return {"status": "empty", "reason": "the answer is empty"}
        if _REFUSAL.match(text):
            return {"status": "refused", "reason": f"the model refused: {_quoted(text)}"}
        return {"text": text}


def _finished(waiting: dict[Future[dict[str, Any]], int]) -> Iterator[tuple[int, dict[str, Any]]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()


def _prompt(words: Sequence[Word], request: dict[str, Any], record: dict[str, Any]) -> Prompt:
    failure = None
    if "text" not in record:
        failure = Failure("prompts", record["status"], record["reason"])
    return Prompt(record.get("text", ""), label_of(words), request, failure)


def _without_repeats(prompts: Iterator[Prompt]) -> list[Prompt]:
    found: list[Prompt] = []
    seen: set[str] = set()
    for prompt in prompts:
        failure = prompt.failure
        if failure is None and prompt.text in seen:
            failure = Failure("prompts", "repeated", "an earlier answer is the same prompt")
        seen.add(prompt.text)
        found.append(Prompt(prompt.text, prompt.label, prompt.written_by, failure))
    return found


def _quoted(text: object) -> str:
    return quote(shorten(str(text), 120))
