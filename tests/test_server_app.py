"""The application around the routes: ids, errors in one form, limits, keys, health."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fixtures_server import PATIENCE, client_of, colour_service, image_part, listening, picture, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

KEY = "a-key-of-enough-characters"


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_every_answer_has_an_id_and_a_callers_own_is_kept(client: TestClient) -> None:
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert client.get("/healthz", headers={"x-request-id": "mine.1"}).headers["x-request-id"] == "mine.1"
    odd = client.get("/healthz", headers={"x-request-id": "a\tb c"}).headers["x-request-id"]
    assert odd.startswith("req_")


def test_paths_and_methods_that_do_not_exist(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(client.get("/v1/moderations"), 405)["code"] == "method_not_allowed"
    # No redirect: behind a proxy it would lead from https:// to http://, with the key.
    answer = client.get("/v1/server/", headers={"x-forwarded-proto": "https"}, follow_redirects=False)
    assert error_of(answer, 404)["code"] == "not_found"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"thresholds": 0.1, "thresholds": 0.9}', "'thresholds' is given twice"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b"[]", "array; send an object"),
        (b'"text"', "string; send an object"),
        (b"null", "null; send an object"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/verdicts"])
def test_malformed_bodies_are_400(client: TestClient, path: str, body: bytes, message: str) -> None:
    error = error_of(client.post(path, content=body), 400)
    assert error["code"] == "invalid_json"
    assert message in error["message"]


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/verdicts"])
def test_unknown_keys_are_named(client: TestClient, path: str) -> None:
    error = error_of(client.post(path, json={"threshold": 0.2}), 400)
    assert error["code"] == "unknown_parameter"
    assert error["param"] == "threshold"
    assert "did you mean 'thresholds'" in error["message"]


def test_bodies_have_a_limit_whether_announced_or_not() -> None:
    with client_of(colour_service(max_body_bytes=1000)) as client:
        assert error_of(client.post("/v1/verdicts", content=b" " * 1001), 413)["code"] == "body_too_large"

        def pieces() -> Any:
            yield from [b" " * 400] * 3

        assert error_of(client.post("/v1/verdicts", content=pieces()), 413)["code"] == "body_too_large"
        assert error_of(client.post("/v1/verdicts", content=b" " * 1000), 400)["code"] == "invalid_json"


def test_keys_guard_everything_but_health() -> None:
    with client_of(colour_service(keys=(KEY, KEY + "2"))) as client:
        for path in ("/v1/server", "/v1/taxonomies", "/v1/nothing", "/metrics", "/v1"):
            error = error_of(client.get(path), 401)
            assert error["code"] == "missing_api_key"
        for wrong in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer "):
            answer = client.post("/v1/moderations", headers={"authorization": wrong}, content=b"x")
            assert error_of(answer, 401)["type"] == "invalid_request_error"
        for key in (KEY, KEY + "2"):
            assert client.get("/v1/server", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_an_error_of_ours_is_500_with_an_id_and_no_detail(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("judge.server.taxonomy_routes._title", broken)
    answer = client.get("/v1/taxonomies")
    error = error_of(answer, 500)
    assert error["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]


def test_while_loading_only_health_answers() -> None:
    import threading

    from judge.server.service import JudgeService
    from judge.server.settings import ServerSettings

    done, real = threading.Event(), colour_service()

    def slow() -> Any:
        assert done.wait(PATIENCE)
        return real._load()

    service = JudgeService(slow, ServerSettings(decode_workers=0))
    from judge.server.app import create_app

    with TestClient(create_app(service, service.settings)) as client:
        assert client.get("/healthz").status_code == 200
        for answer in (client.get("/readyz"), client.get("/v1/server"), client.post("/v1/verdicts")):
            assert error_of(answer, 503)["code"] == "loading"
            assert int(answer.headers["retry-after"]) >= 1
        done.set()


def test_what_the_server_is(client: TestClient) -> None:
    about = client.get("/v1/server").json()
    assert about["model"] == {"name": "colours", "sha256": "ab" * 32}
    assert about["default_taxonomy"] == "digits"
    assert about["records"] is False
    assert about["limits"]["max_images"] == 64
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "colours@abababababab"


def test_taxonomies_are_listed_and_shown(client: TestClient) -> None:
    listed = client.get("/v1/taxonomies").json()
    assert listed["default"] == "digits"
    assert [one["source"] for one in listed["taxonomies"]][:2] == ["judge", "shipped"]
    names = [one["name"] for one in listed["taxonomies"]]
    assert len(names) == len(set(names))
    shown = client.get("/v1/taxonomies/unsafebench").json()
    assert shown["source"] == "shipped"
    assert shown["categories"][0].keys() == {"name", "definition", "examples", "code", "key"}
    assert shown["yaml"].startswith("name: ")
    error = error_of(client.get("/v1/taxonomies/unsafebrench"), 404)
    assert error["code"] == "taxonomy_not_found"
    assert "did you mean 'unsafebench'" in error["message"]


def test_verdicts_are_rows(client: TestClient) -> None:
    import base64

    images = [
        {"data": base64.b64encode(picture(red=255)).decode(), "name": "red.png"},
        {"data": image_part(picture())["image_url"]["url"], "prompt": "a wall"},
        {"data": base64.b64encode(b"no image").decode()},
    ]
    answer = client.post("/v1/verdicts", json={"images": images, "thresholds": 0.9})
    assert answer.status_code == 200
    rows = answer.json()["verdicts"]
    assert [row["status"] for row in rows] == ["unsafe", "safe", "unjudged"]
    assert rows[0]["image"]["path"] == "red.png"
    assert rows[0]["model"] == {"name": "colours", "sha256": "ab" * 32}
    assert set(rows[0]["thresholds"].values()) == {0.9}
    assert "not_an_image" in rows[2]["reason"]
    assert json.dumps(rows)


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/verdicts"])
def test_a_body_that_does_not_arrive_is_408(path: str) -> None:
    with listening(colour_service(body_seconds=0.1)) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100\r\n\r\n{{"
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_goes_away_in_its_body_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    service = colour_service()
    with listening(service) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(b"POST /v1/verdicts HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        line = 'arbiter_requests_total{method="POST",route="/v1/verdicts",status="499"} 1.0'
        wait_until(lambda: line in service.metrics.text().decode())
    assert not caplog.records


def test_all_bodies_together_have_a_limit() -> None:
    service = colour_service(max_body_bytes=2000, max_bodies_bytes=3000)
    with listening(service) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as slow:
            slow.sendall(
                b"POST /v1/verdicts HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n" + b" " * 1990
            )

            def refused() -> bool:
                body = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
                body.request("POST", "/v1/verdicts", b" " * 1500)
                answer = body.getresponse()
                busy = answer.status == 429 and json.loads(answer.read())["error"]["code"] == "busy"
                body.close()
                return busy

            wait_until(refused)
        wait_until(lambda: not refused())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
GOOD_PART = image_part(picture())
CATEGORY = {"name": "Toys", "definition": "Things to play with."}
FIELDS = {
    "input": st.one_of(JSON, st.lists(st.one_of(JSON, st.just(GOOD_PART)), max_size=3), st.just([GOOD_PART])),
    "model": st.one_of(JSON, st.just("omni-moderation-latest")),
    "taxonomy": st.one_of(JSON, st.just([CATEGORY]), st.lists(JSON, max_size=2), st.just("digits")),
    "categories": st.one_of(JSON, st.just(["zero"])),
    "thresholds": st.one_of(JSON, st.dictionaries(st.sampled_from(["zero", "Toys"]), JSON, max_size=2)),
    "explain": JSON,
    "on_unjudged": st.one_of(JSON, st.just("flag")),
}


@pytest.fixture(scope="module")
def one_client() -> Iterator[TestClient]:
    with client_of(colour_service()) as client:
        yield client


@given(body=st.fixed_dictionaries({}, optional=FIELDS))
@settings(max_examples=150)
def test_whatever_is_asked_is_answered_in_one_form(one_client: TestClient, body: dict[str, Any]) -> None:
    answer = one_client.post("/v1/moderations", content=json.dumps(body))
    if answer.status_code == 200:
        assert all(type(result["flagged"]) is bool for result in answer.json()["results"])
    else:
        assert answer.status_code in (400, 404, 413, 415, 422)
        assert error_of(answer, answer.status_code)["message"]
