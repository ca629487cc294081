"""Ids of inputs: texts that can be stored, of which no two inputs have the same.

photos/a.jpg              an image file
shards/0.tar/000017       a sample of a tar; `/000017.left.png` where it holds several images, `#2` where its key
                          was there before
shards/0.tar#51200        what is damaged at this byte of a tar
t.parquet#17              row 17 of a Parquet file, counted from 0; `t.parquet#17/cat` where the column `id` says cat
t.jsonl#18                line 18 of JSON lines, counted from 1; likewise
"""

import re

LONGEST_NAME = 1024
"""Characters of what a row or a sample calls itself that its id has, at most: strangers choose it, and the ids of a
whole part are in memory."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Bytes of a name that are no UTF-8, as Python decodes them, and halves of characters in JSON."""
_LIKE_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")
_LIKE_PLACE = re.compile(r"#(?=\d+(?:/|$))")
"""A file may be named `t.jsonl#18`."""


def storable(text: str) -> str:
    r"""A text with what is no Unicode as `\xe9`; different texts stay different."""
    if "\\" not in text and text.isprintable():  # no surrogate is printable
        return text
    if not _SURROGATE.search(text) and not _LIKE_ESCAPED.search(text):
        return text
    return _SURROGATE.sub(_escape, text.replace("\\", "\\\\"))


def file_id(path: str) -> str:
    """The id of a file with an image, or with many inputs, by its path."""
    if "#" in path and _LIKE_PLACE.search(path):
        return _LIKE_PLACE.sub(r"\\x23", _SURROGATE.sub(_escape, path.replace("\\", "\\\\")))
    return storable(path)


def place_id(path: str, number: int, name: object = None) -> str:
    """The id of a row, a line or a byte of a file, and of what the row calls itself."""
    place = f"{file_id(path)}#{number}"
    return place if name is None or name == "" else f"{place}/{storable(str(name)[:LONGEST_NAME])}"


def _escape(found: "re.Match[str]") -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
