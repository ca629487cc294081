"""Which files are images, or claim to be: by their name, else by their first bytes.

A file that nobody looks at is a file that nobody judged. So whatever has the suffix of an image counts, also an empty
file or a format that is never decoded, and whatever starts like one, and whatever cannot be read.
"""

import os
import re

SUFFIXES = frozenset(
    """
    .jpg .jpeg .jpe .jif .jfif .jfi .png .apng .mng .jng .gif .webp .bmp .dib .tif .tiff .ico .cur .icns .svg .svgz
    .avif .avifs .heic .heif .heics .heifs .hif .jxl .jxr .wdp .hdp .jp2 .j2k .jpf .jpx .jpm .j2c .jpc .mpo .jps .pns
    .pnm .pbm .pgm .ppm .pam .pfm .tga .pcx .dcx .psd .psb .xcf .kra .ora .dds .exr .hdr .rgbe .qoi .flif .bpg .wbmp
    .xbm .xpm .sgi .rgb .rgba .wmf .emf .eps .ai
    .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .erf .mef .mrw .3fr .iiq
    """.split()
)
"""Suffixes of images, in lower case. Most of these formats are never decoded: such files are listed, and unjudged."""
HEAD_BYTES = 4096
"""Bytes read from the start of a file without the suffix of an image."""
_MORE_MAGIC = (
    *(b"II+\0", b"MM\0+"),  # BigTIFF
    *(b"II\xbc", b"\xff\x4f\xff\x51"),  # JPEG XR, JPEG 2000 without a container
    *(b"v/1\x01", b"#?RADIANCE", b"#?RGBE"),  # OpenEXR, Radiance HDR
    *(b"DDS ", b"icns", b"\x8aMNG", b"\x8bJNG", b"FLIF", b"BPG\xfb", b"gimp xcf", b"/* XPM"),
    b"\0\0\2\0",  # a Windows cursor
)
"""First bytes of formats that are not decoded here and that `format_of` does not know."""
_BRANDS = (b"avi", b"hei", b"hev", b"mif", b"msf", b"mia", b"MiH", b"crx")
"""Brands (bytes 8 to 12) of still images in ISO base media files, which hold videos too."""
_NETPBM = re.compile(rb"P[1-7fF]\s+(?:#[^\r\n]*[\r\n]\s*)*(?:\d|WIDTH|-)")
"""A comment ends with its line: then a text matches in one way only, and no file takes exponential time."""
_SVG = re.compile(rb"\s*(<\?xml|<!--|<!DOCTYPE\s+svg|<svg|<[\w-]+:svg)", re.IGNORECASE)


def looks_like_image(path: str) -> bool:
    """Whether a file claims to be an image, by its name or by its first bytes; True for what cannot be read."""
    return has_image_suffix(path) or starts_like_image(read_head(path))


def has_image_suffix(path: str) -> bool:
    """Whether a name ends like an image's."""
    # `a.png~` is an editor's backup, and Windows ignores dots and spaces at the end.
    name = os.path.basename(path).rstrip(" .~")
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read_head(path: str) -> bytes | None:
    """The first bytes of a file; b"" for a pipe or device, which reading could block; None if it cannot be read."""
    try:
        if not os.path.isfile(path):
            return b"" if os.path.exists(path) else None
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None


def starts_like_image(head: bytes | None) -> bool:
    """Whether the first bytes are those of an image; True where they are unknown."""
    from .images import format_of  # imports PIL, which `arbiter --help` must not wait for

    if head is None:
        return True
    if format_of(head) is not None or head.startswith(_MORE_MAGIC):
        return True
    if head[4:8] == b"ftyp" and head[8:12].startswith(_BRANDS):
        return True
    text = head.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", "ignore").encode()
    return bool(_NETPBM.match(head)) or bool(_SVG.match(text) and b"svg" in text.lower())
