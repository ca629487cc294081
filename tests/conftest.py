"""Shared set-up: offline, one thread, few and repeatable hypothesis examples, scripts in processes of their own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
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
    "fixtures_osprey",
    "fixtures_exports",
    "fixtures_guards",
    "fixtures_hub_server",
    "fixtures_label_studio",
    "fixtures_publish",
    "fixtures_recipes",
    "fixtures_records",
    "fixtures_rivals",
    "fixtures_server",
    "fixtures_page",
    "fixtures_shapes",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """A million objects of libraries stay for good: looking through them again and again is a tenth of all time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(5_000, 20, 10)
        gc.enable()


def pytest_collection_modifyitems(items):
    """Groups first, then files with most slow tests: two workers that take turns then end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    order = [*GROUPS, None]
    items.sort(key=lambda item: (order.index(group_of(item.path)), -slow[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files to workers, those of a group to one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return group_of(config.rootpath / file) or file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


GROUPS = {
    # Scripts in processes of their own (`fixtures_recipes`): a server imports everything for 10 seconds; one run is shared.
    "forked scripts": re.compile(
        r"\b(start_script|single_run)\b|^def \w+\([^)]*\baccelerate\b", re.MULTILINE
    ),
    # A browser and its driver take 2 seconds to start.
    "pages": re.compile(r"^def \w+\([^)]*\b(desk|chromium|window)\b", re.MULTILINE),
    # Importing the classes of diffusers takes 5 seconds.
    "pipelines": re.compile(r"\b(diffusers|fixtures_detectors|load_pipeline|random_pipeline)\b"),
}
"""Tests that share what takes long: name -> what files of the group contain."""


@cache
def group_of(path):
    """The first group that a file of tests belongs to, if any."""
    text = path.read_text(encoding="utf-8")
    return next((name for name, words in GROUPS.items() if words.search(text)), None)


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


@pytest.fixture(scope="session", autouse=True)
def _nobody_waits_for_the_disk():
    """A recipe writes dozens of files, each with two `fsync`, which guard against power cuts and take 20 ms and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """One thread, or OMP_NUM_THREADS: tiny models on several spend their time waiting."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        # `torch.manual_seed` formats a traceback for each kind of device that is not there: 1 ms.
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def noise_image():
    """`noise_image(seed, size=(20, 16))` -> a random RGB picture, (width, height)."""
    import numpy as np
    from PIL import Image

    def make(seed, size=(20, 16)):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return make
