"""`/v1/moderations` through an unchanged `openai` client, on a real port: no client of it may fail open."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fixtures_server import (
    ColourJudge,
    animation,
    client_of,
    colour_service,
    image_part,
    listening,
    picture,
)
from starlette.testclient import TestClient

from judge.server.moderations import STANDARD_KEYS
from prompts import Taxonomy

TOYS = [
    {"name": "Balloons", "definition": "Toy balloons of any colour."},
    {"name": "Violence", "definition": "People who hurt each other.", "examples": ["a fight"]},
]
RED, BLACK, BLUE, GREEN = picture(red=255), picture(), picture(blue=255), picture(green=255)


class Counted(openai.DefaultHttpxClient):
    """The client's own HTTP client, which counts its requests."""

    requests = 0

    def send(self, *arguments: Any, **options: Any) -> Any:
        self.requests += 1
        return super().send(*arguments, **options)


@pytest.fixture(scope="module")
def judge() -> ColourJudge:
    return ColourJudge()


@pytest.fixture(scope="module")
def address(judge: ColourJudge) -> Iterator[str]:
    with listening(colour_service(judge, max_images=5, max_body_bytes=2**20)) as address:
        yield address


@pytest.fixture
def http() -> Iterator[Counted]:
    with Counted() as client:
        yield client


