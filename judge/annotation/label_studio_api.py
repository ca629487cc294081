"""Label Studio's REST API, as far as predictions are pushed through it.

Contract: HumanSignal/label-studio as of autumn 2026 (data_manager/api.py, data_import/api.py, tasks/api.py), and the
request shapes of label-studio-sdk 2.1.2:

- `GET /api/projects/ID/`: `title` and `label_config`.
- `GET /api/tasks/?project=ID&page=N&page_size=M&fields=all&resolve_uri=false`: `tasks` with `id`, `data` and
  `predictions`, and their `total`; a page behind the last is 404.
- `POST /api/projects/ID/import/predictions`: a list of `{task, result, score, model_version}`; answers
  `{"created": N}`, without ids, and knows no key by which the same list sent twice would be stored once.
- `GET /api/predictions/?task=ID`, `DELETE /api/predictions/ID/`.
- `POST /api/token/refresh/` with `{"refresh": token}`: `{"access": token}`, good for some minutes.

A key is either a personal access token, which is a JWT that is exchanged for access tokens, or a legacy token.
"""

import base64
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from judge.errors import ConfigError
from judge.integrations.http_json import Answer, HttpJson, NoAnswerError, check_key, pauses
from prompts.errors import ArbiterError

API_KEY = "LABEL_STUDIO_API_KEY"
"""Environment variable with the key; it is read from nowhere else, and stands in no message."""
_PAGE = 100
"""Tasks of a page; they come with annotations and predictions."""
_UNTOUCHED = frozenset({425, 429})
"""Statuses that say that nothing was stored."""


class UncertainError(ArbiterError, ConnectionError):
    """Predictions were sent, and it is not known whether they were stored."""


