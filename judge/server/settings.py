"""What `arbiter serve` was told: limits, folders, keys, and which classifier judges."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from judge.errors import ConfigError
from prompts.reading import PromptMode
from prompts.taxonomy import Taxonomy

MAX_IMAGES = 64
"""Images in one request, by default."""


def default_decode_workers() -> int:
    """Processes that decode images: one for each core but one, at least 1 and at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores - 1))


@dataclass(frozen=True)
class ServerSettings:
    """Options of one server; the defaults suit one process on one machine.

    Raises:
        ConfigError: a number that is too small, or more images in a request than the queue holds.
    """

    run: str | None = None
    """Run folder, `student.onnx`, hub id or `http://HOST/v1#MODEL`, as `judge.load_classifier` takes it."""
    stage_judge: str | None = None
    """Of a cascade: where its judge is, or `none`."""
    device: str | None = None
    prompt_mode: PromptMode = "max"
    taxonomy: Taxonomy | None = None
    """Used where a request names none; by default the classifier's own."""
    batch_size: int = 8
    """Images in one call of the classifier."""
    queue_images: int = 256
    """Images that were accepted and not answered yet, frames of animations included; more are refused with 429."""
    max_images: int = MAX_IMAGES
    """Images in one request."""
    max_body_bytes: int = 64 * 2**20
    """Largest body of a request."""
    max_bodies_bytes: int = 512 * 2**20
    """Bytes of all bodies that are in memory at a time; more are refused with 429."""
    body_seconds: float = 60.0
    """How long a body may take to arrive."""
    decode_workers: int = field(default_factory=default_decode_workers)
    """Processes that decode images; 0 decodes in threads of the server, without limits of time and memory."""
    image_hosts: tuple[str, ...] = ()
    """Hosts from which an `image_url` may be fetched; none by default."""
    keys: tuple[str, ...] = ()
    """API keys, one of which every request needs; without any the server is open to whoever reaches it."""
    metrics_keys: tuple[str, ...] = ()
    """Keys that open `/metrics` and nothing else, for what collects them."""
    local_only: bool = False
    """Whether requests have to name this machine as their host, such as `localhost`."""
    queue_folder: Path | None = None
    """Below this folder, images may be added to the review queue by their path."""
    drain_seconds: float = 30.0
    """After SIGTERM, how long accepted questions may take to be answered."""
    page: bool = True
    """Whether `/` shows the page for moderators."""

    def __post_init__(self) -> None:
        smallest = {
            "batch_size": self.batch_size,
            "queue_images": self.queue_images,
            "max_images": self.max_images,
            "max_body_bytes": self.max_body_bytes,
        }
        for name, value in smallest.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it is at least 1.")
        if self.decode_workers < 0:
            raise ConfigError(f"decode_workers is {self.decode_workers}; 0 decodes in threads.")
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ConfigError(
                f"All bodies together may have {self.max_bodies_bytes:,} bytes, and a single one "
                f"{self.max_body_bytes:,}; a larger one would never be accepted."
            )

    @property
    def images_per_request(self) -> int:
        """Images that a request may hold: never more than the queue, as it would always be refused."""
        return min(self.max_images, self.queue_images)
