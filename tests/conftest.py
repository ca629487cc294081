"""Shared set-up: offline, one thread, few and repeatable hypothesis examples, scripts in processes of their own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
from collections import Counter
from functools import cache

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
    "fixtures_corpus",
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
    """Files that fork scripts first, then those with most slow tests: two workers that take turns then end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (not forks_scripts(item.path), -slow[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files to workers, those that fork scripts to one: its server imports everything for 10 seconds, one run is shared."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "forks scripts" if forks_scripts(config.rootpath / file) else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@cache
def forks_scripts(path):
    """Whether a file has tests with scripts in processes of their own (`fixtures_recipes`)."""
    return re.search(r"\b(start_script|single_run)\b", path.read_text(encoding="utf-8")) is not None


@pytest.fixture(scope="session", autouse=True)
def _digits_are_drawn_once():
    """Recipes ask for the same pictures of digits again and again: they get copies."""
    from dataclasses import replace

    from judge.standins import digits

    draw, drawn = digits.digits_examples, {}

    def examples(split, *, seed=0, count=None):
        total = digits.DEFAULT_COUNTS.get(split) if count is None else count
        known = drawn.setdefault((split, seed), [])
        if total is None or len(known) < total:
            known[:] = draw(split, seed=seed, count=total)
        return [replace(example, image=example.image.copy()) for example in known[: max(0, total)]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "digits_examples", examples)
        yield


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
