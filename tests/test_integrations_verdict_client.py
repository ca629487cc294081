"""What the client of other people's tools makes of answers, good and bad; the server is scripted."""

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fixtures_label_studio import CutError, StubLabelStudio, running
from fixtures_server import colour_service, listening, picture

from judge.errors import ConfigError
from judge.integrations import http_json
from judge.integrations.osprey import seen_of
from judge.integrations.verdict_client import NotJudgedError, VerdictClient, judged_row, taxonomy_for_request
from judge.server.questions import read_taxonomy
from judge.verdicts.rows import Judging, verdict_row
from prompts import load_taxonomy
from prompts.taxonomy_file import shipped_taxonomies
from prompts.verdict import verdict_from_scores

POLICY = load_taxonomy("digits").select(["three", "seven"])
ROW = verdict_row(
    verdict_from_scores(0.2, [0.1, 0.2], POLICY, model="m"),
    Judging(POLICY),
    time="2026-01-01T00:00:00+00:00",
    image_hash=hashlib.sha256(b"image").hexdigest(),
)
GOOD = (200, {"verdicts": [ROW]})


def error(message: str, param: str | None = None, code: str = "invalid_value") -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": param, "code": code}}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubLabelStudio]:
    """A server that says what `script` holds, in turn; what it is asked is in `asked`."""
    monkeypatch.setattr(http_json, "_FIRST_WAIT", 0.01)
    with running(StubLabelStudio()) as stub:
        yield stub


def answers(stub: StubLabelStudio, *script: Any) -> list[Any]:
    left = list(script)

    def say(method: str, path: str, when: str) -> Any:
        told = left.pop(0)
        if told is CutError:
            raise CutError
        return told

    stub.trouble = say
    return left


def ask(stub: StubLabelStudio, **options: Any) -> dict[str, Any]:
    with VerdictClient(stub.url, POLICY, **{"patience": 60, **options}) as client:
        return client.ask(b"image")


def test_passing_trouble_is_waited_for(scripted: StubLabelStudio) -> None:
    busy = (429, error("queue full", code="queue_full"), {"retry-after": "0"})
    left = answers(scripted, busy, (503, error("loading")), CutError, (502, None), GOOD)
    assert ask(scripted) == ROW
    assert left == []
    assert scripted.asked == [("POST", "/v1/verdicts")] * 5


def test_threads_share_few_connections(scripted: StubLabelStudio) -> None:
    scripted.trouble = lambda *asked: GOOD
    with VerdictClient(scripted.url, POLICY, connections=2) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client.ask, [b"image"] * 40)) == [ROW] * 40
    assert len(scripted.asked) == 40
    assert 1 <= len(scripted.connections) <= 2


def test_patience_ends(scripted: StubLabelStudio) -> None:
    scripted.trouble = lambda *asked: (503, error("draining"))
    with pytest.raises(NotJudgedError, match="HTTP 503: draining"):
        ask(scripted, patience=0.1)
    assert len(scripted.asked) > 1
    scripted.asked.clear()
    with pytest.raises(NotJudgedError):
        ask(scripted, patience=0)
    assert len(scripted.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}),
        (200, {"verdicts": []}),
        (200, {"verdicts": [ROW, ROW]}),
        (200, {"verdicts": [ROW | {"status": "fine"}]}),
        (200, {"verdicts": [ROW | {"flags": {"three": "false", "seven": "false"}}]}),
        (200, {"verdicts": [ROW | {"thresholds": {}}]}),
        (200, {"verdicts": [ROW | {"scores": None}]}),
        (200, {"verdicts": [ROW | {"taxonomy": ROW["taxonomy"] | {"hash": "of another policy"}}]}),
        (200, {"verdicts": [ROW | {"image": ROW["image"] | {"sha256": "0" * 64}}]}),
        (200, {"verdicts": [ROW | {"row_format": 2}]}),
        (200, {"verdicts": [ROW | {"flagged": True}]}),
        (200, {"verdicts": [ROW | {"flags": {"three": True, "seven": False}}]}),
        (200, {"verdicts": [ROW | {"scores": {"three": math.nan, "seven": 0.2}}]}),
        (200, {"verdicts": [ROW | {"scores": {"three": -1, "seven": 0.2}}]}),
        (200, {"verdicts": [ROW | {"unsafe": None}]}),
        (
            200,
            {
                "verdicts": [
                    {
                        **ROW,
                        **{key: {"three": ROW[key]["three"]} for key in ("scores", "flags", "thresholds")},
                    }
                ]
            },
        ),
        (200, {"verdicts": ["safe"]}),
        (200, {"verdicts": {"0": ROW}}),
        (200, ["verdicts"]),
        (204, None),
        (415, error("not an image")),
        (413, None),
        (422, error("truncated")),
        (400, error("no base64", param="images[0].data")),
    ],
)
def test_what_is_no_verdict_is_not_judged(scripted: StubLabelStudio, answer: Any) -> None:
    answers(scripted, answer)
    with pytest.raises(NotJudgedError):
        ask(scripted)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((401, error("wrong key my-secret-key")), r"refuses the key \(HTTP 401: wrong key \*\*\*\); set ARBITER_API_KEY"),
        ((404, error("no taxonomy 'x'")), "no taxonomy 'x'"),
        ((302, None, {"location": "http://elsewhere.example"}), "sends requests elsewhere"),
        ((400, error("no category wepons", param="thresholds")), "no category wepons"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_set_up_is_said_at_once(scripted: StubLabelStudio, answer: Any, why: str) -> None:
    answers(scripted, answer)
    with pytest.raises(ConfigError, match=why) as caught:
        ask(scripted, api_key="my-secret-key")
    assert "my-secret-key" not in str(caught.value)


@pytest.mark.parametrize("asked", ["digits@2", "other", "digits@"])
def test_another_taxonomy_than_the_named_one_is_not_judged(scripted: StubLabelStudio, asked: str) -> None:
    answers(scripted, GOOD)
    with VerdictClient(scripted.url, asked, patience=60) as client:
        if asked == "digits@":
            assert client.ask(b"image") == ROW
            return
        with pytest.raises(NotJudgedError, match="another taxonomy"):
            client.ask(b"image")


def test_a_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(colour_service(keys=("right",))) as url:
        monkeypatch.setenv("ARBITER_API_KEY", "wrong")
        with VerdictClient(url, patience=0) as client, pytest.raises(ConfigError, match="ARBITER_API_KEY"):
            client.ask(picture(red=255))
        monkeypatch.setenv("ARBITER_API_KEY", "right")
        with VerdictClient(url, patience=0) as client:
            assert client.ask(picture(red=255), "a prompt\ud800")["status"] == "unsafe"


@pytest.mark.parametrize("name", shipped_taxonomies())
def test_a_taxonomy_arrives_as_it_was_sent(name: str) -> None:
    policy = load_taxonomy(name)
    assert read_taxonomy(taxonomy_for_request(policy), "taxonomy").hash == policy.hash


def test_a_reason_is_printed_on_one_line() -> None:
    """It may quote what a model said, or an address that a stranger wrote."""
    row = ROW | {"status": "unjudged", "reason": "\x1b[2Jsafe\nsafe"}
    with pytest.raises(NotJudgedError) as caught:
        judged_row(row)
    assert str(caught.value) == seen_of(row).reason == r"\x1b[2Jsafe\nsafe"


def test_names_without_definitions_cannot_be_sent() -> None:
    with pytest.raises(ConfigError, match="names without definitions"):
        taxonomy_for_request(POLICY.names_only())
