"""Fetching images: what is never asked, what is never connected to, and what an answer may cost.

Nothing leaves this machine: names resolve to a server of the test on 127.0.0.1, which only the test declares public.
"""

import asyncio
import contextlib
import gzip
import logging
import ssl
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.errors import ConfigError, ImageError
from judge.intake.fetch import ImageFetcher, is_public, read_url

CERTIFICATE = Path(__file__).parent / "data" / "images.example.pem"
HOST = "images.example"
IMAGE = bytes(range(256)) * 40


def answer(body=IMAGE, status="200 OK", *headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def drip(writer, part, seconds):
    """The part again and again, until the other side is gone."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(seconds)


class Server:
    """Answers each request with `reply`, bytes or a coroutine of the writer; keeps the requests."""

    def __init__(self, reply=None):
        self.reply = answer() if reply is None else reply
        self.requests, self.tasks, self.now, self.most = [], set(), 0, 0

    async def __call__(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                self.now += 1
                self.most = max(self.most, self.now)
                if isinstance(self.reply, bytes):
                    writer.write(self.reply)
                    await writer.drain()
                else:
                    await self.reply(writer)
                self.now -= 1
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()


def resolver(*answers):
    """Each look-up gets the next answer, the last one for ever; `asked` keeps the names."""

    async def resolve(host, port):
        resolve.asked.append(host)
        return answers[min(len(resolve.asked), len(answers)) - 1]

    resolve.asked = []
    return resolve


def fetch(server, url="http://images.example:{port}/a.png", *, secure=False, **options):
    """What fetching the URL gives, where the server stands behind every name."""
    with_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with_certificate.load_cert_chain(CERTIFICATE)
    given_options = {
        "hosts": [HOST, ".pictures.example"],
        "max_bytes": 100_000,
        "resolve": resolver(["127.0.0.1"]),
        "may_connect": lambda address: address == "127.0.0.1",
        "tls": ssl.create_default_context(cafile=CERTIFICATE),
        "seconds": 20.0,
    } | options

    async def main():
        listening = await asyncio.start_server(
            server, "127.0.0.1", 0, ssl=with_certificate if secure else None
        )
        port = listening.sockets[0].getsockname()[1]
        fetcher = ImageFetcher(ports=[port], **given_options)
        urls = [url] if isinstance(url, str) else url
        try:
            found = await asyncio.gather(
                *(fetcher.fetch(one.format(port=port)) for one in urls), return_exceptions=True
            )
        finally:
            await fetcher.close()
            listening.close()
            for task in server.tasks:
                task.cancel()
            await asyncio.gather(*server.tasks, return_exceptions=True)
            for _ in range(20):  # transports end in the loop's next rounds
                await asyncio.sleep(0.001)
        return found

    found = asyncio.run(main())
    if not isinstance(url, str):
        return found
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def status(server, url="http://images.example:{port}/a.png", **options):
    with pytest.raises(ImageError) as caught:
        fetch(server, url, **options)
    return caught.value.status


def test_an_image_from_an_allowed_host():
    server = Server()
    assert fetch(server, "http://images.example:{port}/a%20b/c.png?size=1&x=/?:@#part") == IMAGE
    [request] = server.requests
    first, *headers = request.split("\r\n")[:-2]
    assert first == "GET /a%20b/c.png?size=1&x=/?:@ HTTP/1.1"
    names = {line.split(":")[0].lower() for line in headers}
    assert names == {"host", "accept", "accept-encoding", "user-agent"}
    assert "Accept-Encoding: identity" in headers


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("HTTP://IMAGES.Example:{port}?a", "/?a"),
        ("http://images.example:{port}", "/"),
        ("http://cdn.eu.pictures.example:{port}/", "/"),
    ],
)
def test_other_ways_to_write_it(url, sent):
    server = Server()
    assert fetch(server, url) == IMAGE
    assert server.requests[0].startswith(f"GET {sent} HTTP/1.1\r\n")
    assert "\r\nHost: images.example:" in server.requests[0] or "cdn.eu" in url


ADDRESSES = """
http://allowed.example\\@127.0.0.1/
http://images.example\\@127.0.0.1/
http://images.example\\.evil.example/
http://images.example@127.0.0.1/
http://user:secret@images.example/
http://images.example:80@127.0.0.1/
http://127.0.0.1/
http://127.0.0.1:{port}/
http://2130706433/
http://0x7f000001/
http://0x7f.0.0.1/
http://0177.0.0.1/
http://127.1/
http://127.0.0.1.
http://[::1]/
http://[::ffff:127.0.0.1]/
http://localhost/
http://localhost:{port}/
http://images.example./
http://images.example../
http://.images.example/
http://images..example/
http://images.example%2eevil.example/
http://images.example%00.evil.example/
http://images.example /
http:// images.example/
http:images.example/
http:/images.example/
http:///images.example/
//images.example/
images.example/a.png
ftp://images.example/
file:///etc/passwd
gopher://images.example/
http+unix://images.example/
https://images.example:/
http://images.example:99999999/
http://images.example:-1/
http://images.example:{port}x/
http://images.example/a b
http://images.example/a\tb
http://images.example/a\\b
http://images.example/%2
http://images.example/\u00e9
http://im\u00e4ges.example/
http://images\u3002example/
http://\uff49mages.example/
http://imag\u017fs.example/
http://images.example/#\u00e9
http://-images.example/
http://evil.example/
http://images.example.evil.example/
http://evilimages.example/
http://sub.images.example/
http://pictures.example/
http://evilpictures.example/
http://evil.example/images.example
http://evil.example/#@images.example
http://evil.example?@images.example
http://images.example:22/
http://images.example:8080/
https://images.example:80000/
""".strip("\n").split("\n")


@pytest.mark.parametrize(
    "url", [*ADDRESSES, "", "http://images.example/" + "a" * 2048, "http://images.example/\r\nX: y"]
)
def test_addresses_that_are_never_asked(url):
    resolve = resolver(["127.0.0.1"])
    server = Server()
    assert status(server, url, resolve=resolve) == "url_refused"
    assert (server.requests, resolve.asked) == ([], [])


@given(
    st.text("htps:/@\\.#?%[]0129axf-_ \n\t\u00e9", max_size=40),
    st.sampled_from(["", "http://", "http://images.example"]),
)
def test_what_is_read_leaves_nothing_to_interpret(text, head):
    """Whatever passes is what the standard library reads, too."""
    from urllib.parse import urlsplit

    try:
        found = read_url(head + text)
    except ImageError:
        return
    other = urlsplit(head + text)
    assert (found.scheme, found.host) == (other.scheme, other.hostname)
    assert found.port == (other.port or {"http": 80, "https": 443}[other.scheme])
    assert (other.username, other.password) == (None, None)
    assert found.target == (other.path or "/") + (
        f"?{other.query}" if other.query or text.split("#")[0].endswith("?") else ""
    )


def test_reading_takes_no_time():
    for url in (
        "http://" + "a-" * 1000,
        "http://images.example/?" + "?" * 1900 + "\n",
        "http://" + "a." * 1000,
    ):
        times = []
        for _ in range(3):  # Python may tidy up meanwhile, in a process that holds much
            started = time.process_time()
            with pytest.raises(ImageError):
                read_url(url)
            times.append(time.process_time() - started)
        assert min(times) < 0.2


def test_without_hosts_nothing_is_fetched():
    server = Server()
    with pytest.raises(ImageError, match="url_refused: this server fetches no images"):
        fetch(server, hosts=[])
    assert server.requests == []


@pytest.mark.parametrize(
    "host", ["", "*", "*.example.com", "http://images.example", "images.example/", "127.0.0.1", "[::1]", "."]
)
def test_lists_that_mean_nothing(host):
    with pytest.raises(ConfigError, match="is no host to fetch images from"):
        ImageFetcher([host], max_bytes=1)


NOT_PUBLIC = """
127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.127.255.254 192.0.0.1
192.0.0.9 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 224.0.1.1 239.1.1.1 240.0.0.1
255.255.255.255 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:7f00:1 64:ff9b::7f00:1 64:ff9b::808:808
64:ff9b:1::1 100::1 2001::1 2001:0:7f00:1:: 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:808:808:: 3fff::1 fc00::1
fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 5f00::1 2130706433 0x7f000001 127.1 localhost
""".split()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "found", [[address] for address in NOT_PUBLIC[:20]] + [[], ["8.8.8.8", "127.0.0.1"], ["no address"]]
)
def test_a_name_that_leads_inside_is_not_followed(found, caplog):
    """By the real rule; nothing is connected to, not even the public one of two addresses."""
    server, resolve = Server(), resolver(found)
    with caplog.at_level(logging.WARNING), pytest.raises(ImageError) as caught:
        fetch(server, resolve=resolve, may_connect=None)
    assert str(caught.value) == "url_failed: the image could not be fetched"
    assert resolve.asked == [HOST]
    assert server.requests == []
    assert "resolves to" in caplog.text


def test_a_name_is_resolved_once():
    """The second answer would lead elsewhere; the connection goes to the first, which was checked."""
    server, resolve = Server(), resolver(["127.0.0.1"], ["127.0.0.2"])
    assert fetch(server, resolve=resolve) == IMAGE
    assert resolve.asked == [HOST]
    server, resolve = Server(), resolver(["127.0.0.2"], ["127.0.0.1"])
    assert status(server, resolve=resolve) == "url_failed"
    assert (server.requests, resolve.asked) == ([], [HOST])


def test_another_address_is_tried_where_one_does_not_answer():
    server = Server()
    resolve = resolver(["127.0.0.3", "127.0.0.1"])
    assert fetch(server, resolve=resolve, may_connect=lambda _: True) == IMAGE
    assert resolve.asked == [HOST]


@pytest.mark.parametrize("code", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/", "http://images.example:{port}/", "//127.0.0.1/", "/b"]
)
def test_redirects_are_not_followed(code, target):
    server = Server(answer(b"", code, f"Location: {target}"))
    assert status(server) == "url_failed"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"", "404 Not Found"),
        answer(IMAGE, "206 Partial Content"),
        answer(b"", "204 No Content"),
        answer(gzip.compress(bytes(10_000_000)), "200 OK", "Content-Encoding: gzip"),
        answer(IMAGE, "200 OK", "Content-Encoding: identity, br"),
        answer(IMAGE)[:-10],
        b"not http\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"",
    ],
)
def test_answers_that_are_not_used(reply, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ImageError) as caught:
        fetch(Server(reply))
    assert str(caught.value) == "url_failed: the image could not be fetched"
    [record] = [record for record in caplog.records if record.name == "judge.intake.fetch"]
    assert HOST in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 10\r\n", b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 999999999\r\n"],
)
def test_bytes_are_counted_as_they_come(head):
    """Endless, whatever the length says; one that says too little is cut there, by HTTP's own rule."""
    part = b"1000\r\n" + bytes(0x1000) + b"\r\n" if b"chunked" in head else bytes(0x1000)

    async def endless(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        await drip(writer, part, 0)

    if b"10\r" in head:
        assert fetch(Server(endless)) == bytes(10)
    else:
        assert status(Server(endless)) == "too_large"
    exact = Server(answer(bytes(100_000)))
    assert fetch(exact) == bytes(100_000)


async def slow_head(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await drip(writer, b"X: y\r\n", 0.02)


async def slow_body(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    await drip(writer, b"x", 0.02)


async def interim(writer):
    await drip(writer, b"HTTP/1.1 102 Processing\r\n\r\n", 0.02)


async def silence(writer):
    await asyncio.sleep(3600)


@pytest.mark.parametrize("reply", [slow_head, slow_body, interim, silence])
def test_time_is_limited_as_a_whole(reply):
    assert status(Server(reply), seconds=0.4) == "url_failed"


def test_a_slow_resolver_counts_too():
    async def never(host, port):
        await asyncio.sleep(3600)

    assert status(Server(), resolve=never, seconds=0.1) == "url_failed"


def test_so_many_at_a_time():
    async def pause(writer):
        while server.most < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)  # a third one would come now
        writer.write(answer())
        await writer.drain()

    server = Server(pause)
    urls = [f"http://images.example:{{port}}/{number}" for number in range(7)]
    assert fetch(server, urls, connections=2) == [IMAGE] * 7
    assert server.most == 2
    assert len(server.requests) == 7


def test_the_certificate_is_for_the_name_and_not_for_the_address(caplog):
    server = Server()
    assert fetch(server, "https://images.example:{port}/a.png", secure=True) == IMAGE
    assert "\r\nHost: images.example:" in server.requests[0]
    other = Server()
    with caplog.at_level(logging.WARNING):
        assert status(other, "https://a.pictures.example:{port}/", secure=True) == "url_failed"
    assert "certificate" in caplog.text.lower()
    assert other.requests == []


def test_an_unknown_authority_is_not_trusted():
    server = Server()
    assert status(server, "https://images.example:{port}/", secure=True, tls=None) == "url_failed"
    assert server.requests == []


def test_no_proxy_of_the_environment(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(Server()) == IMAGE


def test_cookies_are_not_kept():
    server = Server(answer(IMAGE, "200 OK", "Set-Cookie: a=b"))
    fetch(server, ["http://images.example:{port}/1"] * 3, connections=1)
    assert len(server.requests) == 3
    assert "a=b" not in "".join(server.requests)
