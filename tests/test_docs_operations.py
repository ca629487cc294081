"""docs/operations.md: its limits, metrics and alerts are those of the code and of deploy/."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[
        [part.split("\n")[0] for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)].index(title)
    ]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, its head left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def limits() -> dict[str, str]:
    """What the table has to say, computed from the code."""
    from judge.data import frames, images
    from judge.intake import decoding
    from judge.records import database, postgresql
    from judge.serve.serve_command import serve
    from judge.server import chat_policy, decision_routes, opening, questions, review, stored, uploads
    from judge.server.settings import ServerSettings

    settings = ServerSettings(decode_workers=1)
    option = {name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()}
    assert option["max_body_mb"] * 2**20 == settings.max_body_bytes
    assert option["queue_images"] == settings.queue_images
    assert option["batch_size"] == settings.batch_size
    assert option["drain_seconds"] == settings.drain_seconds
    return {
        "bytes of a request's body": f"{settings.max_body_bytes // 2**20} MiB",
        "bytes of all bodies that are held": f"{settings.max_bodies_bytes // 2**20} MiB",
        "time for a body to arrive": f"{settings.body_seconds:.0f} s",
        "images of a request": f"{settings.images_per_request}",
        "images that are accepted and not answered": f"{settings.queue_images}",
        "images of a batch": f"{settings.batch_size}",
        "images of a request that are explained": f"{questions.MAX_EXPLAINED}",
        "bytes of an image": f"{images.DEFAULT_LIMITS.max_bytes // 2**20} MiB",
        "pixels of an image": f"{images.DEFAULT_LIMITS.max_pixels:,}",
        "pixels of a WebP": f"{min(images.MAX_WEBP_PIXELS, images.DEFAULT_LIMITS.max_pixels):,}",
        "longest side over shortest": f"{images.DEFAULT_LIMITS.max_aspect:.0f}",
        "frames of an animation that are judged": f"{frames.MAX_FRAMES}",
        "processor time to open an image": f"{decoding.SECONDS:.0f} s",
        "time by the clock to open an image": f"{decoding.SECONDS * decoding.PATIENCE:.0f} s",
        "memory of a process that opens images": f"{decoding.MEMORY // 10**6} MB",
        "pixels that are open and wait": f"{opening.MAX_HELD_PIXELS:,}",
        "categories of a request's taxonomy": f"{questions.MAX_CATEGORIES}",
        "characters of a prompt": f"{questions.MAX_PROMPT_LENGTH:,}",
        "characters of a policy text": f"{chat_policy.MAX_POLICY_LENGTH:,}",
        "items of the queue in an answer": f"{review.MAX_PAGE}",
        "decisions in an answer": f"{decision_routes.MAX_DECISIONS:,}",
        "files of a folder import": f"{uploads.MAX_FOLDER_FILES:,}",
        "calls of the database at a time": f"{stored.THREADS}",
        "wait of a writer for its turn": f"{database._WAIT_SECONDS:.0f} s",
        "pause of a writer that has its turn (PostgreSQL)": f"{postgresql._IDLE_SECONDS:.0f} s",
        "wait for PostgreSQL to let us in": f"{postgresql._CONNECT_SECONDS} s",
        "time to answer what was accepted, at the end": f"{settings.drain_seconds:.0f} s",
    }


def test_the_table_of_limits_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from judge.server.settings import default_decode_workers

    shown = {name: value for name, value, _ in rows("Limits")}
    processes = shown.pop("processes that open images")
    assert shown == limits()
    found = []
    for cores in (1, 2, 4, 64):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        found.append(default_decode_workers())
    assert found == [1, 1, 3, 8]
    assert processes == "cores minus one, 1 to 8"


def test_limits_are_changed_by_options_that_exist() -> None:
    from judge.serve.serve_command import serve

    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    named = {option for *_, how in rows("Limits") for option in re.findall(r"`(--[\w-]+)`", how)}
    assert len(named) >= 5
    assert named <= options
    # And so in every section of the page that speaks of the server's options.
    of_others = {"--format", "--clean", "--models", "--engine", "--build-arg", "--csv"}
    assert set(re.findall(r"`(--[a-z][\w-]+)", PAGE)) - of_others <= options


def test_the_table_of_metrics_is_that_of_the_server() -> None:
    from judge.server.metrics import Metrics

    metrics = Metrics()
    metrics.answered("/x", "GET", 200, 0.1)
    metrics.opened("ok", 0.1)
    metrics.concluded("safe", "student")
    kept = {}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [label for label in family.samples[0].labels if label != "le"]
        kept[f"`{name}`"] = (", ".join(f"`{label}`" for label in labels), family.documentation)
    assert {name: (labels, meaning) for name, labels, meaning in rows("Metrics")} == kept


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    assert re.findall(r"^### (\w+)$", section("When an alert goes off"), re.MULTILINE) == alerts


def test_codes_and_files_that_the_page_names_exist() -> None:
    from judge.server.errors import RecordsUnavailableError

    serving = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    code = RecordsUnavailableError().code
    assert f"`{code}`" in PAGE
    assert f"`{code}`" in serving
    for name in set(re.findall(r"deploy/[\w.]+\w", PAGE)) - {"deploy/secrets"}:
        assert (ROOT / name).is_file(), name
