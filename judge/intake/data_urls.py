"""Data URLs (RFC 2397) and plain base64 (RFC 4648) -> the bytes of an image, with the size known before decoding.

The media type of a data URL is its author's claim, so it cannot make anything an image; the door decides by content.
Only a type that no image of ours has is refused here, because the answer then says more than "not an image".
"""

import binascii
import re
from urllib.parse import unquote_to_bytes

from judge.errors import ImageError

MAX_HEAD = 1000
"""Characters of a data URL in front of its comma."""
_SCHEME = re.compile(r"(?i)\s*([a-z][a-z0-9+.-]{1,30}):")
_SPACE = b" \t\r\n\f"
_DAMAGED_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNNAMED = ("", "application/octet-stream")


def bytes_of_text(text: str, max_bytes: int) -> bytes:
    """The bytes behind a data URL or plain base64; whether they are an image is not looked at.

    White space in base64 is ignored, everything else strict: the alphabet of RFC 4648, section 4, and full padding.

    Args:
        text: `data:image/png;base64,...`, a data URL in percent-encoding, or base64.
        max_bytes: most bytes of the result, at least 1.

    Raises:
        ImageError: `too_large`, before anything is decoded; `unsupported_format` for a data URL of a type other than a
            picture's, SVG among them; `not_an_image` for anything else that is wrong, an empty text included.
    """
    # Of base64 in percent-encoding, four characters stand for a byte; nothing stands for less.
    if len(text) > 4 * max_bytes + MAX_HEAD:
        raise _too_large(max_bytes)
    scheme = _scheme(text)
    if scheme is None:
        return _of_base64(text, max_bytes)
    if scheme != "data":
        raise ImageError("not_an_image", f"an address of the scheme {scheme!r}; give a data URL or base64")
    head, comma, body = text.partition(",")
    if not comma or len(head) > MAX_HEAD:
        raise ImageError("not_an_image", "a data URL without a comma after its type")
    kind, *parameters = (part.strip().lower() for part in head.partition(":")[2].split(";"))
    _check_type(kind)
    if "%" in body and _DAMAGED_PERCENT.search(body):
        raise ImageError("not_an_image", "a data URL with a damaged percent-encoding")
    if parameters and parameters[-1] == "base64":
        return _of_base64(unquote_to_bytes(body).decode("latin-1") if "%" in body else body, max_bytes)
    if len(body) - 2 * body.count("%") > max_bytes:
        raise _too_large(max_bytes)
    if not body.isascii():
        raise ImageError("not_an_image", "a data URL with characters that should be percent-encoded")
    return _not_empty(unquote_to_bytes(body))


def _scheme(text: str) -> str | None:
    """The scheme of an address, in lower case; None of other texts. Base64 has no colon."""
    found = _SCHEME.match(text[:100])
    return found.group(1).lower() if found else None


def _check_type(kind: str) -> None:
    if kind.startswith("image/svg"):
        raise ImageError(
            "unsupported_format", "SVG, which is a program and no picture; render it to PNG first"
        )
    if kind not in _UNNAMED and not kind.startswith("image/"):
        raise ImageError("unsupported_format", f"a data URL of type {kind[:60]!r}; give one of an image")


def _of_base64(text: str, max_bytes: int) -> bytes:
    try:
        # As bytes, which lose characters thirty times as fast as a text does.
        encoded = text.encode("ascii").translate(None, _SPACE)
    except UnicodeEncodeError as error:
        raise ImageError("not_an_image", "text that is neither base64 nor a data URL") from error
    size = len(encoded) // 4 * 3 - encoded[-2:].count(b"=")
    if size > max_bytes:
        raise _too_large(max_bytes)
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
        if len(data) != size:  # padding behind a whole group, which the strict mode lets pass
            raise binascii.Error
    except binascii.Error as error:
        raise ImageError("not_an_image", "text that is neither base64 nor a data URL") from error
    return _not_empty(data)


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise ImageError("not_an_image", "0 bytes")
    return data


def _too_large(max_bytes: int) -> ImageError:
    return ImageError("too_large", f"more than {max_bytes:,} bytes")
