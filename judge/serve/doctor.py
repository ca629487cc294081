"""What `arbiter doctor` looks at: Python, packages, devices, folders, runs, the environment. Nothing is changed."""

import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from judge.errors import first_line
from judge.verdicts.rows import package_version

Health = Literal["ok", "note", "problem"]
DISTRIBUTION = "arbiter-vision"
OLDEST_PYTHON = (3, 11)
_SECRETS = ("OPENAI_API_KEY", "HF_TOKEN", "ARBITER_API_KEYS")
_VARIABLES = (
    *("HF_HUB_OFFLINE", "HF_HOME", "ARBITER_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NO_COLOR"),
    *("HTTP_PROXY", "HTTPS_PROXY"),
)
_LITTLE_MEMORY, _LITTLE_DISK = 4.0, 2.0
"""GiB below which the demo may fail."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    health: Health
    found: str
    """What is there; never the value of a secret."""
    fix: str = ""
    """What to do about it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def examine() -> Iterator[Finding]:
    """All findings, in the order of the report; a check that fails itself is a problem of its own."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        *(_python, _packages, _extras, _torch, _wheels, _browser),
        *(_machine, _cache, _runs, _environment),
    )
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a broken installation is what a doctor is asked about
            yield Finding(
                check.__name__.strip("_"), "problem", f"{type(error).__name__}: {first_line(error)}"
            )


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} in {sys.prefix}"
    fits = sys.version_info >= OLDEST_PYTHON
    fix = "" if fits else f"needs Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    yield Finding("python", "ok" if fits else "problem", found, fix)
    yield Finding("arbiter", "ok", f"{package_version()} in {Path(__file__).parents[1]}")


def _packages() -> Iterator[Finding]:
    """Packages that are always needed, against the lower bounds of the distribution."""
    wanted = _requirements()[""]
    wrong = [(one, version) for one in wanted if (version := _misfit(one)) is not None]
    for one, version in wrong:
        yield Finding("packages", "problem", f"{one.name} {version or 'is missing'}", f"pip install '{one}'")
    if not wrong:
        yield Finding("packages", "ok", f"all {len(wanted)} as required")


def _extras() -> Iterator[Finding]:
    """Optional packages, extra by extra."""
    for extra, wanted in sorted(_requirements().items()):
        if not extra or extra == "dev":
            continue
        wrong = [
            f"{one.name} {version or 'is missing'}" for one in wanted if (version := _misfit(one)) is not None
        ]
        if wrong:
            yield Finding(
                "extras", "note", f"{extra}: {', '.join(wrong)}", f"pip install '{DISTRIBUTION}[{extra}]'"
            )
        else:
            yield Finding("extras", "ok", extra)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        fix = "only exported students (student.onnx) and served judges work without it"
        yield Finding("torch", "problem", f"cannot be imported: {first_line(error)}", fix)
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    for place in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(place)
        yield Finding("devices", "ok", f"cuda:{place} {about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.cuda.device_count() == 0:
        yield Finding("devices", "note", "no GPU; everything runs on the processor, a 7B judge slowly")


def _wheels() -> Iterator[Finding]:
    """The wheels of `make signs`, by their version; their files are checked when they are read."""
    from judge.standins.wheels import MINILM, QTAWESOME, SMOLLM2

    for wheel in (QTAWESOME, MINILM, SMOLLM2):
        try:
            version = metadata.version(wheel.distribution)
        except metadata.PackageNotFoundError:
            yield Finding("signs", "note", f"{wheel.distribution} is missing", wheel.install)
            continue
        fits = version == wheel.version
        fix = "" if fits else wheel.install
        yield Finding("signs", "ok" if fits else "note", f"{wheel.distribution} {version}", fix)


def _browser() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found:
        yield Finding("browser", "ok", found)
    else:
        yield Finding("browser", "note", "no Chromium", "only tests of pages need one")


def _machine() -> Iterator[Finding]:
    from judge.runs.machine import environment

    machine = environment()["machine"]
    yield Finding("machine", "ok", f"{machine['cores']} cores, {machine['cpu']}")
    memory, disk = machine["memory_gib"], shutil.disk_usage(".").free / 2**30
    if memory is not None:
        little = memory < _LITTLE_MEMORY
        yield Finding("memory", "note" if little else "ok", f"{memory:g} GiB")
    little = disk < _LITTLE_DISK
    fix = f"runs and caches need {_LITTLE_DISK:g} GiB" if little else ""
    yield Finding("disk", "problem" if little else "ok", f"{disk:.1f} GiB free here", fix)


def _cache() -> Iterator[Finding]:
    from judge.standins.assembled import cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Finding(
            "cache", "problem", f"{folder} cannot be written: {first_line(error)}", "set ARBITER_CACHE"
        )
    else:
        yield Finding("cache", "ok", str(folder))


def _runs() -> Iterator[Finding]:
    """Run folders in runs/ and those that ship: whether they look whole; weights are not loaded."""
    from judge.runs.folder import MANIFEST
    from judge.standins.shipped import SHIPPED_RUNS, run_path

    here = [path.parent for path in sorted(Path("runs").glob(f"*/{MANIFEST}"))]
    for name, path in [(str(path), path) for path in here] + [
        (name, Path(run_path(name))) for name in SHIPPED_RUNS
    ]:
        yield _check_run(name, path)
    if not here:
        yield Finding("runs", "note", "none in runs/ here", "make demo, or arbiter recipes list")


def _check_run(name: str, path: Path) -> Finding:
    from judge.classifiers import LOADERS
    from judge.runs.folder import RunDir
    from prompts.errors import ArbiterError

    try:
        run = RunDir.open(path)
        manifest = run.manifest
        if run.kind not in (*LOADERS, "vlm"):
            return Finding("runs", "note", f"{name}: {run.kind}", "no classifier, so nothing to judge with")
        taxonomy = run.taxonomy
    except (ArbiterError, OSError) as error:
        return Finding("runs", "problem", f"{name}: {first_line(error)}", "train it again, or remove it")
    stages = [manifest[stage] for stage in ("student", "judge") if isinstance(manifest.get(stage), dict)]
    lost = [one["path"] for one in stages if "path" in one and not (path / one["path"]).exists()]
    if run.kind != "cascade" and not any(path.glob("**/*.safetensors")):
        lost.append("*.safetensors")
    if lost:
        return Finding("runs", "problem", f"{name}: {run.kind} without {', '.join(lost)}", "train it again")
    return Finding("runs", "ok", f"{name}: {run.kind} of {len(taxonomy)} categories ({taxonomy.name})")


def _environment() -> Iterator[Finding]:
    for name in _VARIABLES:
        if os.environ.get(name):
            yield Finding("environment", "ok", f"{name}={os.environ[name]}")
    for name in _SECRETS:
        if os.environ.get(name):
            yield Finding("environment", "ok", f"{name} is set")


def _requirements() -> dict[str, list[Any]]:
    """Extra -> what it requires here; the key "" is always required."""
    from packaging.requirements import Requirement

    found = {extra: [Requirement(text) for text in texts] for extra, texts in _declared().items()}
    return {extra: [one for one in all_of if _applies(one)] for extra, all_of in found.items()}


def _applies(requirement: Any) -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({"extra": ""}))


def _declared() -> dict[str, list[str]]:
    """Extra -> requirements as texts, of the checkout that runs, else of the distribution that is installed."""
    checkout = Path(__file__).parents[2] / "pyproject.toml"
    if checkout.is_file():
        project = tomllib.loads(checkout.read_text("utf-8"))["project"]
        return {"": project["dependencies"], **project.get("optional-dependencies", {})}
    found: dict[str, list[str]] = {"": []}
    for text in metadata.requires(DISTRIBUTION) or ():
        # The marker of an extra is the last one: `; python_version < "3.12" and extra == "onnx"`.
        plain, _, extra = text.partition("extra == ")
        found.setdefault(extra.strip("\"' )"), []).append(plain.rstrip(" ;(").removesuffix(" and"))
    return found


def _misfit(requirement: Any) -> str | None:
    """The version of a package that does not fit, "" where it is missing; None where all is well."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return ""
    return None if requirement.specifier.contains(version, prereleases=True) else version
