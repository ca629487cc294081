"""Rows of Ray Data LLM (`ray.data.llm`) that ask a judge about images, and their answers as verdict rows.

`EngineRows` is for a merged judge inside of the job (`vLLMEngineProcessorConfig`), `ServerRows` for an Arbiter server
(`HttpRequestProcessorConfig`). Three things go wrong silently in such a job, and all of them end as `unjudged` here:

- An image that does not arrive. Its tokens are counted in the prompt that the engine read.
- A policy that does not arrive. Chat templates such as LLaVA's go through the parts of a message: they find none in a
  plain string, and none in the arrays that Arrow makes of lists. So contents are lists of parts, which `AsPython` keeps
  from Arrow and `ENGINE_OPTIONS` from the stage in front of the template.
- A row that fails. Ray hands it on without `postprocess`, so that is mapped after the processor, not given to it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from judge.errors import CheckpointError, ConfigError, ImageError, QuestionError
from judge.lessons.envelope import LessonsEnvelope
from judge.runs.machine import now
from judge.verdicts.from_scores import unjudged, verdicts_from_scores
from judge.verdicts.rows import Judging, is_verdict_row, verdict_row
from prompts.taxonomy import Taxonomy
from prompts.template import TEMPLATES, render
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

from .verdict_client import taxonomy_for_request

FAILED = "__inference_error__"
"""Ray's column for why a row failed, empty where it did not; rows that have it are left alone by all stages."""
ENGINE_OPTIONS: dict[str, Any] = {
    "should_continue_on_error": True,
    # Contents as strings, the default, lose policy and image in templates that go through their parts.
    "prepare_multimodal_stage": {"enabled": True, "chat_template_content_format": "openai"},
    # The engine's own processor puts an image's tokens where its placeholder stands.
    "tokenize_stage": False,
    "detokenize_stage": False,
}
"""Options of `vLLMEngineProcessorConfig` that these rows need; Ray 2.53 or later has all of them."""
_FOR_EVERY_ROW = frozenset(
    {"missing_api_key", "invalid_api_key", "not_found", "method_not_allowed", "wrong_host", "wrong_origin"}
    | {"taxonomy_not_found", "invalid_taxonomy", "unknown_category", "unknown_parameter"}
)
"""Codes of a server's errors that all rows would get, so that the job should stop."""


class AsPython:
    """A value that Arrow cannot take: Ray hands a row that holds one on as Python objects, lists as lists."""


