"""Data URLs and base64: what is one, what is none, and how large it may be."""

import base64
import tracemalloc
from urllib.parse import quote, quote_from_bytes
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.errors import ImageError
from judge.intake.data_urls import bytes_of_text

LIMIT = 1000
contents = st.binary(min_size=1, max_size=200)


def status(text: str, limit: int = LIMIT) -> str:
    with pytest.raises(ImageError) as caught:
        bytes_of_text(text, limit)
    return caught.value.status


@given(
    contents,
    st.sampled_from(["image/png", "IMAGE/JPEG", "image/webp;charset=x", "", "application/octet-stream"]),
)
def test_every_way_to_write_the_same_bytes(data, kind):
    text = base64.b64encode(data).decode()
    url = f"data:{kind};base64,{text}"
    lines = base64.encodebytes(data).decode()
    ways = [text, lines, f"  {text}\n", url, url.replace("data:", "Data:").replace("base64", "BASE64")]
    ways += [f"data:{kind};base64,{quote(lines, safe='')}", f"data:{kind},{quote_from_bytes(data, safe='')}"]
    assert [bytes_of_text(way, len(data)) for way in ways] == [data] * len(ways)
    # The standard library opens the same URL to the same bytes.
    with urlopen(url) as opened:
        assert opened.read() == data


@given(contents)
def test_the_size_is_exact(data):
    text = base64.b64encode(data).decode()
    for way in (text, f"data:image/png;base64,{text}", f"data:image/png,{quote_from_bytes(data, safe='')}"):
        assert bytes_of_text(way, len(data)) == data
        if len(data) > 1:
            assert status(way, len(data) - 1) == "too_large"


@settings(max_examples=300)
@given(
    st.text(max_size=100) | st.text("ABab01+/= \n%,;:", max_size=60),
    st.sampled_from(["", "data:image/png;base64,", "data:,"]),
)
def test_any_text_is_bytes_or_a_clean_error(text, head):
    error = None
    try:
        data = bytes_of_text(head + text, 50)
    except ImageError as caught:
        error = caught
    if error is not None:
        assert error.status in ("not_an_image", "too_large", "unsupported_format")
        assert "\n" not in str(error)
    else:
        assert 0 < len(data) <= 50
        if head != "data:," and ":" not in text and "%" not in text:
            # Strict: the bytes have no other spelling but for white space and the unused bits of the last character.
            assert base64.b64encode(data).decode()[:-3] == "".join(text.split())[:-3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "data:image/png;base64,",
        "data:image/png,",
        "data:image/png;base64",
        "data:" + "x" * 2000 + ",AAAA",
        "QUJD=",
        "QUJ",
        "QUI",
        "QU=I",
        "QUJD====",
        "QUJD\u00e9AAA",
        "QU-_",
        "Q\x00JD",
        "data:image/png;base64,QUJD#x",
        "data:image/png;base64,QUJD%2",
        "data:image/png,%GG",
        "data:image/png,\u00e9",
        "data:image/png;base64,data:image/png;base64,QUJD",
        "http://example.com/a.png",
        "HTTPS://example.com/a.png",
        "file:///etc/passwd",
        "blob:null/1",
        "javascript:alert(1)",
    ],
)
def test_what_is_none(text):
    assert status(text) == "not_an_image"


@pytest.mark.parametrize(
    "kind",
    ["image/svg+xml", "Image/SVG+XML", "text/html", "text/plain", "application/pdf", "video/mp4", "png"],
)
def test_types_that_no_image_has(kind):
    assert status(f"data:{kind};base64,iVBORw0KGgo=") == "unsupported_format"
    with pytest.raises(ImageError, match="SVG" if "svg" in kind.lower() else kind):
        bytes_of_text(f"data:{kind},x", LIMIT)


def test_nothing_large_is_copied_before_it_is_refused():
    text = "data:image/png;base64," + "A" * 8_000_000
    tracemalloc.start()
    assert status(text) == "too_large"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_errors_repeat_little_of_the_text():
    with pytest.raises(ImageError) as caught:
        bytes_of_text(f"data:{'x' * 900};base64,QUJD", LIMIT)
    assert len(str(caught.value)) < 200
