"""Fixtures: a server whose classifier scores colours, in this process or on a real port."""

import base64
import io
import threading
import time
from contextlib import contextmanager

import pytest

PATIENCE = 300
"""Seconds after which what a test waits for counts as never coming; a busy machine takes its time."""


class ColourJudge:
    """The redder the first pixel, the less safe; blames the first category. Blue is unjudged, green breaks it.

    `gate`, where it is set, holds every call until it is opened; `calls` keeps what each one was asked.
    """

    name = "colours"

    def __init__(self, taxonomy=None):
        from prompts import load_taxonomy

        self.default_taxonomy = taxonomy or load_taxonomy("digits")
        self.calls = []
        self.gate = None
        self.entered = threading.Event()

    def score(self, images, prompts, taxonomy):
        import numpy as np

        from judge.protocol import Scores

        self.calls.append((len(images), list(prompts), taxonomy))
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        colours = np.array([image.getpixel((0, 0)) for image in images], dtype=float).reshape(-1, 3)
        if (colours[:, 1] > 200).any():
            raise RuntimeError("a secret in /a/path")
        unsafe = np.where(colours[:, 2] > 200, np.nan, colours[:, 0] / 255)
        categories = np.where(np.isnan(unsafe)[:, None], np.nan, np.zeros((1, len(taxonomy))))
        categories[:, 0] = unsafe
        return Scores(unsafe, categories, tuple("too blue" if np.isnan(v) else None for v in unsafe))


def picture(red=0, green=0, blue=0, size=(8, 6), kind="PNG"):
    """The bytes of an image of one colour."""
    from PIL import Image

    written = io.BytesIO()
    Image.new("RGB", size, (red, green, blue)).save(written, kind)
    return written.getvalue()


def animation(*reds):
    """A GIF with a frame of each of these reds."""
    from PIL import Image

    frames = [Image.new("RGB", (8, 6), (red, 0, 0)) for red in reds]
    written = io.BytesIO()
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return written.getvalue()


def data_url(data):
    """`data:image/png;base64,...` of some bytes, whatever they are."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def image_part(data):
    """A part of the input of `/v1/moderations`."""
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def colour_service(classifier=None, **settings):
    """A service that is not started yet."""
    from judge.server.service import JudgeService, LoadedJudge
    from judge.server.settings import ServerSettings

    judge = classifier or ColourJudge()
    loaded = LoadedJudge(judge, judge.default_taxonomy, judge.name, "ab" * 32)
    return JudgeService(lambda: loaded, ServerSettings(**{"decode_workers": 0, **settings}))


@contextmanager
def client_of(service, records=None):
    """A client of the application of a service, which is ready."""
    from starlette.testclient import TestClient

    from judge.server.app import create_app

    with TestClient(create_app(service, service.settings, records), raise_server_exceptions=False) as client:
        wait_until(lambda: service.ready or service.failure)
        yield client


@contextmanager
def listening(service, records=None):
    """The address of a real server of a service, such as `http://127.0.0.1:40123`, on a thread of this process."""
    import uvicorn

    from judge.server.app import create_app

    app = create_app(service, service.settings, records)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started and (service.ready or service.failure))
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_until(done, seconds=PATIENCE):
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.fixture
def colours():
    return ColourJudge()


@pytest.fixture
def client(colours):
    """A client of a server that judges colours."""
    with client_of(colour_service(colours)) as client:
        yield client