class ImageTokens(NamedTuple):
    """How an image shows in the tokens of a prompt."""

    token: int
    """Id of the token that stands for a part of an image."""
    each: int
    """How many of them an image takes."""

    @classmethod
    def of_checkpoint(cls, folder: str | Path) -> Self:
        """Those of a LLaVA-like checkpoint, such as `arbiter merge` writes.

        Raises:
            CheckpointError: its config.json does not say.
        """
        path = Path(folder) / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            token = config.get("image_token_index", config.get("image_token_id"))
            return cls(int(token), int(config["image_seq_length"]))
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{path} does not say how many tokens an image takes ({error}); give ImageTokens(token, each)."
            ) from error


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What both ways of asking have in common."""

    taxonomy: Taxonomy
    threshold: float | Mapping[str, float] | None = None
    """One number in [0, 1], or category name -> number; None: 0.5, and of a server its own."""
    image: str = "bytes"
    """Column of the encoded image, as `ray.data.read_binary_files` names it; it is emptied once it was read."""
    name: str = "path"
    """Column that says which image it is."""
    prompt: str | None = None
    """Column of the text behind an image, if there is one."""
    model: str = ""
    """What verdict rows call the judge that answers."""

    def _asked(self, *columns: str) -> dict[str, Any]:
        """What `preprocess` adds, still empty; the same keys in every row, and an error that is none."""
        return {**dict.fromkeys((*columns, "image_sha256", self.image)), "as_python": AsPython(), FAILED: ""}

    def _encoded(self, row: Mapping[str, Any]) -> bytes:
        """The encoded image of a row.

        Raises:
            ImageError: there is none.
            QuestionError: the column holds something else, and so it will in other rows.
        """
        if self.image not in row:
            raise QuestionError(
                f"No column {self.image!r}; there are: {', '.join(map(str, row))}. Name it with `image`."
            )
        data = row[self.image]
        if data is None or data == b"":
            raise ImageError("missing", "the row has no image")
        if not isinstance(data, bytes):
            raise QuestionError(
                f"{self.image!r} holds {type(data).__name__}, not the bytes of an encoded image; read files with "
                "ray.data.read_binary_files."
            )
        return data

    @property
    def _limit(self) -> float | Mapping[str, float]:
        return DEFAULT_THRESHOLD if self.threshold is None else self.threshold

    def _text(self, row: Mapping[str, Any]) -> str | None:
        """The text behind an image.

        Raises:
            QuestionError: there is no such column, so every image would be judged without its text.
        """
        if self.prompt is None:
            return None
        if self.prompt not in row:
            raise QuestionError(
                f"No column {self.prompt!r}; there are: {', '.join(map(str, row))}. Name it with `prompt`."
            )
        text = row[self.prompt]
        return None if text is None else str(text)

    def _verdict(self, row: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
        judging = Judging(self.taxonomy, self._limit, self.model)
        path, digest = row.get(self.name), row.get("image_sha256")
        return verdict_row(
            verdict, judging, time=now(), path=None if path is None else str(path), image_hash=digest or None
        )

    def _unjudged(self, row: Mapping[str, Any], reason: str) -> dict[str, Any]:
        return self._verdict(row, unjudged(reason, self.taxonomy, self.model))

    def verdict_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict row (`docs/verdict_row.schema.json`) of what came out of the processor.

        Raises:
            ConfigError: the server refuses every row: its key, its taxonomy, its address.
        """
        failed = row.get(FAILED)
        return self._unjudged(row, " ".join(str(failed).split())) if failed else self._judged(row)

    def _judged(self, row: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def postprocess(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict in columns, to be mapped over what the processor returns.

        `verdict` holds the whole verdict row as JSON: as a nested column, Arrow would give every row the scores of all
        others, as nulls.
        """
        found = self.verdict_row(row)
        columns = {key: found[key] for key in ("status", "flagged", "unsafe", "category", "reason")}
        return {"path": found["image"]["path"], **columns, "verdict": json.dumps(found, allow_nan=False)}


@dataclass(frozen=True, kw_only=True)
class EngineRows(_Rows):
    """Rows for a judge that vLLM runs inside of the job; one question for each image.

    Of an animation or a transparent image there are several views to judge, so it is unjudged here; a server judges it.
    """

    image_tokens: ImageTokens
    template: str = TEMPLATES[0]
    """The one that the judge was trained with."""
    envelope: LessonsEnvelope | None = None
    """Of the judge's lessons; a prompt outside of it is not read."""
    constrain: bool = False
    """Have vLLM allow nothing but the closed answers."""

    @classmethod
    def of_merged(cls, folder: str | Path, taxonomy: Taxonomy | None = None, **options: Any) -> Self:
        """Rows for what `arbiter merge` wrote, asked with its own template, and its own thresholds where it has any.

        Args:
            folder: of the merged judge.
            taxonomy: None for the one that it was trained on.
            options: other fields.

        Raises:
            CheckpointError: no merged judge.
            ConfigError: the taxonomy lies outside of its lessons, so every image would be unjudged.
        """
        from judge.calibration.thresholds import run_thresholds
        from judge.lessons.record import read_record
        from judge.publish.contents import MERGED
        from judge.runs.folder import RunDir
        from judge.vlm.architecture import policy_tokens

        run = RunDir.open(folder, kind=MERGED)
        template, envelope = str(run.manifest["template"]), read_record(run).envelope
        policy = run.taxonomy if taxonomy is None else taxonomy
        if envelope is not None:
            outside = envelope.why_policy_outside(
                policy, lambda asked: policy_tokens(str(folder), asked, template)[0]
            )
            if outside is not None:
                raise ConfigError(f"Every image would be unjudged: {outside}")
        given: dict[str, Any] = {
            "model": run.name,
            "template": template,
            "image_tokens": ImageTokens.of_checkpoint(folder),
            "envelope": envelope,
        }
        fitted = run_thresholds(run.path)
        if fitted is not None:
            given["threshold"] = fitted.for_known(policy)
        return cls(taxonomy=policy, **(given | options))

    def preprocess(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`messages` and `sampling_params` of a row; of an image that cannot be opened the reason why.

        Raises:
            QuestionError: there is no column with encoded images.
        """
        from judge.data.frames import open_frames
        from judge.vlm.replies import completion_request, data_url

        asked = self._asked("messages", "sampling_params", "prompt_note")
        try:
            data = self._encoded(row)
            asked["image_sha256"] = hashlib.sha256(data).hexdigest()
            views = open_frames(data).images
            if len(views) > 1:
                raise ImageError("animated", f"{len(views)} views have to be judged; send it to a server")
        except ImageError as error:
            return asked | {FAILED: str(error)}
        text, asked["prompt_note"] = self._read_text(row)
        chat = render(self.taxonomy, text, template=self.template)
        request = completion_request(chat, data_url(views[0]), model=None, logprobs=False, constrain="none")
        sampling: dict[str, Any] = {"temperature": 0.0, "max_tokens": request["max_tokens"], "logprobs": 20}
        if self.constrain:
            sampling["structured_outputs"] = {"choice": [answer.text for answer in chat.answers]}
        return asked | {"messages": request["messages"], "sampling_params": sampling}

    def images_arrived(self, row: Mapping[str, Any]) -> int:
        """How many images are in the prompt that the engine read; 0 where that is not known."""
        tokens = row.get("prompt_token_ids")
        found = 0 if tokens is None else sum(int(token) == self.image_tokens.token for token in tokens)
        return found // self.image_tokens.each

    def assert_images_arrived(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Stop where an image is missing: for the first rows of a job, before the other millions.

        Args:
            rows: what the processor returns, before `postprocess`.

        Raises:
            QuestionError: a row that did not fail has no image.
        """
        lost = [
            str(row.get(self.name)) for row in rows if not row.get(FAILED) and not self.images_arrived(row)
        ]
        if lost:
            raise QuestionError(
                f"{len(lost)} images did not arrive at the model, such as that of {lost[0]}; give "
                "vLLMEngineProcessorConfig the ENGINE_OPTIONS of judge.integrations.ray_llm."
            )

    def _judged(self, row: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        from judge.protocol import Scores
        from judge.vlm.replies import UnjudgedError, reply_scores

        if not self.images_arrived(row):
            return self._unjudged(row, "the image did not arrive at the model")
        try:
            chat = render(
                self.taxonomy, None, template=self.template
            )  # for its answers, which no text changes
            reply = reply_scores(_completion(row), chat, self.taxonomy, self.template)
        except UnjudgedError as error:
            return self._unjudged(row, str(error))
        scores = Scores(np.array([reply[0]]), reply[1][None], (None,))
        [verdict] = verdicts_from_scores(scores, self.taxonomy, threshold=self._limit, model=self.model)
        return self._verdict(row, replace(verdict, note=row.get("prompt_note")))

    def _read_text(self, row: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The text that the image is asked about with, or why the image is asked about alone.

        What the judge was not trained to read could talk it out of what it sees.
        """
        from judge.readings import read_prompts

        readings = read_prompts([self._text(row)], "use", self.envelope)
        [note] = readings.notes
        if note is None and len(readings) > 1:
            note = f"the prompt was not read: it has {len(readings)} parts, and a server reads one at a time"
        return (readings.texts[0], None) if note is None else (None, note)


@dataclass(frozen=True, kw_only=True)
class ServerRows(_Rows):
    """Rows for `POST /v1/verdicts` of an Arbiter server, which opens and judges all views of an image."""

    def preprocess(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`payload` of a row; of a row without an image the reason why there is none.

        Raises:
            QuestionError: there is no column with encoded images.
            ConfigError: the taxonomy shows names without definitions, which a request cannot say.
        """
        import base64

        asked = self._asked("payload")
        try:
            data = self._encoded(row)
        except ImageError as error:
            return asked | {FAILED: str(error)}
        threshold = dict(self.threshold) if isinstance(self.threshold, Mapping) else self.threshold
        payload = {
            "images": [{"data": base64.b64encode(data).decode(), "prompt": self._text(row)}],
            "taxonomy": taxonomy_for_request(self.taxonomy),
            "thresholds": threshold,
        }
        return asked | {"payload": payload, "image_sha256": hashlib.sha256(data).hexdigest()}

    def _judged(self, row: Mapping[str, Any]) -> dict[str, Any]:
        answer = row.get("http_response")
        answer = answer if isinstance(answer, Mapping) else {}
        error = answer.get("error")
        if isinstance(error, Mapping) and error.get("code"):
            said = f"{error.get('code')}: {error.get('message')}"
            if error.get("code") in _FOR_EVERY_ROW:
                raise ConfigError(f"The server refuses every row: {said}")
            return self._unjudged(row, f"the server refused the image: {said}")
        try:
            [verdict] = answer["verdicts"]
            found = dict(verdict)
            for key in (
                "scores",
                "flags",
            ):  # Arrow gives every row of a block the scores of all others, as None
                found[key] = {name: value for name, value in (found[key] or {}).items() if value is not None}
        except (LookupError, TypeError, ValueError, AttributeError):
            return self._unjudged(row, "the server's answer holds no verdict")
        problem = self._problem(row, found)
        if problem is not None:
            return self._unjudged(row, problem)
        path = row.get(self.name)
        return found | {"image": {**found["image"], "path": None if path is None else str(path)}}

    def _problem(self, row: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
        """Why this is no verdict row about the image that was sent."""
        if not is_verdict_row(found):
            return "the server's answer holds no verdict"
        if found["image"]["sha256"] != row.get("image_sha256"):
            return "the server's answer is about another image"
        if found["taxonomy"]["hash"] != self.taxonomy.hash or set(found["thresholds"]) != set(
            self.taxonomy.names
        ):
            return "the server judged by another taxonomy"
        return None


def _completion(row: Mapping[str, Any]) -> str:
    """What the engine generated, as the body of a chat completion, which is what judges are read from."""
    message = {"content": row.get("generated_text")}
    return json.dumps({"choices": [{"message": message, "logprobs": {"content": _steps(row)}}]})


def _steps(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Generated tokens and their alternatives; None where the engine listed none."""
    try:
        steps = []
        for token, listed in zip(row["generated_tokens"], row["logprobs"], strict=True):
            pairs = {
                int(number): {"token": about["decoded_token"], "logprob": float(about["logprob"])}
                for number, about in listed.items()
                if about is not None
            }
            steps.append(pairs[int(token)] | {"top_logprobs": list(pairs.values())})
        return steps
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
