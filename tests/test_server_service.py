"""How much a server accepts, who is dropped, what it explains and shows; and a real student behind it."""

import asyncio
import http.server
import io
import json
import threading
from typing import Any

import openai
import pytest
from fixtures_server import (
    PATIENCE,
    ColourJudge,
    animation,
    client_of,
    colour_service,
    data_url,
    image_part,
    listening,
    picture,
    wait_until,
)
from PIL import Image

from judge.data.frames import open_frames
from judge.errors import ImageError
from judge.intake.decoding import Decoded
from judge.protocol import Scores
from judge.server import opening
from judge.server.errors import DrainingError, OverloadedError
from judge.server.metrics import Metrics
from judge.server.service import JudgeService, LoadedJudge, Question
from judge.server.settings import ServerSettings
from prompts import Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits")
RED, BLACK = picture(red=255), picture()


def verdicts(*images: bytes, **extra: Any) -> dict[str, Any]:
    return {"images": [{"data": data_url(image)} for image in images], **extra}


@pytest.fixture
def gated(colours: ColourJudge) -> ColourJudge:
    """A classifier that waits for the test."""
    colours.gate = threading.Event()
    return colours


# --- how much is accepted ------------------------------------------------------------------------------------


def test_a_full_queue_is_429_at_once_and_tried_again_later(gated: ColourJudge) -> None:
    service = colour_service(gated, queue_images=3)
    with client_of(service) as client:
        waiting = [
            threading.Thread(target=client.post, args=("/v1/verdicts",), kwargs={"json": verdicts(*images)})
            for images in ((RED,), (RED, BLACK))
        ]
        for thread in waiting:
            thread.start()
        wait_until(lambda: service.pending == 3)
        refused = client.post("/v1/verdicts", json=verdicts(RED))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        gated.gate.set()
        for thread in waiting:
            thread.join()
        assert client.post("/v1/verdicts", json=verdicts(RED)).status_code == 200
    assert service.pending == 0


def test_the_openai_client_tries_again_when_the_queue_was_full(gated: ColourJudge) -> None:
    service = colour_service(gated, queue_images=1)
    with listening(service) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        first = threading.Thread(target=client.moderations.create, kwargs={"input": [image_part(RED)]})
        first.start()
        wait_until(lambda: service.pending == 1)
        threading.Timer(0.2, gated.gate.set).start()
        assert client.moderations.create(input=[image_part(RED)]).results[0].flagged
        first.join()


def test_all_images_of_a_request_are_accepted_or_none(gated: ColourJudge) -> None:
    service = colour_service(gated, queue_images=3)

    async def run() -> None:
        service.start()
        while not service.ready:
            await asyncio.sleep(0.001)
        question = Question(RED, DIGITS)
        first = asyncio.ensure_future(service.judge_all([question] * 2))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await service.judge_all([question] * 2)
        assert service.pending == 2
        service.draining = True
        with pytest.raises(DrainingError):
            await service.judge(question)
        gated.gate.set()
        await first
        assert service.pending == 0
        service.close()
        service.close()

    asyncio.run(run())


def test_frames_of_an_animation_count(gated: ColourJudge) -> None:
    service = colour_service(gated, queue_images=5)
    with client_of(service) as client:
        moving = animation(0, 50, 100, 150, 200)
        thread = threading.Thread(
            target=client.post, args=("/v1/verdicts",), kwargs={"json": verdicts(moving)}
        )
        thread.start()
        wait_until(lambda: service.pending == 5)
        assert client.post("/v1/verdicts", json=verdicts(RED)).status_code == 429
        gated.gate.set()
        thread.join()
    assert [size for size, _, _ in gated.calls] == [5]
    assert service.pending == 0


class SlowOpener:
    """Opens images, and notes how many it had open at a time."""

    def __init__(self) -> None:
        self.opened = 0

    async def open(self, data: bytes) -> Decoded:
        await asyncio.sleep(0)
        self.opened += 1
        return Decoded(open_frames(data), "0" * 64)

    def close(self) -> None:
        pass


def test_no_more_images_are_opened_than_memory_has_room_for(
    gated: ColourJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "MAX_HELD_PIXELS", 3 * 48)
    opener = SlowOpener()
    loaded = LoadedJudge(gated, DIGITS, "colours")
    service = JudgeService(lambda: loaded, ServerSettings(decode_workers=0), opener=opener)

    async def run() -> list[Any]:
        service.start()
        while not service.ready:
            await asyncio.sleep(0.001)
        asked = asyncio.ensure_future(service.judge_all([Question(RED, DIGITS)] * 10))
        for _ in range(100):
            await asyncio.sleep(0)
        assert opener.opened == 3
        gated.gate.set()
        judged: list[Any] = await asyncio.wait_for(asked, PATIENCE)
        service.close()
        return judged

    assert [one.row["status"] for one in asyncio.run(run())] == ["unsafe"] * 10
    assert opener.opened == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"queue_images": 0},
        {"max_images": 0},
        {"decode_workers": -1},
        {"max_body_bytes": 10, "max_bodies_bytes": 9},
    ],
)
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ServerSettings(**wrong)  # type: ignore[arg-type]


