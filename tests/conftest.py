"""Shared set-up: offline, one thread, few and repeatable hypothesis examples, scripts in processes of their own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "arbiter",
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("arbiter")

pytest_plugins = (
    "fixtures_chat_server",
    "fixtures_models",
    "fixtures_exports",
    "fixtures_guards",
    "fixtures_recipes",
    "fixtures_records",
    "fixtures_rivals",
    "fixtures_server",
    "fixtures_page",
    "fixtures_shapes",
)


def pytest_collection_modifyitems(items):
    """Files with most slow tests first: two workers that take a file at a time then end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """One thread, or OMP_NUM_THREADS: tiny models on several spend their time waiting."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def noise_image():
    """`noise_image(seed, size=(20, 16))` -> a random RGB picture, (width, height)."""
    import numpy as np
    from PIL import Image

    def make(seed, size=(20, 16)):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return make
