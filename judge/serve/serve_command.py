"""`arbiter serve`: a server that OpenAI's clients speak to, and a page for moderators."""

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from judge.errors import ConfigError, MissingExtraError
from prompts.printable import printable
from prompts.reading import check_prompt_mode
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .exit_codes import EXIT_ERROR, EXIT_SAFE, print_stderr
from .options import (
    BatchSizeOption,
    DatabaseOption,
    DatabasePasswordOption,
    DeviceOption,
    PromptModeOption,
    TaxonomyOption,
    own_threshold,
    quiet_libraries,
    read_threshold,
    threshold_for,
    warn_outside_promise,
    warn_without_evidence,
)

if TYPE_CHECKING:
    from sqlalchemy import URL

    from judge.calibration.thresholds import Thresholds
    from judge.server.service import LoadedJudge
    from judge.server.settings import ServerSettings

DEFAULT_RUNS = ("runs/cascade", "runs/student", "runs/demo")
"""Of these, the first that exists is served where none is named."""
SHIPPED_DEFAULT = "tiny-student"
"""Served where none of them exists."""
SERVE_EPILOG = """\
\b
Without a run, the first of runs/cascade, runs/student and runs/demo is
served; where there is none, the shipped tiny-student, which knows
handwritten digits only.

\b
Examples:
  arbiter serve
  arbiter serve --student runs/student --taxonomy my.yaml --port 9000
  arbiter serve --cascade runs/cascade --engine http://localhost:8000/v1#judge
  arbiter serve --host 0.0.0.0 --api-key-file keys.txt

Then POST /v1/moderations answers OpenAI's clients (base_url=http://127.0.0.1:8080/v1), POST /v1/verdicts gives whole
verdicts, and / is the page. SIGTERM answers what was accepted, then ends with 0.
"""

_RUN_HELP = "RUN: a run folder, student.onnx, a shipped name, or hf:NAME of the hub."
JudgeRunOption = Annotated[
    str | None, typer.Option("--judge", metavar="RUN", help=f"What judges. {_RUN_HELP}")
]
StudentRunOption = Annotated[
    str | None, typer.Option("--student", metavar="RUN", help="The same, for the run of a student.")
]
CascadeRunOption = Annotated[
    str | None, typer.Option("--cascade", metavar="RUN", help="The same, for the run of a cascade.")
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL#MODEL",
        help="A chat server (vLLM, SGLang, transformers serve) as the judge of the cascade, or alone as what judges.",
    ),
]
ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="T",
        help="Where a request gives none: a number, NAME=T (may be repeated), or a file of `arbiter calibrate`.",
        show_default="0.5",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="API keys, one a line; also in ARBITER_API_KEYS, separated by commas."),
]
HostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-image-host", metavar="HOST", help="Fetch image URLs from this host; may be repeated."
    ),
]
MetricsKeyOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keys that open /metrics and nothing else, one a line."),
]
HostOption = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")]
PortOption = Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0 takes a free one.")]
QueueOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="Images that may wait; more are refused with 429.")
]
BodyOption = Annotated[int, typer.Option(metavar="MB", min=1, help="Largest body of a request.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Processes that open images.", show_default="cores minus one"),
]
NoKeysOption = Annotated[
    bool, typer.Option("--no-keys", help="Listen on any address without keys: whoever reaches it may ask.")
]
StateOption = Annotated[
    Path, typer.Option(metavar="DIR", help="Where the queue's images and its database are kept.")
]
QueueFolderOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Images below it may be added to the queue by their path."),
]
DrainOption = Annotated[
    float, typer.Option(metavar="S", min=0, help="How long accepted questions may take after SIGTERM.")
]
NoPageOption = Annotated[bool, typer.Option("--no-page", help="Only the API, without the page.")]


def serve(
    judge: JudgeRunOption = None,
    student: StudentRunOption = None,
    cascade: CascadeRunOption = None,
    engine: EngineOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8080,
    taxonomy: TaxonomyOption = None,
    threshold: ThresholdOption = None,
    prompt_mode: PromptModeOption = "max",
    batch_size: BatchSizeOption = 8,
    queue_images: QueueOption = 256,
    max_body_mb: BodyOption = 64,
    decode_workers: WorkersOption = None,
    allow_image_host: HostsOption = None,
    api_key_file: KeyFileOption = None,
    metrics_key_file: MetricsKeyOption = None,
    no_keys: NoKeysOption = False,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordOption = None,
    state: StateOption = Path(".arbiter"),
    queue_folder: QueueFolderOption = None,
    drain_seconds: DrainOption = 30.0,
    device: DeviceOption = None,
    no_page: NoPageOption = False,
) -> int:
    """Serve a judge: OpenAI's moderation API for images, under any taxonomy, and a page for moderators."""
    check_extra()
    from judge.classifiers import check_name
    from judge.records.urls import with_password
    from judge.server.keys import read_keys
    from judge.server.origins import is_local
    from judge.server.settings import ServerSettings, default_decode_workers

    run, stage_judge = chosen_run(judge, student, cascade, engine)
    check_name(run)
    given = read_threshold(threshold)
    asked = _taxonomy(taxonomy, run, given)
    keys = _keys(host, api_key_file, no_keys)
    settings = ServerSettings(
        run=run,
        stage_judge=stage_judge,
        device=device,
        prompt_mode=check_prompt_mode(prompt_mode),
        taxonomy=asked,
        batch_size=batch_size,
        queue_images=queue_images,
        max_body_bytes=max_body_mb * 2**20,
        max_bodies_bytes=max(8 * max_body_mb, 512) * 2**20,
        decode_workers=default_decode_workers() if decode_workers is None else decode_workers,
        image_hosts=tuple(allow_image_host or ()),
        keys=keys,
        metrics_keys=read_keys(metrics_key_file, {}),
        local_only=is_local(host) and not (keys or no_keys),
        queue_folder=queue_folder,
        drain_seconds=drain_seconds,
        page=not no_page,
    )
    url = with_password(database, database_password_file)
    return _serve(settings, given if threshold else None, host, port, state, url)