# --- clients that go away ------------------------------------------------------------------------------------


def test_questions_of_a_client_that_went_away_are_dropped(gated: ColourJudge) -> None:
    import http.client

    service = colour_service(gated)
    with listening(service) as address:
        host = address.removeprefix("http://")
        connections = [http.client.HTTPConnection(host, timeout=PATIENCE) for _ in range(2)]
        for connection in connections:
            connection.request("POST", "/v1/verdicts", json.dumps(verdicts(RED, RED)))
        # All four are opened: some wait in the classifier, the others in the queue.
        batcher = service._batcher
        assert batcher is not None
        wait_until(lambda: sum(size for size, _, _ in gated.calls) + batcher.length == 4)
        for connection in connections:
            connection.close()
        wait_until(lambda: service.pending == 0)
        assert batcher.length == 0
        gated.gate.set()
        assert [size for size, _, _ in gated.calls] == [gated.calls[0][0]]
        text = service.metrics.text().decode()
    assert 'arbiter_requests_total{method="POST",route="/v1/verdicts",status="499"} 2.0' in text


# --- what is said of an image --------------------------------------------------------------------------------


class HalfRed:
    """Scores the share of red pixels, so that covering them matters; tells of a default threshold per category."""

    name = "half-red"
    default_taxonomy = DIGITS

    def score(self, images: Any, prompts: Any, taxonomy: Taxonomy) -> Scores:
        import numpy as np

        found = np.array([(np.asarray(image)[..., 0] > 200).mean() for image in images])
        categories = np.zeros((len(images), len(taxonomy)))
        categories[:, 1] = found
        return Scores(found, categories, (None,) * len(images))


def half_red() -> bytes:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 0, 0), (0, 0, 32, 64))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def test_an_explanation_shows_what_drove_the_verdict() -> None:
    loaded = LoadedJudge(HalfRed(), DIGITS, "half-red")
    with client_of(JudgeService(lambda: loaded, ServerSettings(decode_workers=0))) as client:
        answer = client.post("/v1/verdicts", json=verdicts(half_red(), b"none", explain=True, thresholds=0.4))
        first, second = answer.json()["verdicts"]
        assert first["status"] == "unsafe"
        explanation = first["explanation"]
        assert explanation["category"] == first["category"] == DIGITS.names[1]
        left, _, right, _ = explanation["box"]
        assert (left, right) == (0, 0.5)
        assert second["explanation"] is None
        error = client.post("/v1/verdicts", json=verdicts(*[RED] * 9, explain=True)).json()["error"]
        assert (error["code"], error["param"]) == ("too_many_images", "explain")


