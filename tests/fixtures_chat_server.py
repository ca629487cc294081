"""Fixtures: a chat server that says what it is told to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

AT_ONCE = {"retry-after-ms": "1"}


def completion(text, *, finish="stop", logprobs=None, **message):
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text} | message,
    }
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    return 200, {}, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def problem(status, message="no", **headers):
    return status, AT_ONCE | headers, {"error": {"message": message}}


class Stub:
    """A chat server that says what it is told to, and keeps what it was asked."""

    def __init__(self):
        self.models = (200, {}, {"object": "list", "data": [{"id": "m"}]})
        self.script = []
        self.answer = lambda request: completion("safe")
        self.asked, self.headers, self.listed = [], [], 0
        self.stop = threading.Event()
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                stub.listed += 1
                self.reply(*(stub.models if self.path == "/v1/models" else problem(404)))

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with stub._lock:
                    stub.asked.append(request)
                    stub.headers.append(self.headers)
                    reply = stub.script.pop(0) if stub.script else stub.answer(request)
                self.reply(*(reply(request) if callable(reply) else reply))

            def reply(self, status, headers, body):
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in ({"content-type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that gave up waiting has closed its side

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.stop.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def stub():
    server = Stub()
    yield server
    server.close()
