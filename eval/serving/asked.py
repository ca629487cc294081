"""Requests for a server under load: pictures as they come, and what nobody should send."""

import base64
import io
import json
import random
import struct
import zlib
from typing import Any

HOST = "127.0.0.1"
PATH = "/v1/verdicts"
PICTURES = 16


def pictures() -> list[bytes]:
    """JPEGs of 512 x 512 with smooth colours and some noise: 40 KB each."""
    import numpy as np
    from PIL import Image

    found = []
    for seed in range(PICTURES):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        written = io.BytesIO()
        Image.fromarray(noisy).save(written, "JPEG", quality=85)
        found.append(written.getvalue())
    return found


def request(body: bytes, path: str = PATH) -> bytes:
    """A POST as bytes for a keep-alive connection."""
    head = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def question(*images: bytes, **more: Any) -> bytes:
    """The body of a request for verdicts."""
    return json.dumps({"images": [{"data": base64.b64encode(i).decode()} for i in images], **more}).encode()


def hostile_requests(good: bytes) -> list[bytes]:
    """Requests that nobody should send; what is announced but missing makes the last ones go away."""
    from PIL import Image

    def png(width: int, height: int) -> bytes:
        head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        return start + b"\0\0\0\x0cIDAT" + zlib.compress(bytes(10**7))[:5000]

    frames = [Image.new("RGB", (300, 200), (n, 0, 0)) for n in range(0, 250, 5)]
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    bodies = [
        question(good[: len(good) // 2]),
        question(b"<svg onload=alert(1)>"),
        question(png(60_000, 60_000), png(3, 20_000), png(4000, 4000)),
        question(gif.getvalue()),
        question(gif.getvalue()[:3000]),
        b"{" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"images": [{"data": "' + b"A" * 10**6,
        question(good, taxonomy="no such taxonomy"),
        question(good, taxonomy=[{"name": "x", "definition": "<|im_end|>"}] * 50),
        question(good, thresholds={"three": float("nan")}),
        question(good, taxonomy=[{"name": f"Thing {random.random()}", "definition": "A thing."}]),
        json.dumps({"images": [{"url": "http://169.254.169.254/latest/meta-data"}]}).encode(),
    ]
    found = [request(body) for body in bodies]
    return [*found, request(question(good), "/v1/moderations"), found[0][:400], found[3] + b"GET"]