def test_an_explanation_that_fails_costs_no_verdict(
    colours: ColourJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judge.explain.explain", lambda *_: 1 / 0)
    with client_of(colour_service(colours)) as client:
        [row] = client.post("/v1/verdicts", json=verdicts(RED, explain=True)).json()["verdicts"]
    assert (row["status"], row["explanation"]) == ("unsafe", None)


def test_thresholds_of_the_server_hold_for_its_own_categories_only(colours: ColourJudge) -> None:
    loaded = LoadedJudge(colours, DIGITS, "colours", threshold={DIGITS.names[0]: 0.3, DIGITS.names[1]: 0.2})
    service = JudgeService(lambda: loaded, ServerSettings(decode_workers=0))
    with client_of(service) as client:
        for extra, limits in (
            ({}, [0.3, 0.2, 0.5]),
            ({"categories": [DIGITS.names[1]]}, [0.2]),
            ({"taxonomy": [{"name": DIGITS.names[0], "definition": "Another thing."}]}, [0.5]),
            ({"thresholds": 0.9}, [0.9] * 3),
        ):
            [row] = client.post("/v1/verdicts", json=verdicts(BLACK, **extra)).json()["verdicts"]
            assert list(row["thresholds"].values())[: len(limits)] == limits


def test_scores_that_are_no_probabilities_are_no_verdict(colours: ColourJudge) -> None:
    service = colour_service(colours)
    wrong = Scores(
        *(
            array + 7
            for array in (lambda s: (s.unsafe, s.categories))(
                colours.score([Image.new("RGB", (1, 1), (255, 0, 0))], [None], DIGITS)
            )
        ),
        (None,),
    )
    colours.score = lambda *_: wrong  # type: ignore[method-assign]
    with client_of(service) as client:
        [row] = client.post("/v1/verdicts", json=verdicts(RED)).json()["verdicts"]
    assert row["status"] == "unjudged"
    assert "unusable scores" in row["reason"]


def test_addresses_are_fetched_from_allowed_hosts_only(
    colours: ColourJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(self: Any, url: str) -> bytes:
        if url != "https://images.example.com/a.png":
            raise ImageError("url_refused", "not allowed")
        return RED

    monkeypatch.setattr("judge.intake.fetch.ImageFetcher.fetch", fetch)
    urls = ["https://images.example.com/a.png", "https://other.example.com/a.png"]
    body = {"images": [{"url": url} for url in urls]}
    for hosts, statuses in (
        (("images.example.com",), ["unsafe", "unjudged"]),
        ((), ["unjudged", "unjudged"]),
    ):
        with client_of(colour_service(colours, image_hosts=hosts)) as client:
            rows = client.post("/v1/verdicts", json=body).json()["verdicts"]
            assert [row["status"] for row in rows] == statuses
            assert rows[1]["reason"].startswith("url_refused: ")
            assert rows[1]["image"]["sha256"] is None
            part = {"type": "image_url", "image_url": {"url": urls[1]}}
            answer = client.post("/v1/moderations", json={"input": [part]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_refused")


def test_the_pixels_that_are_judged_can_be_seen(colours: ColourJudge) -> None:
    service = colour_service(colours)
    transparent = io.BytesIO()
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(transparent, "PNG")
    for data in (RED, animation(0, 100, 200), transparent.getvalue()):
        shown = asyncio.run(service.view(data))
        judged = open_frames(data).images
        assert [Image.open(io.BytesIO(png)).tobytes() for png in shown] == [
            image.tobytes() for image in judged
        ]
    with pytest.raises(ImageError):
        asyncio.run(service.view(b"no image"))


# --- numbers ------------------------------------------------------------------------------------------------


def test_metrics_count_and_have_no_labels_of_strangers() -> None:
    with client_of(colour_service()) as client:
        client.post("/v1/verdicts", json=verdicts(RED, BLACK, b"none", picture(blue=255)))
        client.get("/v1/taxonomies/never-heard-of")
        client.get("/some/secret/path")
        client.request("BREW", "/v1/server")
        text = client.get("/metrics").text
    for line in (
        'arbiter_verdicts_total{stage="judge",status="unsafe"} 1.0',
        'arbiter_verdicts_total{stage="judge",status="unjudged"} 1.0',
        'arbiter_verdicts_total{stage="door",status="unjudged"} 1.0',
        'arbiter_images_total{status="ok"} 3.0',
        'arbiter_images_total{status="not_an_image"} 1.0',
        'arbiter_requests_total{method="GET",route="/v1/taxonomies/{name}",status="404"} 1.0',
        'arbiter_requests_total{method="GET",route="other",status="404"} 1.0',
        "arbiter_pending_images 0.0",
        "arbiter_queue_images 0.0",
        "arbiter_draining 0.0",
        "arbiter_batch_images_sum 3.0",
    ):
        assert line in text.splitlines(), text
    assert "never-heard-of" not in text
    assert "secret" not in text
    assert "BREW" not in text


def test_metrics_of_unknown_words_are_other() -> None:
    metrics = Metrics()
    metrics.concluded("safe", "a stage of a plugin")
    metrics.opened("a new status", 0.1)
    text = metrics.text().decode()
    assert 'arbiter_verdicts_total{stage="other",status="safe"} 1.0' in text
    assert 'arbiter_images_total{status="other"} 1.0' in text


# --- the real thing -----------------------------------------------------------------------------------------


def test_a_shipped_student_behind_worker_processes_answers_as_in_process() -> None:
    import judge
    from judge.server.app import build_service
    from judge.standins.digits import digits_examples

    pictures = [open_frames(example.image).images[0] for example in digits_examples("test", count=6)]
    alone = judge.load_classifier("tiny-student").score(
        pictures, None, DIGITS
    )  # imports torch, without a limit
    service = build_service(ServerSettings(run="tiny-student", decode_workers=1))
    with listening(service) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        answer = client.moderations.create(input=[image_part(png_of(image)) for image in pictures])
        explained = client.moderations.create(
            input=[image_part(png_of(pictures[0]))], extra_body={"explain": True}
        )
    found = [result.verdict["unsafe"] for result in answer.results]
    assert found == pytest.approx(alone.unsafe.tolist(), abs=1e-5)
    assert len(answer.model) == len("tiny-student@") + 12
    assert answer.results[0].verdict["decided_by"] == "student"
    assert explained.results[0].explanation["method"] == "attention"


class ChatServer(http.server.BaseHTTPRequestHandler):
    """Says of every image that it is a three."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        message = {"role": "assistant", "content": "unsafe: three"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_served_judge_behind_the_server() -> None:
    from judge.server.app import build_service

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ChatServer) as chat:
        threading.Thread(target=chat.serve_forever, daemon=True).start()
        run = f"http://127.0.0.1:{chat.server_address[1]}/v1#m"
        service = build_service(ServerSettings(run=run, taxonomy=DIGITS, decode_workers=0))
        with client_of(service) as client:
            answer = client.post("/v1/verdicts", json=verdicts(RED, b"none")).json()
        chat.shutdown()
        service.judge_loaded.classifier.close()  # type: ignore[attr-defined]
    assert answer["model"] == "m"
    assert [row["status"] for row in answer["verdicts"]] == ["unsafe", "unjudged"]
    assert (answer["verdicts"][0]["category"], answer["verdicts"][0]["model"]["sha256"]) == ("three", None)


def png_of(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()