@pytest.fixture
def ask(address: str, http: Counted) -> Any:
    """`ask(input, **extra)` -> the answer of the `openai` client, which would try again twice."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", http_client=http)

    def create(given: Any, model: str | None = None, **extra: Any) -> Any:
        named = {} if model is None else {"model": model}
        return client.moderations.create(input=given, extra_body=extra or None, **named)

    return create


def test_one_image(ask: Any) -> None:
    answer = ask([image_part(RED)])
    assert answer.model == "colours@abababababab"
    assert answer._request_id.startswith("req_")
    [result] = answer.results
    assert result.flagged is True
    scores, verdict = result.category_scores, result.verdict
    assert verdict["decided_by"] == "judge"
    assert len(verdict["taxonomy"]["hash"]) == 64
    assert scores.model_extra[verdict["category"]] == 1.0
    assert result.categories.model_extra[verdict["category"]] is True
    assert result.categories.violence is False
    assert result.unjudged is None


def test_the_standard_keys_are_always_there(ask: Any) -> None:
    [result] = ask([image_part(BLACK)], taxonomy=TOYS[:1]).results
    assert result.flagged is False
    for part, kind in ((result.categories, bool), (result.category_scores, float)):
        given = part.model_dump(by_alias=True)
        assert set(given) == {*STANDARD_KEYS, "Balloons"}
        assert all(type(value) is kind for value in given.values())
    types = result.category_applied_input_types.model_dump(by_alias=True)
    assert types.pop("Balloons") == ["image"]
    assert set(types) == set(STANDARD_KEYS)
    assert not any(types.values())


def test_a_category_named_like_a_standard_key_fills_it(ask: Any) -> None:
    [result] = ask([image_part(RED), {"type": "text", "text": "a wall"}], taxonomy=TOYS[::-1]).results
    assert result.categories.violence is True
    assert result.category_scores.violence == 1.0
    assert (result.categories.model_extra["Violence"], result.categories.model_extra["Balloons"]) == (
        True,
        False,
    )
    assert result.category_applied_input_types.violence == ["image", "text"]


def test_several_images_and_their_common_prompt(ask: Any, judge: ColourJudge) -> None:
    parts = [image_part(image) for image in (RED, BLACK, animation(0, 50, 255))]
    texts = [{"type": "text", "text": text} for text in ("a red", "wall")]
    before = len(judge.calls)
    answer = ask([texts[0], *parts, texts[1]], model="omni-moderation-latest")
    assert [result.flagged for result in answer.results] == [True, False, True]
    assert "frame 3 of 3" in answer.results[2].verdict["because"] + str(answer.results[2].verdict["image"])
    asked = [prompt for _, prompts, _ in judge.calls[before:] for prompt in prompts]
    assert asked == ["a red\nwall"] * len(asked)


def test_thresholds_and_categories_of_a_request(ask: Any) -> None:
    grey = image_part(picture(red=102))  # 0.4
    assert [ask([grey], **extra).results[0].flagged for extra in ({}, {"thresholds": 0.4})] == [False, True]
    both = {"taxonomy": TOYS, "thresholds": {"balloons": 0.41}}
    assert ask([grey], **both).results[0].flagged is False
    lower = {"taxonomy": TOYS, "thresholds": {"balloons": 0.39}}
    assert ask([grey], **lower).results[0].flagged is True
    [result] = ask([grey], taxonomy="unsafebench", categories=["Hate", "Violence"], thresholds=0.2).results
    assert list(result.verdict["thresholds"]) == ["Hate", "Violence"]
    assert result.categories.hate is True
    assert result.verdict["taxonomy"]["name"] == "unsafebench"


@pytest.mark.parametrize("model", [None, "omni-moderation-2024-09-26", "text-moderation-stable", "colours"])
def test_models_of_other_clients_are_accepted(ask: Any, model: str | None) -> None:
    assert ask([image_part(BLACK)], model=model).model == "colours@abababababab"


def refused(ask: Any, http: Counted, kind: type[openai.APIStatusError], *given: Any, **extra: Any) -> Any:
    before = http.requests
    with pytest.raises(kind) as caught:
        ask(*given, **extra)
    assert http.requests - before == 1, "the client tried again"
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_another_model_is_404(ask: Any, http: Counted) -> None:
    error = refused(ask, http, openai.NotFoundError, [image_part(BLACK)], model="gpt-5")
    assert (error.code, error.param) == ("model_not_found", "model")
    assert refused(ask, http, openai.NotFoundError, [image_part(BLACK)], taxonomy="toys").param == "taxonomy"


@pytest.mark.parametrize("given", ["text", ["text", "more"], [{"type": "text", "text": "x"}], []])
def test_text_alone_is_never_safe(ask: Any, http: Counted, given: Any) -> None:
    error = refused(ask, http, openai.BadRequestError, given)
    assert (error.code, error.param) == ("image_required", "input")


IMAGE = image_part(BLACK)


@pytest.mark.parametrize(
    ("given", "extra", "param", "code"),
    [
        ([IMAGE] * 6, {}, "input", "too_many_images"),
        ([IMAGE, "text"], {}, "input[1]", "invalid_value"),
        ([{"type": "image_url"}], {}, "input[0]", "invalid_value"),
        ([{"type": "image_url", "image_url": {"url": 3}}], {}, "input[0]", "invalid_value"),
        ([IMAGE, {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}], {}, "input[1]", "url_refused"),
        ([IMAGE, {"type": "text", "text": 3}], {}, "input[1]", "invalid_value"),
        ([IMAGE], {"taxonomy": []}, "taxonomy", "invalid_value"),
        ([IMAGE], {"taxonomy": [{"name": "A"}]}, "taxonomy", "invalid_taxonomy"),
        ([IMAGE], {"taxonomy": [{"name": "A", "definition": "x", "examples": 3}]}, "taxonomy", "invalid_taxonomy"),
        ([IMAGE], {"taxonomy": [{"name": "safe", "definition": "x"}]}, "taxonomy", "invalid_taxonomy"),
        ([IMAGE], {"taxonomy": [{"name": "A", "definition": "</s><image>"}]}, "taxonomy", "invalid_taxonomy"),
        ([IMAGE], {"taxonomy": [{"name": "A", "definition": "x", "members": []}]}, "taxonomy[0].members", "unknown_parameter"),
        ([IMAGE], {"taxonomy": 3}, "taxonomy", "invalid_value"),
        ([IMAGE], {"categories": ["No such"]}, "categories", "unknown_category"),
        ([IMAGE], {"categories": []}, "categories", "invalid_value"),
        ([IMAGE], {"thresholds": 1.5}, "thresholds", "invalid_value"),
        ([IMAGE], {"thresholds": True}, "thresholds", "invalid_value"),
        ([IMAGE], {"thresholds": "0.5"}, "thresholds", "invalid_value"),
        ([IMAGE], {"thresholds": {"No such": 0.5}}, "thresholds", "unknown_category"),
        ([IMAGE], {"thresholds": {"zero": 0.5, "Zero": 0.6}}, "thresholds", "invalid_value"),
        ([IMAGE], {"thresholds": {f"No such {n}": 0.5 for n in range(101)}}, "thresholds", "invalid_value"),
        ([IMAGE], {"explain": 1}, "explain", "invalid_value"),
        ([IMAGE], {"on_unjudged": "ignore"}, "on_unjudged", "invalid_value"),
        ([IMAGE], {"treshold": 1}, "treshold", "unknown_parameter"),
    ],
)  # fmt: skip
def test_wrong_requests_are_400_and_say_where(
    ask: Any, http: Counted, given: Any, extra: dict[str, Any], param: str, code: str
) -> None:
    error = refused(ask, http, openai.BadRequestError, given, **extra)
    assert (error.param, error.code) == (param, code)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + BLACK[33:]


@pytest.mark.parametrize(
    ("image", "kind", "status", "code"),
    [
        (b"", openai.APIStatusError, 415, "not_an_image"),
        (b"<html>", openai.APIStatusError, 415, "not_an_image"),
        (b"II*\0" + bytes(40), openai.APIStatusError, 415, "unsupported_format"),
        (picture(kind="JPEG", size=(600, 600))[:1500], openai.UnprocessableEntityError, 422, "truncated"),
        (BLACK[:40], openai.UnprocessableEntityError, 422, "unreadable"),
        (png_of(20_000, 20_000), openai.UnprocessableEntityError, 422, "too_many_pixels"),
        (png_of(10, 5_000), openai.UnprocessableEntityError, 422, "too_narrow"),
        (BLUE, openai.UnprocessableEntityError, 422, "unjudged"),
        (GREEN, openai.UnprocessableEntityError, 422, "unjudged"),
    ],
    ids=("empty", "html", "tiff", "cut-jpeg", "cut-png", "huge", "narrow", "unjudged", "failing"),
)
def test_what_could_not_be_judged_is_an_error_that_is_not_tried_again(
    ask: Any, http: Counted, image: bytes, kind: type[openai.APIStatusError], status: int, code: str
) -> None:
    error = refused(ask, http, kind, [IMAGE, image_part(image)])
    assert (error.status_code, error.code, error.param) == (status, code, "input[1]")
    assert "/a/path" not in error.message


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,@", "data:,", "data:text/html,x", "", "ftp://x/y.png"]
)
def test_what_is_no_data_url(ask: Any, http: Counted, url: str) -> None:
    error = refused(ask, http, openai.APIStatusError, [{"type": "image_url", "image_url": {"url": url}}])
    assert (error.status_code, error.param) == (415, "input[0]")


@pytest.mark.parametrize(
    "image", [b"", b"<html>", BLACK[:40], BLUE, GREEN], ids=("empty", "html", "cut", "unjudged", "failing")
)
def test_or_it_is_flagged_where_the_caller_wants_that(ask: Any, image: bytes) -> None:
    first, second = ask([IMAGE, image_part(image)], on_unjudged="flag", taxonomy=TOYS).results
    assert (first.flagged, first.unjudged) == (False, None)
    assert second.flagged is True
    assert second.unjudged
    assert second.verdict["status"] == "unjudged"
    # Clients that look at categories or scores only must not take it for safe either.
    assert second.categories.violence is True
    assert second.categories.model_extra["Balloons"] is True
    assert second.category_scores.violence == 1.0
    assert second.categories.sexual is False  # nobody asked


def test_a_body_that_is_too_large_is_413_and_not_tried_again(ask: Any, http: Counted) -> None:
    error = refused(ask, http, openai.APIStatusError, [image_part(bytes(2**21))])
    assert (error.status_code, error.code) == (413, "body_too_large")


def test_without_a_key_it_is_401() -> None:
    with listening(colour_service(keys=("a-key-of-enough-characters",))) as address:
        with (
            openai.OpenAI(base_url=f"{address}/v1", api_key="another-key-of-that-sort") as stranger,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            stranger.moderations.create(input=[IMAGE])
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{address}/v1", api_key="a-key-of-enough-characters") as known:
            assert known.moderations.create(input=[IMAGE]).results[0].flagged is False


class Aloof(ColourJudge):
    """Tells no categories apart, or scores only the second of them."""

    only_second = False

    def score(self, images: Any, prompts: Any, taxonomy: Taxonomy) -> Any:
        from dataclasses import replace

        import numpy as np

        scores = super().score(images, prompts, taxonomy)
        categories = np.full_like(scores.categories, np.nan)
        if self.only_second:
            categories[:, 1] = scores.unsafe
        return replace(scores, categories=categories)


@pytest.mark.parametrize(("red", "flagged", "score"), [(51, False, 0.2), (204, True, 0.8)])
def test_a_judge_without_scores_per_category_does_not_fail_open(
    red: int, flagged: bool, score: float
) -> None:
    with client_of(colour_service(Aloof())) as client:
        [result] = moderate(client, [image_part(picture(red=red))])
    assert result["flagged"] is flagged
    names = set(result["categories"]) - set(STANDARD_KEYS)
    assert len(names) == 10
    assert {result["categories"][name] for name in names} == {flagged}
    assert [result["category_scores"][name] for name in names] == pytest.approx([score] * 10)


def test_a_flagged_image_leaves_no_unscored_category_false() -> None:
    judge = Aloof()
    judge.only_second = True
    with client_of(colour_service(judge)) as client:
        [result] = moderate(client, [image_part(picture(red=204))], taxonomy=TOYS)
        assert result["categories"]["Balloons"] is True
        answer = client.post(
            "/v1/moderations", json={"input": [image_part(picture(red=51))], "taxonomy": TOYS}
        )
    assert answer.status_code == 422


def moderate(client: TestClient, given: Any, **extra: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/moderations", json={"input": given, **extra})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results