def _taxonomy(
    name: str | None, run: str, threshold: "float | dict[str, float] | Thresholds"
) -> Taxonomy | None:
    """The taxonomy of requests that name none; None for the classifier's own."""
    if name:
        taxonomy = load_taxonomy(name)
        threshold_for(taxonomy, threshold)
        return taxonomy
    if run.startswith(("http://", "https://")):
        raise ConfigError("--engine judges by any taxonomy and has none of its own; give --taxonomy.")
    return None


def _keys(host: str, file: Path | None, no_keys: bool) -> tuple[str, ...]:
    """The API keys; without any, only this machine may ask."""
    from judge.server.keys import read_keys
    from judge.server.origins import is_local

    keys = read_keys(file)
    if not is_local(host) and not (keys or no_keys):
        raise ConfigError(
            f"--host {host} can be reached by others, and there is no API key. Give --api-key-file or "
            "ARBITER_API_KEYS, or --no-keys if something in front checks who asks."
        )
    return keys


def check_extra() -> None:
    """Raise `MissingExtraError` unless the packages of the extra `serve` are installed; none is imported."""
    from importlib.util import find_spec

    needed = ("fastapi", "httpcore2", "uvicorn", "multipart", "prometheus_client", "sqlalchemy", "alembic")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"`arbiter serve` needs {', '.join(missing)}: pip install 'arbiter-vision[serve]'."
        )


def chosen_run(
    judge: str | None, student: str | None, cascade: str | None, engine: str | None
) -> tuple[str, str | None]:
    """What judges, and where a cascade's own judge is.

    Raises:
        ConfigError: two runs, or an engine beside a run that has no place for it.
    """
    named = [run for run in (judge, student, cascade) if run is not None]
    if len(named) > 1:
        raise ConfigError(f"Give one of --judge, --student and --cascade, not {' and '.join(named)}.")
    if engine is not None and (judge or student):
        raise ConfigError(
            "--engine is the judge of a cascade, or judges alone; give it with --cascade or alone."
        )
    if named:
        return named[0], engine
    if engine is not None:
        return engine, None
    found = next((run for run in DEFAULT_RUNS if Path(run, "run.json").is_file()), None)
    if found is not None:
        return found, None
    from judge.standins.shipped import SHIPPED_RUNS

    print_stderr(
        f"arbiter: no run was named and none of {', '.join(DEFAULT_RUNS)} is here, so the shipped {SHIPPED_DEFAULT} "
        f"judges. It knows {SHIPPED_RUNS[SHIPPED_DEFAULT]}, and nothing of photographs."
    )
    return SHIPPED_DEFAULT, None


def _serve(
    settings: "ServerSettings",
    threshold: "float | dict[str, float] | Thresholds | None",
    host: str,
    port: int,
    state: Path,
    database: "str | URL | None",
) -> int:
    import logging

    from judge.records.records import Records
    from judge.server.app import create_app
    from judge.server.running import listen, run
    from judge.server.service import JudgeService

    logging.basicConfig(format="arbiter: %(levelname)s: %(message)s", level=logging.WARNING)
    quiet_libraries()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with listen(host, port) as listener, closing(Records.in_folder(state, database)) as records:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        print_stderr(
            f"arbiter: {address}/v1 is the API" + (f", {address}/ the page" if settings.page else "")
        )
        service = JudgeService(lambda: _load(settings, threshold), settings)
        unanswered = run(create_app(service, settings, records), service, listener)
    if unanswered:
        print_stderr(f"arbiter: ended before {unanswered} images were answered")
    return EXIT_ERROR if unanswered else EXIT_SAFE


def _load(
    settings: "ServerSettings", threshold: "float | dict[str, float] | Thresholds | None"
) -> "LoadedJudge":
    """Load the classifier, and say what it is and what is not known of it."""
    from dataclasses import replace

    from judge.server.loading import load_judge

    loaded = load_judge(settings)
    loaded = replace(loaded, threshold=own_threshold(loaded.classifier, loaded.taxonomy, threshold))
    warn_outside_promise(loaded.classifier, loaded.taxonomy)
    warn_without_evidence(loaded.classifier, settings.run or "", loaded.taxonomy)
    taxonomy = loaded.taxonomy
    print_stderr(
        f"arbiter: ready: {printable(loaded.name)}, by {taxonomy.name!r} ({len(taxonomy)} categories) unless asked "
        "otherwise"
    )
    return loaded