class BusyError(ArbiterError, ConnectionError):
    """Predictions were not stored, and may be later."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait
        """Seconds that the server asks to wait, where it does."""


class Project(NamedTuple):
    """An existing project."""

    title: str
    config: str
    """XML of its labelling interface."""


class TaskFound(NamedTuple):
    """A task of a project."""

    id: int
    data: dict[str, Any]
    versions: tuple[str, ...]
    """`model_version` of each of its predictions."""


class StoredPrediction(NamedTuple):
    """A prediction that Label Studio has."""

    id: int
    version: str


class LabelStudio:
    """One Label Studio, asked with patience; what changes nothing is asked again, what does is sent once.

    Args:
        url: as people open it in a browser; redirects are not followed.
        key: by default what `LABEL_STUDIO_API_KEY` holds.
        timeout: seconds for connecting, and for each wait for the next bytes.
        patience: seconds after which a server that does not answer is given up.

    Raises:
        ConfigError: no such URL; or there is no key, or one that no header can hold.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout: float = 30.0, patience: float = 600.0
    ) -> None:
        key = (os.environ.get(API_KEY, "") if key is None else key).strip()
        if not key:
            raise ConfigError(f"Set {API_KEY} to your access token (Account & Settings in Label Studio).")
        self._key = check_key(key, API_KEY)
        self._kind = _token_type(key)
        self._access = key if self._kind == "access" else None
        self._http = HttpJson(url, name="Label Studio", key_name=API_KEY, timeout=timeout, secrets=(key,))
        self.patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._http.close()

    def project(self, number: int) -> Project:
        """An existing project.

        Raises:
            ConfigError: there is none with this number, or none that the key may see.
            NoAnswerError: no answer within the patience.
        """
        data = self._get(f"/api/projects/{number}/")
        if not isinstance(data, dict) or not isinstance(data.get("label_config"), str):
            raise self._other_server()
        return Project(str(data.get("title") or number), data["label_config"])

    def tasks(self, project: int) -> Iterator[TaskFound]:
        """All tasks of a project, page by page.

        Raises:
            ConfigError, NoAnswerError: as `project`.
        """
        seen, total, page = 0, 1, 0
        while seen < total:
            page += 1
            params = {
                "project": project,
                "page": page,
                "page_size": _PAGE,
                "fields": "all",
                "resolve_uri": "false",  # the address as it was imported, not one signed for a browser
            }
            data = self._get("/api/tasks/", params, end_of_pages=page > 1)
            tasks = data.get("tasks") if isinstance(data, dict) else None
            if data is None or tasks == []:  # tasks were deleted while they were listed
                return
            if not isinstance(tasks, list) or not isinstance(data.get("total"), int):
                raise self._other_server()
            total, seen = data["total"], seen + len(tasks)
            yield from map(self._task, tasks)

    def predictions(self, task: int) -> list[StoredPrediction]:
        """What a task has, the oldest first.

        Raises:
            ConfigError, NoAnswerError: as `project`.
        """
        data = self._get("/api/predictions/", {"task": task})
        found = data.get("results") if isinstance(data, dict) else data
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and isinstance(one.get("id"), int) for one in found
        ):
            raise self._other_server()
        return sorted(
            StoredPrediction(one["id"], str(one.get("model_version") or ""))
            for one in found
            if one.get("task") == task
        )

    def add(self, project: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Send predictions, once.

        Returns:
            How many Label Studio says it stored.

        Raises:
            UncertainError: they may have been stored, or be stored later.
            BusyError: they were not stored.
            ConfigError: they are refused; the message is Label Studio's.
        """
        path = f"/api/projects/{project}/import/predictions"
        try:
            answer = self._ask("POST", path, data=list(predictions))
        except NoAnswerError as error:
            raise (UncertainError if error.sent else BusyError)(str(error)) from error
        if answer.status in _UNTOUCHED:
            raise BusyError(f"Label Studio is busy ({answer.problem}).", answer.wait)
        if answer.passing:
            raise UncertainError(f"Label Studio failed on predictions ({answer.problem}).")
        if not 200 <= self._http.check(answer, path).status < 300:
            raise ConfigError(f"Label Studio refuses the predictions ({answer.problem}).")
        created = answer.data.get("created") if isinstance(answer.data, dict) else None
        if not isinstance(created, int):
            raise UncertainError(f"Label Studio does not say how many it stored ({answer.problem}).")
        return created

    def delete(self, prediction: int) -> None:
        """Delete a prediction; one that is gone already is no error.

        Raises:
            ConfigError, NoAnswerError: as `project`.
        """
        self._patiently("DELETE", f"/api/predictions/{prediction}/", None, gone=True)

    # --- requests ------------------------------------------------------------------------------------------

    def _get(self, path: str, params: dict[str, Any] | None = None, *, end_of_pages: bool = False) -> Any:
        """The JSON of an address; None for a page behind the last."""
        return self._patiently("GET", path, params, gone=end_of_pages).data

    def _patiently(self, method: str, path: str, params: dict[str, Any] | None, *, gone: bool) -> Answer:
        """An answer that is none of a passing trouble; with `gone`, 404 is an answer without data."""
        why = ""
        for pause in pauses(self.patience):
            try:
                answer = self._ask(method, path, params=params)
            except NoAnswerError as error:
                why = str(error)
                continue
            if gone and answer.status == 404:
                return answer._replace(data=None)
            if not answer.passing:
                if not 200 <= self._http.check(answer, path).status < 300:
                    raise ConfigError(f"Label Studio refuses {path} ({answer.problem}).")
                return answer
            why, pause.seconds = f"Label Studio fails ({answer.problem}).", answer.wait or pause.seconds
        raise NoAnswerError(f"{why} It was asked for {self.patience:g} s; run the command again.", sent=True)

    def _ask(self, method: str, path: str, **request: Any) -> Answer:
        """One request; a second one with a new access token where the old one has run out."""
        answer = self._http.ask(method, path, headers=self._headers(), **request)
        if answer.status == 401 and self._kind == "refresh":  # nothing was done yet
            self._access = None
            answer = self._http.ask(method, path, headers=self._headers(), **request)
        return answer

    def _headers(self) -> dict[str, str]:
        if self._kind is None:
            return {"authorization": f"Token {self._key}"}
        if self._access is None:
            self._access = self._refresh()
        return {"authorization": f"Bearer {self._access}"}

    def _refresh(self) -> str:
        """A new access token.

        Raises:
            NoAnswerError: no answer; nothing of what it is needed for was sent.
            ConfigError: the personal access token is refused.
        """
        path = "/api/token/refresh/"
        try:
            answer = self._http.ask("POST", path, headers={}, data={"refresh": self._key})
        except NoAnswerError as error:
            raise NoAnswerError(str(error), sent=False) from error
        if answer.passing:
            raise NoAnswerError(f"Label Studio gives no access token ({answer.problem}).", sent=False)
        self._http.check(answer, path)
        token = answer.data.get("access") if isinstance(answer.data, dict) else None
        if answer.status != 200 or not isinstance(token, str):
            # The body could hold a token, so it is not shown.
            raise ConfigError(
                f"Label Studio gives no access token (HTTP {answer.status}); make a new key for {API_KEY}."
            )
        self._http.secrets.append(token)
        return check_key(token, "the access token of Label Studio")

    def _task(self, task: Any) -> TaskFound:
        if (
            not isinstance(task, dict)
            or not isinstance(task.get("id"), int)
            or not isinstance(task.get("data"), dict)
        ):
            raise self._other_server()
        predictions = [one for one in task.get("predictions") or [] if isinstance(one, dict)]
        versions = [str(one.get("model_version") or "") for one in predictions]
        return TaskFound(task["id"], task["data"], tuple(versions))

    def _other_server(self) -> ConfigError:
        return ConfigError(f"{self._http.url} does not answer like Label Studio; check the URL.")


def _token_type(key: str) -> str | None:
    """`refresh` or `access` of a JWT, by what it says of itself; None of a legacy token."""
    parts = key.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(claims, dict):
        return None
    return "access" if claims.get("token_type") == "access" else "refresh"
