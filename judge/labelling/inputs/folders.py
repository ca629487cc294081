"""Image files as inputs."""

from collections.abc import Iterator

from judge.data.images import DEFAULT_LIMITS, ImageLimits

from .files import FileImage, Skip
from .ids import file_id, storable
from .shards import InputRow, Shard


def read_images(shard: Shard, skip: Skip, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[InputRow | None]:
    """The image files of a shard; None for those to skip. Each is read when its image is asked for."""
    for index, path in enumerate(shard.paths):
        if skip(index):
            yield None
        else:
            yield InputRow(file_id(path), storable(path), FileImage(shard.root, path, limits))
