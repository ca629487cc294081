"""Verdicts of an Arbiter server for other people's tools: one image, and its verdict row or why there is none."""

import base64
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Self

from judge.errors import ConfigError
from judge.verdicts.rows import is_verdict_row
from prompts.errors import ArbiterError
from prompts.printable import printable
from prompts.taxonomy import Taxonomy

from .http_json import Answer, HttpJson, NoAnswerError, check_key, pauses

API_KEY = "ARBITER_API_KEY"
"""Environment variable with the server's key."""


class NotJudgedError(ArbiterError, RuntimeError):
    """An image without a verdict; it must never be treated as safe."""

    def __init__(self, reason: str, row: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        """Why, on one line."""
        self.row = row
        """The verdict row (`docs/verdict_row.schema.json`), where there is one: with the scores of those categories
        that were judged."""


class VerdictClient:
    """Asks `POST /v1/verdicts` of an Arbiter server; threads may share one, and its pool of connections.

    Args:
        url: of the server, such as `http://127.0.0.1:8080`.
        taxonomy: sent with every question; or the name of one that the server knows, such as `mine@2`; None: its own.
        thresholds: one number in [0, 1], or category -> number; None: the server's.
        api_key: by default what the environment variable `ARBITER_API_KEY` holds, if anything.
        timeout: seconds for connecting and for each wait for the server.
        patience: seconds after which an overloaded or silent server is not asked again; what was asked before
            still has its `timeout`.
        connections: open at a time.

    Raises:
        ConfigError: no such URL or key.
    """

    def __init__(
        self,
        url: str,
        taxonomy: Taxonomy | str | None = None,
        *,
        thresholds: float | Mapping[str, float] | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        patience: float = 60.0,
        connections: int = 16,
    ) -> None:
        key = api_key or os.environ.get(API_KEY, "")
        self._headers = {"authorization": f"Bearer {check_key(key, API_KEY)}"} if key else {}
        self._http = HttpJson(
            url,
            name="the judge's server",
            key_name=API_KEY,
            timeout=timeout,
            connections=connections,
            secrets=(key,) if key else (),
        )
        self.taxonomy, self.patience = taxonomy, patience
        self._question: dict[str, Any] = {}
        if taxonomy is not None:
            self._question["taxonomy"] = (
                taxonomy if isinstance(taxonomy, str) else taxonomy_for_request(taxonomy)
            )
        if thresholds is not None:
            self._question["thresholds"] = dict(thresholds) if isinstance(thresholds, Mapping) else thresholds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; nothing can be asked after."""
        self._http.close()

    def ask(self, image: bytes | str, prompt: str | None = None) -> dict[str, Any]:
        """The verdict row of one image; its status may be `unjudged`.

        Args:
            image: the encoded image; or its address (`http://`, `https://`), which the server fetches if it was
                started with `--allow-image-host`; or a data URL or base64.
            prompt: what it was made from, where that is known.

        Raises:
            NotJudgedError: the server refuses this image, or gave no answer in `patience` seconds.
            ConfigError: another refusal: of the key, the taxonomy, the thresholds, or the URL.
        """
        # Lone surrogates, which a JSON event may hold, are no text; a reader of prompts drops them, too.
        text = None if prompt is None else prompt.encode("utf-8", "ignore").decode()
        entry: dict[str, Any] = {"prompt": text}
        if isinstance(image, bytes):
            entry["data"] = base64.b64encode(image).decode()
        else:
            entry["url" if is_address(image) else "data"] = image
        question = {**self._question, "images": [entry]}
        why = ""
        for pause in pauses(self.patience):
            try:
                # Judging changes nothing, so any question may be asked again.
                answer = self._http.ask("POST", "/v1/verdicts", headers=self._headers, data=question)
            except NoAnswerError as error:
                why = str(error)
            else:
                if not answer.passing:
                    row = self._row(self._http.check(answer, "/v1/verdicts"))
                    self._check_question(row, image)
                    return row
                why = f"The judge's server cannot answer now ({answer.problem})."
                pause.seconds = pause.seconds if answer.wait is None else answer.wait
        raise NotJudgedError(why)

    def _row(self, answer: Answer) -> dict[str, Any]:
        data = answer.data
        if 200 <= answer.status < 300:
            rows = data.get("verdicts") if isinstance(data, dict) else None
            row = rows[0] if isinstance(rows, list) and len(rows) == 1 else None
            if not is_verdict_row(row):
                raise NotJudgedError(
                    f"This is no verdict of Arbiter's server, or one of another version: {answer.problem}."
                )
            return dict(row)
        error = data.get("error") if isinstance(data, dict) else None
        where = str(error.get("param") or "") if isinstance(error, dict) else ""
        if answer.status in (413, 415, 422) or where.startswith("images"):
            raise NotJudgedError(f"The judge's server refuses the image ({answer.problem}).")
        raise ConfigError(f"The judge's server refuses the question ({answer.problem}).")

    def _check_question(self, row: Mapping[str, Any], image: bytes | str) -> None:
        """Refuse the answer to another question: of a proxy that mixes answers up, or a server of another version."""
        asked, judged = self.taxonomy, row["taxonomy"]
        if isinstance(asked, Taxonomy):
            same = judged["hash"] == asked.hash and set(row["thresholds"]) == set(asked.names)
        else:
            name, _, version = (asked or judged["name"]).partition("@")
            same = judged["name"] == name and version in ("", judged["version"])
        if not same:
            name = asked.name if isinstance(asked, Taxonomy) else asked
            raise NotJudgedError(f"The server judged by another taxonomy than {name!r}.", row)
        if isinstance(image, bytes) and row["image"]["sha256"] != hashlib.sha256(image).hexdigest():
            raise NotJudgedError("The server's answer is about another image.", row)


def is_address(image: str) -> bool:
    """Whether a text is the address of an image, rather than a path or encoded bytes."""
    return image[:8].lower().startswith(("http://", "https://"))


def judged_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row itself, where every category of its taxonomy was judged.

    Raises:
        NotJudgedError: it is unjudged, or lacks the score of a category.
    """
    if row["status"] == "unjudged":
        raise NotJudgedError(printable(row.get("reason") or "no reason was given"), row)
    missing = [name for name in row["thresholds"] if name not in row["flags"] or name not in row["scores"]]
    if missing:
        flagged = [name for name, violated in row["flags"].items() if violated]
        found = f"; flagged: {', '.join(flagged)}" if flagged else ""
        raise NotJudgedError(
            printable(f"{', '.join(missing)} not judged: {row.get('reason') or 'no reason'}{found}"), row
        )
    return row


def taxonomy_for_request(taxonomy: Taxonomy) -> dict[str, Any]:
    """A taxonomy as the server reads it: what is judged by, without what only training reads.

    Raises:
        ConfigError: it shows names without definitions, which a request cannot say.
    """
    if any(category.name_only for category in taxonomy):
        raise ConfigError(
            f"{taxonomy.name}: names without definitions cannot be sent; save it on the server."
        )
    known = ("name", "definition", "examples", "code", "key")
    entries = [category.to_dict() for category in taxonomy]
    return {
        "name": taxonomy.name,
        "version": str(taxonomy.version),
        "categories": [{key: entry[key] for key in known if key in entry} for entry in entries],
    }
