"""`arbiter serve`: what it refuses at once, and a process that drains."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_server import PATIENCE, data_url, picture, wait_until

from judge.errors import ConfigError
from judge.serve.cli import main
from judge.serve.serve_command import chosen_run

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "data" / "serve_colours.py"
QUESTION = {"images": [{"data": data_url(picture(red=255))}]}


class Server:
    """A server in a process of its own; nothing is scored until `gate` is a file."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.errors, self.gate = folder / "errors", folder / "gate"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(self.gate), "serve", "--port", "0", *options],
                stderr=errors,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            )

    @property
    def stderr(self) -> str:
        return self.errors.read_text()

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.process.poll() is not None or "ready" in self.stderr)
        found = re.search(r"http://[\w.:\[\]]+(?=/v1)", self.stderr)
        assert found, self.stderr
        self.address = found[0]

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()

    def ask_slowly(self) -> tuple[threading.Thread, list[Any]]:
        """Send a question, and return once it was accepted: its thread, and where the answer will be."""
        answers: list[Any] = []

        def ask() -> None:
            try:
                answers.append(self.ask("/v1/verdicts", QUESTION))
            except OSError as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: "arbiter_pending_images 1.0" in self.ask("/metrics")[2])
        return thread, answers


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*options: str) -> Server:
        server = Server(tmp_path, *options)
        started.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(start: Callable[..., Server]) -> None:
    server = start()
    assert server.ask("/readyz")[0] == 200
    thread, answers = server.ask_slowly()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.ask("/readyz")[0] == 503)
    assert server.ask("/healthz")[0] == 200
    status, headers, body = server.ask("/v1/verdicts", QUESTION)
    assert (status, json.loads(body)["error"]["code"]) == (503, "draining")
    assert int(headers["retry-after"]) > 0
    assert "arbiter_draining 1.0" in server.ask("/metrics")[2]
    server.gate.touch()
    thread.join()
    [(status, _, body)] = answers
    assert (status, json.loads(body)["verdicts"][0]["status"]) == (200, "unsafe")
    assert server.process.wait() == 0
    assert "WARNING" not in server.stderr
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("again", [True, False], ids=("a second signal", "too much time"))
def test_what_takes_too_long_is_given_up(start: Callable[..., Server], again: bool) -> None:
    server = start("--drain-seconds", "600" if again else "0.5")
    thread, answers = server.ask_slowly()
    server.process.send_signal(signal.SIGTERM)
    if again:
        wait_until(lambda: server.ask("/readyz")[0] == 503)
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait() == 2
    thread.join()
    assert isinstance(answers[0], OSError)
    assert "ended before 1 images were answered" in server.stderr


def test_local_servers_refuse_other_names_and_other_sites(start: Callable[..., Server]) -> None:
    server = start("--no-page")
    server.gate.touch()
    host = server.address.removeprefix("http://")
    for headers, code in (
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Origin": "https://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
    ):
        status, _, body = server.ask("/v1/verdicts", QUESTION, **headers)
        assert (status, json.loads(body)["error"]["code"]) == (403, code)
    assert server.ask("/v1/verdicts", QUESTION, Origin=f"http://{host}")[0] == 200
    assert server.ask("/")[0] == 404
    server.process.send_signal(signal.SIGINT)  # with nothing to answer it ends at once
    assert server.process.wait() == 0


def test_a_run_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path, "--judge", "tiny-clip")
    try:
        assert server.process.wait() == 2
    finally:
        server.process.kill()
    assert server.stderr.splitlines()[-1] == "arbiter: this one cannot be loaded"


# --- refused at once -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARBITER_API_KEYS", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "runs/dmeo"], "There is no 'runs/dmeo' here"),
        (["--judge", "a", "--student", "b"], "Give one of --judge, --student and --cascade, not a and b."),
        (["--student", "a", "--engine", "http://x/v1"], "--engine is the judge of a cascade"),
        (["--engine", "http://127.0.0.1:1/v1#m"], "has none of its own; give --taxonomy"),
        (["--host", "0.0.0.0"], "can be reached by others, and there is no API key"),
        (["--host", "::"], "can be reached by others"),
        (["--host", "example.org"], "can be reached by others"),
        (["--host", "no.such.host.invalid", "--no-keys"], "Cannot listen on no.such.host.invalid"),
        (["--api-key-file", "none.txt"], "Cannot read the API keys in none.txt"),
        (["--api-key-file", "empty.txt"], "empty.txt holds no API key"),
        (["--api-key-file", "short.txt"], "An API key has at least 16 characters"),
        (["--metrics-key-file", "empty.txt"], "empty.txt holds no API key"),
        (["--database-password-file", "short.txt"], "SQLite has no password"),
        (["--taxonomy", "digtis"], "did you mean 'digits'"),
        (["--taxonomy", "digits", "--threshold", "Nudity=0.1"], "has no category 'Nudity'"),
        (["--threshold", "2"], "expected a number from 0 to 1"),
        (["--prompt-mode", "maybe"], "maybe"),
        (["--port", "99999"], "less than or equal to 65535"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").write_text("# nothing\n")
    Path("short.txt").write_text("hello\n")
    assert main(["serve", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_database_may_stand_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A password in it shows nowhere, in the message neither; the option has the last word."""
    monkeypatch.setenv("ARBITER_DATABASE", "postgresql://me:secret@/no?host=/nowhere")
    Path("password").write_text("another secret\n")
    for words in (
        ["serve", "--port", "0"],
        ["serve", "--port", "0", "--database-password-file", "password"],
        ["decisions", "list", "--state", "."],
    ):
        assert main(words) == 2
        assert "secret" not in (said := capsys.readouterr().err)
        assert "/nowhere" in said or "leave one of them out" in said
    with_file = ["--database", "postgresql://me@/no?host=/nowhere", "--database-password-file", "password"]
    assert main(["decisions", "list", "--state", ".", *with_file]) == 2
    assert "/nowhere" in (said := capsys.readouterr().err)
    assert "secret" not in said


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"Cannot listen on 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert main(["serve"]) == 2
    assert "needs uvicorn: pip install 'arbiter-vision[serve]'" in capsys.readouterr().err


def test_which_run_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen_run(None, None, None, None) == ("tiny-student", None)
    assert "handwritten digits" in capsys.readouterr().err
    for name in ("demo", "student", "cascade"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").touch()
        assert chosen_run(None, None, None, None) == (f"runs/{name}", None)
    assert capsys.readouterr().err == ""
    assert chosen_run(None, None, None, "http://x/v1#m") == ("http://x/v1#m", None)
    assert chosen_run(None, None, "c", "http://x/v1#m") == ("c", "http://x/v1#m")
    assert chosen_run("a", None, None, None) == ("a", None)
    with pytest.raises(ConfigError):
        chosen_run("a", None, None, "http://x/v1")
